"""Blocks with a flipped bit in their data or protection information, each read back by this driver:
all must be caught, with the right error, tag and LBA.

    python tests/torture/corrupted_blocks.py --blocks 100000

Each is written as it is (no checks), then read within a longer request: checked by the controller
or by this process in turn. Guards of 16, 32 and 64 bits in turn, types 1 and 2.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter

import nvme_async
from nvme_async import Protect
from nvme_async.driver.protection import Check
from nvme_async.errors import ApplicationTagError, GuardError, PiError, ReferenceTagError

SIZE, EXTRA, SPAN, APP_TAG = 512, 16, 16, 0x1234
GROUPS = 16
"""At once, each in blocks of its own; fewer than the error log has entries."""
GUARDS = (16, 32, 64)
ALL = Check.GUARD | Check.APPLICATION_TAG | Check.REFERENCE_TAG
RAW = Protect(by="none", checks=Check(0))
HOW = (Protect(by="host", app_tag=APP_TAG, checks=ALL), Protect(by="controller", app_tag=APP_TAG, checks=ALL))


async def corrupt(ns: nvme_async.Namespace, base: int, blocks: int, guard: int, rng: random.Random) -> Counter[str]:
    """In the SPAN blocks from `base` on."""
    found = Counter[str]()
    first, reference = EXTRA - {16: 8, 32: 16, 64: 16}[guard], {16: 4, 32: 4, 64: 6}[guard]
    fields = {  # error: where it lies in the metadata
        "guard": (GuardError, first, guard // 8),
        "application tag": (ApplicationTagError, first + guard // 8, 2),
        "reference tag": (ReferenceTagError, EXTRA - reference, reference),
    }
    data, meta = rng.randbytes(SIZE * SPAN), bytearray(rng.randbytes(EXTRA * SPAN))
    await ns.write(base, data, metadata=meta, protect=HOW[0])
    await ns.read(base, SPAN, metadata=meta, protect=RAW)
    for number in range(blocks):
        at = rng.randrange(SPAN)
        kind = rng.choice(("data", *fields))
        block, tags = bytearray(data[at * SIZE :][:SIZE]), bytearray(meta[at * EXTRA :][:EXTRA])
        error, start, length = fields["guard" if kind == "data" else kind]
        if kind == "data":
            block[rng.randrange(SIZE)] ^= 1 << rng.randrange(8)
        else:
            tags[start + rng.randrange(length)] ^= 1 << rng.randrange(8)
        await ns.write(base + at, block, metadata=tags, protect=RAW)
        how = HOW[number % 2]
        try:
            await ns.read(base, SPAN, protect=how)
        except PiError as caught:
            if type(caught) is not error or caught.block != base + at:
                raise SystemExit(f"{guard} bits, {kind} of block {base + at}, by {how.by}: {caught!r}") from None
            found[f"{kind}, by {how.by}"] += 1
        else:
            raise SystemExit(f"{guard} bits, {kind} of block {base + at}, by {how.by}: not noticed")
        await ns.write(base + at, data[at * SIZE :][:SIZE], metadata=meta[at * EXTRA :][:EXTRA], protect=RAW)
    await ns.read(base, SPAN, protect=HOW[1])
    return found


async def run(blocks: int, seed: int) -> Counter[str]:
    found = Counter[str]()
    ways = [(guard, pi) for guard in GUARDS for pi in (1, 2)]
    parts = len(ways) * GROUPS
    shares = [(blocks + parts - 1 - number) // parts for number in range(parts)]
    for number, (guard, pi) in enumerate(ways):
        uri = f"emulated:size=16MiB,formats=512+16g{guard},block=512,metadata=16,guard={guard},pi={pi}"
        async with nvme_async.open(uri) as controller:
            ns = controller.namespaces[1]
            work = [
                corrupt(ns, 1000 + group * SPAN, share, guard, random.Random(f"{seed} {number} {group}"))
                for group, share in enumerate(shares[number :: len(ways)])
            ]
            for counted in await asyncio.gather(*work):
                found += counted
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    found = asyncio.run(run(options.blocks, options.seed))
    for kind, count in sorted(found.items()):
        print(f"{count:8} {kind}")
    print(f"{found.total():8} corrupted blocks, all caught at their LBA, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
