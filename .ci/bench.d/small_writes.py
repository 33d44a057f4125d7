"""What scattered changes cost, by the size of chunks: the rule of src/ops/pieces.rs against fixed sizes.

small_writes.py random                        simulated random writes
small_writes.py pieces IMAGE                  the pieces of an image that are not holes, with their hashes
small_writes.py report TITLE BYTES PIECES...  a table for a disk of that size, from its pieces after each night
small_writes.py install ROOT BYTES            copies files of this host's packages to a folder
small_writes.py upgrade ROOT NIGHT PACKAGES   replaces the files of so many of them as dpkg does
"""

import hashlib
import os
import random
import shutil
import sys

PIECE, SHOWN = 64 << 10, (1, 2, 3, 10)
SIZES = [(f"{kib} KiB fixed", kib, False) for kib in (128, 256, 512, 1024, 4096)]
SIZES += [("512 KiB, pieces", 512, True), ("1 MiB, pieces", 1024, True)]
INFO = "/var/lib/dpkg/info"


def random_nights(pieces, writes=600, nights=10):
    """The dirty pieces of each night, and those of them in the hot twentieth."""
    numbers, hot = random.Random(1), pieces // 20
    first = numbers.randrange(pieces - hot)
    for _ in range(nights):
        dirty = set()
        for _ in range(writes):
            is_hot = numbers.random() < 0.8
            dirty.add(first + numbers.randrange(hot) if is_hot else numbers.randrange(pieces))
        yield dirty, {piece for piece in dirty if first <= piece < first + hot}


def costs(disk_bytes, chunk_bytes, splits, nights):
    """Each night's multiple of the dirty bytes: of all, and of the hot part; and the length of the list of blobs."""
    per, chunks = chunk_bytes // PIECE, disk_bytes // chunk_bytes
    most, split, rows = min(max(chunks // 4, 1024), 65536), set(), []
    for dirty, hot in nights:
        stored = stored_hot = 0
        for chunk in {piece // per for piece in dirty}:
            here = set(range(chunk * per, (chunk + 1) * per))
            changed, cost = len(here & dirty), per
            if not splits or 2 * changed > per:
                split.discard(chunk)
            elif chunk in split:
                cost = changed
            elif len(split) < most:
                split.add(chunk)
            stored += cost
            stored_hot += cost if here & hot else 0
        rows.append((stored / max(len(dirty), 1), stored_hot / max(len(hot), 1), chunks + len(split) * (per - 1)))
    return rows


def simulate():
    print("\n600 random writes of 64 KiB a night, 80 % of them to the same 5 % of the disk; read and stored as a")
    print("multiple of the dirty bytes, and (the same 5 % alone); simulated")
    for gib in (4, 8, 16, 64):
        heads = "".join(f"{'night ' + str(night):>16}" for night in SHOWN)
        print(f"\n{gib} GiB        {heads}   blobs in the list")
        for name, kib, splits in SIZES:
            rows = costs(gib << 30, kib << 10, splits, random_nights((gib << 30) // PIECE))
            shown = "".join(f"{f'{rows[n - 1][0]:.1f} ({rows[n - 1][1]:.1f})':>16}" for n in SHOWN)
            print(f"{name:16}{shown}{rows[-1][2]:>12}")


def print_pieces(image):
    with open(image, "rb") as disk:
        size, start = os.fstat(disk.fileno()).st_size, 0
        while start < size:
            try:
                data = os.lseek(disk.fileno(), start, os.SEEK_DATA)
            except OSError:
                break
            start, end = data // PIECE * PIECE, os.lseek(disk.fileno(), data, os.SEEK_HOLE)
            while start < end:
                piece = os.pread(disk.fileno(), PIECE, start)
                print(start // PIECE, hashlib.blake2b(piece, digest_size=16).hexdigest())
                start += PIECE


def report(title, disk_bytes, files):
    states = [set(open(file)) for file in files]
    nights = [({int(line.split()[0]) for line in old ^ new}, set()) for old, new in zip(states, states[1:])]
    dirty = ", ".join(str(len(dirty) * PIECE // 1_000_000) for dirty, _ in nights)
    print(f"\n{title}; read and stored as a multiple of the dirty bytes\ndirty, MB: {dirty}\n")
    shown = [night for night in SHOWN if night <= len(nights)]
    print(" " * 16 + "".join(f"{'night ' + str(night):>10}" for night in shown) + f"{'all':>10}")
    for name, kib, splits in SIZES:
        rows = costs(disk_bytes, kib << 10, splits, nights)
        total = sum(row[0] * len(dirty) for row, (dirty, _) in zip(rows, nights))
        total /= sum(len(dirty) for dirty, _ in nights)
        print(f"{name:16}" + "".join(f"{rows[n - 1][0]:>10.1f}" for n in shown) + f"{total:>10.1f}")


def packages():
    """The regular files of each package of this host, in a random order that is always the same."""
    lists = sorted(name for name in os.listdir(INFO) if name.endswith(".list"))
    random.Random(1).shuffle(lists)
    for name in lists:
        paths = [path for path in open(f"{INFO}/{name}").read().split("\n") if path]
        files = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
        if files:
            yield name, files


def install(root, limit):
    for _, files in packages():
        for path in files:
            target = root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)
            limit -= os.path.getsize(path)
        if limit < 0:
            break


def upgrade(root, night, count):
    installed = [(name, files) for name, files in packages() if os.path.exists(root + files[0])]
    mark = f"version {night:08}".encode()
    os.makedirs(f"{root}/var/log", exist_ok=True)
    for name, files in random.Random(night).sample(installed, min(count, len(installed))):
        for path in filter(lambda path: os.path.exists(root + path), files):
            with open(path, "rb") as old, open(f"{root}{path}.dpkg-new", "wb") as new:
                # Another build: about as long, and different in every block.
                while block := old.read(4096):
                    new.write((mark + block[len(mark):])[: len(block)])
                new.flush()
                os.fsync(new.fileno())
            os.rename(f"{root}{path}.dpkg-new", root + path)
        with open("/var/lib/dpkg/status", "rb") as old, open(f"{root}/status-new", "wb") as new:
            new.write(mark + name.encode() + old.read())
        os.rename(f"{root}/status-new", f"{root}/status")
        with open(f"{root}/var/log/dpkg.log", "a") as log:
            log.write(f"{night} upgrade {name}\n" * 12)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["random"]:
            simulate()
        case ["pieces", image]:
            print_pieces(image)
        case ["report", title, disk_bytes, *files]:
            report(title, int(disk_bytes), files)
        case ["install", root, limit]:
            install(root, int(limit))
        case ["upgrade", root, night, count]:
            upgrade(root, int(night), int(count))
        case _:
            sys.exit(__doc__)
