"""Management under load: formats, sanitizes, firmware, namespaces, self-tests and the write cache
in random order, while loads on several loops and in worker processes read and write.

    python tests/torture/management.py --operations 300 --seed 1

Between two operations, and in the middle of some, workers lose their connection to the owner; then
a command that they hold their I/O for may not be sent, and is repeated. Checked:

    - every read has what was written last, or zeroes after what erases; see verified_load.py;
    - requests fail with the announced errors alone, and those that are held go on;
    - the controller is not reset, except for firmware, and never lost.

The first failed check ends the run; `--seed S` repeats it. By hand: not part of `make torture`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from driving import FAST
from management_walk import ADDRESS, OPERATIONS, Walk, settled, walking

import nvme_async


async def cut_sometimes(walk: Walk, numbers: random.Random, cuts: Counter[str]) -> None:
    if numbers.random() < 0.5:
        await asyncio.sleep(numbers.random() * 0.1)
        await walk.cut()
        cuts["cut"] += 1


async def run(options: argparse.Namespace) -> None:
    numbers = random.Random(options.seed)
    counts: Counter[str] = Counter()
    cuts: Counter[str] = Counter()
    verified = refused = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nvme-async-torture-") as folder:
        path = Path(folder) / "shared"
        async with contextlib.AsyncExitStack() as stack:
            controller = await stack.enter_async_context(nvme_async.open(ADDRESS, **FAST))
            await stack.enter_async_context(controller.share(path))
            walk = await stack.enter_async_context(
                walking(controller, path, loops=options.loops, workers=options.workers)
            )
            resets = controller.resets
            for _ in range(options.operations):
                operation = numbers.choice(OPERATIONS)
                await asyncio.gather(getattr(walk, operation)(), cut_sometimes(walk, numbers, cuts))
                await walk.progress()
                await settled(controller)
                counts[operation] += 1
                assert controller.resets == resets + counts["firmware_at_a_reset"], f"a reset during {operation}"
            verified = await walk.verified()
            refused = walk.refused
    print(
        f"{sum(counts.values())} operations ({', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}) in "
        f"{time.monotonic() - began:.0f} s; {verified} blocks verified; "
        f"connections cut {cuts['cut']} times, and {refused} commands not sent for that"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operations", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--loops", type=int, default=2, help="beside the first (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"seed {options.seed}", flush=True)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
