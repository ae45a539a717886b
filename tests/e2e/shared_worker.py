"""A worker process for the tests of sharing: writes and reads its own blocks, and checks each byte.

    python shared_worker.py PATH SEED [OPTION=VALUE …]

It prints "ready", then from time to time a line "N" for N verified rounds, until it reads a line or
its input ends; then "done ROUNDS GAP", where GAP is the longest time between two completed rounds
in milliseconds. It prints an error as "wrong …" and exits with status 1.
"""

from __future__ import annotations

import asyncio
import sys
import time

import nvme_async

BLOCKS = 64


def block(seed: int, lba: int, version: int, size: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in (seed, lba, version, 0x5EED)) * (size // 32)


async def main(path: str, seed: int, options: dict[str, int | float]) -> int:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(0, lambda: ended.done() or ended.set_result(None))
    rounds, longest, began = 0, 0.0, time.monotonic()
    async with nvme_async.open(f"shared:{path}", **options) as controller:  # type: ignore[arg-type]
        namespace = controller.namespaces[1]
        size, first = namespace.block_size, seed * BLOCKS
        print("ready", flush=True)
        said = last = time.monotonic()
        while not ended.done():
            lbas = [first + (rounds * 7 + k) % BLOCKS for k in range(8)]
            await asyncio.gather(*(namespace.write(lba, block(seed, lba, rounds, size)) for lba in lbas))
            got = await asyncio.gather(*(namespace.read(lba) for lba in lbas))
            for lba, data in zip(lbas, got, strict=True):
                if data != block(seed, lba, rounds, size):
                    print(f"wrong: block {lba} in round {rounds}: {data[:32].hex()}", flush=True)
                    return 1
            rounds += 1
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            if now - said > 0.05:
                said = now
                print(rounds, flush=True)
        print(f"resets {controller.resets}", flush=True)
    print(f"done {rounds} {longest * 1000:.1f} {time.monotonic() - began:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    given = {name: float(value) for name, _, value in (argument.partition("=") for argument in sys.argv[3:])}
    sys.exit(
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), {n: int(v) if v == int(v) else v for n, v in given.items()}))
    )
