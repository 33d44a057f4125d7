"""What more processors would do: a simulation of full backups with the costs that this run has measured.

    scaling_model.py MACHINES MIB START START_CPU FULL_CPU QEMU_CPU

MACHINES machines with MIB MiB of data each. A backup of all of them, one after the other, of which nothing changed took
START seconds, START_CPU of them of processor time; the full one took FULL_CPU, and QEMU_CPU in QEMU.

Of each machine, QEMU reads one chunk after the other, as far as there is room for it (8 MiB), and the threads of kvmb take
them: hash, compress, encrypt, store. Who has work shares the processors evenly, nobody has more than one. Chunks cost
between 0.3 and 1.7 of their mean. The disk and the repository have no limit.
"""

import random
import sys

ROOM_CHUNKS = 8


def simulate(processors, machines, chunks, threads, read_cost, store_cost):
    """Seconds until all chunks of all machines are stored, when all machines begin at the same time."""
    cost = random.Random(1)
    to_read = [chunks] * machines
    read = [0] * machines
    # What is being worked on: who (machine, whether it reads), and the processor time that is missing.
    tasks = []
    now = 0.0
    while True:
        for machine in range(machines):
            storing = sum(1 for task in tasks if task[0] == machine and not task[1])
            reading = any(task[0] == machine and task[1] for task in tasks)
            while read[machine] and storing < threads:
                read[machine] -= 1
                storing += 1
                tasks.append([machine, False, store_cost * cost.uniform(0.3, 1.7)])
            if to_read[machine] and not reading and read[machine] < ROOM_CHUNKS:
                to_read[machine] -= 1
                tasks.append([machine, True, read_cost * cost.uniform(0.3, 1.7)])
        if not tasks:
            return now
        speed = min(1.0, processors / len(tasks))
        step = min(task[2] for task in tasks)
        now += step / speed
        for task in tasks:
            task[2] -= step
        for machine, reads, _ in (task for task in tasks if task[2] <= 1e-12):
            read[machine] += reads
        tasks = [task for task in tasks if task[2] > 1e-12]


def main():
    machines, mib = int(sys.argv[1]), int(sys.argv[2])
    start, start_cpu, full_cpu, qemu_cpu = map(float, sys.argv[3:])
    read_cost = qemu_cpu / machines / mib
    store_cost = (full_cpu - start_cpu) / machines / mib
    print(f"\nSimulated: QEMU needs {read_cost * 1000:.2f} ms for a MiB, kvmb {store_cost * 1000:.2f} ms")
    print(f"\n{'processors':>10} {'threads':>8} {'one after the other':>20} {'--jobs 8':>10}   s")
    for processors in 1, 2, 4, 8, 16:
        threads = min(max(processors, 2), 8)
        times = [simulate(processors, at_once, mib, threads, read_cost, store_cost) for at_once in (1, machines)]
        print(f"{processors:10} {threads:8} {start + machines * times[0]:20.1f} {start / machines + times[1]:10.1f}")


main()
