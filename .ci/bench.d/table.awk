# Medians of what was measured, and their ratios to those of peers.

function median(name, what,   count, i, j, held, list) {
  count = split(values[name, what], list, " ")
  for (i = 2; i <= count; i++) {
    held = list[i] + 0
    for (j = i - 1; j > 0 && list[j] + 0 > held; j--) list[j + 1] = list[j]
    list[j + 1] = held
  }
  return count % 2 ? list[(count + 1) / 2] + 0 : (list[count / 2] + list[count / 2 + 1]) / 2
}

function ratio(name, peer, label) {
  return peer == "" ? "" : sprintf("%.2f of %s", median(name, "wall") / median(peer, "wall"), label)
}

function size(bytes) {
  return bytes < 1e7 ? sprintf("%.0f kB", bytes / 1e3) : sprintf("%.2f GB", bytes / 1e9)
}

function shown(format, value) {
  return value > 0 ? sprintf(format, value) : "-"
}

BEGIN {
  while ((getline line < results) > 0) {
    split(line, field, " ")
    values[field[1], "wall"] = values[field[1], "wall"] " " field[2]
    values[field[1], "cpu"] = values[field[1], "cpu"] " " field[3]
    values[field[1], "rss"] = values[field[1], "rss"] " " field[4]
  }
  while ((getline line < stored) > 0) { split(line, field, " "); bytes[field[1]] = field[2] }
  printf "%-56s %8s %8s %8s %12s  %s\n", "", "wall s", "cpu s", "MiB RSS", "stored", "wall ratio"
}

{
  second = ratio($1, $5, $6)
  printf "%-56s %8.2f %8s %8s %12s  %s\n", $2, median($1, "wall"), shown("%.2f", median($1, "cpu")), shown("%.0f", median($1, "rss") / 1024),
    $1 in bytes ? size(bytes[$1]) : "-", ratio($1, $3, $4) (second == "" ? "" : ", " second)
}
