"""Writes to a disk of a running QEMU, one at a time, and how long they took by QEMU's own count.

latency.py QMP-SOCKET DEVICE SECONDS    random 64 KiB writes for so long
latency.py QMP-SOCKET DEVICE -- WORDS…  for as long as this command runs

Prints: the writes, their mean, and the limits that 99 % and all of them stayed below (from the histogram), in milliseconds.
"""

import json
import random
import socket
import subprocess
import sys
import time

WRITE, DISK = 64 << 10, 1 << 30
# In nanoseconds: four to a doubling, from 20 microseconds to 5 seconds.
BOUNDARIES = [int(20_000 * 2 ** (step / 4)) for step in range(73)]


class Monitor:
    def __init__(self, path):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(120)
        connection.connect(path)
        self.lines = connection.makefile("rw")
        self.lines.readline()
        self.run("qmp_capabilities")

    def run(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while line := self.lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                sys.exit(f"latency.py: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        sys.exit("latency.py: QEMU ended")

    def statistics(self, device):
        return next(found["stats"] for found in self.run("query-blockstats") if found.get("qdev") == device)


def main(path, device, words):
    monitor, numbers = Monitor(path), random.Random(1)
    monitor.run("block-latency-histogram-set", id=device, **{"boundaries-write": BOUNDARIES})
    before, end, command = monitor.statistics(device), None, None
    if words[0] == "--":
        command = subprocess.Popen(words[1:], stdout=subprocess.DEVNULL)
    else:
        end = time.monotonic() + float(words[0])
    while command.poll() is None if command else time.monotonic() < end:
        offset = numbers.randrange(DISK // WRITE) * WRITE
        line = f'qemu-io -d {device} "aio_write -q -P {numbers.randrange(1, 256)} {offset} {WRITE}"'
        monitor.run("human-monitor-command", **{"command-line": line})
        monitor.run("human-monitor-command", **{"command-line": f'qemu-io -d {device} "aio_flush"'})
    if command and command.returncode:
        sys.exit(f"latency.py: {words[1]} ended with {command.returncode}")
    after = monitor.statistics(device)
    writes = after["wr_operations"] - before["wr_operations"]
    mean = (after["wr_total_time_ns"] - before["wr_total_time_ns"]) / max(writes, 1)
    bins, below, limits = after["wr_latency_histogram"]["bins"], 0, []
    for limit, count in zip(BOUNDARIES + [float("inf")], bins):
        below += count
        limits += [limit] * (count > 0 and (below >= 0.99 * sum(bins) or below == sum(bins)))
    print(f"{writes} {mean / 1e6:.3f} {limits[0] / 1e6:.3f} {limits[-1] / 1e6:.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
