"""Speed of protection information in C: generation and check of 4 KiB blocks, compared with memcpy
of the same data.

    python benchmarks/protection.py [--seconds 1]

Alternating rounds, one thread; the data (8 MiB) are larger than the second-level cache. A figure is
worth something only on a quiet machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from nvme_async.native import _pi

SIZE, BLOCKS = 4096, 2048
NBYTES = SIZE * BLOCKS


def once(work: Callable[[], object]) -> float:
    """Bytes per second."""
    began = time.perf_counter()
    work()
    return NBYTES / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each guard")
    options = parser.parse_args()
    data, copy = bytearray(random.Random(1).randbytes(NBYTES)), bytearray(NBYTES)
    source, target = memoryview(data), memoryview(copy)

    def memcpy() -> None:
        target[:] = source

    for guard in (16, 32, 64):
        form = _pi.PiFormat(SIZE, 16, 1, guard=guard)
        meta = bytearray(16 * BLOCKS)

        def generate(form: _pi.PiFormat = form, meta: bytearray = meta) -> None:
            form.generate(data, meta)

        def check(form: _pi.PiFormat = form, meta: bytearray = meta) -> None:
            if form.check(data, meta) is not None:
                raise SystemExit("the check fails")

        figures: dict[str, list[float]] = {"memcpy": [], "generate": [], "check": []}
        generate()
        until = time.monotonic() + options.seconds
        while time.monotonic() < until:
            for name, work in (("memcpy", memcpy), ("generate", generate), ("check", check)):
                figures[name].append(once(work))
        median = {name: statistics.median(values) for name, values in figures.items()}
        both = 1 / (1 / median["generate"] + 1 / median["check"])
        speed = {name: f"{value / 2**30:.1f} GiB/s" for name, value in median.items()}
        print(
            f"{guard}-bit guard: generate {speed['generate']}, check {speed['check']}; memcpy {speed['memcpy']}, "
            f"of which both together are {both / median['memcpy']:.2f}"
        )


if __name__ == "__main__":
    main()
