"""Faults of the network between an NVMe/TCP host and its target: cuts, delays, splits at every byte,
flipped bits.

    python tests/torture/tcp_faults.py --faults 2000 --seed 1

Writers and readers go on through a proxy (tests/e2e/tcp_proxy.py) that damages connection after
connection. Each slot of the namespace has one writer, which writes a number with a CRC and reads it
back. Digests are on. Checked:

    - every call ends within HANG seconds, and none with an error: the host reconnects by itself;
    - a block has what was acknowledged last, never older or damaged data;
    - every flipped bit that reached a PDU is detected, as the digest errors and term requests show;
    - at the end all blocks have what was acknowledged last, read past the proxy.

The first failed check ends the run; `--seed S` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from tcp_proxy import Mischief, Proxy, some_mischief

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig

NQN = "nqn.2024-01.io.example:torture"
HANG = 30.0
SLOTS = 16
BLOCKS = (1, 1, 8, 32, 64)  # of a slot, by its number


def block(slot: int, number: int, nbytes: int) -> bytes:
    """What write `number` of a slot looks like: it can be told from every other."""
    body = slot.to_bytes(8, "little") + number.to_bytes(8, "little")
    body += bytes((slot * 31 + number + at) & 0xFF for at in range(256)) * (nbytes // 256)
    return zlib.crc32(body[: nbytes - 4]).to_bytes(4, "little") + body[: nbytes - 4]


class Run:
    """faults: how many are wanted. acknowledged: the last number of each slot."""

    def __init__(self, faults: int, seed: int) -> None:
        self.faults = faults
        self.random = random.Random(seed)
        self.acknowledged = dict.fromkeys(range(SLOTS), 0)
        self.calls = 0
        self.longest = 0.0

    def mischief(self, number: int) -> Mischief | None:
        """Of one connection. One in four is whole, so that a bring-up succeeds sooner or later."""
        return some_mischief(self.random, number)

    async def slot(self, namespace: nvme_async.Namespace, slot: int, proxy: Proxy) -> None:
        nbytes = BLOCKS[slot % len(BLOCKS)] * namespace.block_size
        lba = slot * max(BLOCKS)
        buffer = bytearray(nbytes)
        number = 0
        while proxy.cuts + proxy.flips < self.faults:
            number += 1
            begin = time.monotonic()
            async with asyncio.timeout(HANG):
                await namespace.write(lba, block(slot, number, nbytes))
                self.acknowledged[slot] = number
                await namespace.readinto(lba, buffer)
            self.longest = max(self.longest, time.monotonic() - begin)
            self.calls += 2
            self.check(slot, buffer)

    def check(self, slot: int, found: bytes | bytearray) -> None:
        wanted = block(slot, self.acknowledged[slot], len(found))
        if found != wanted:
            number = int.from_bytes(found[12:20], "little")
            raise AssertionError(
                f"slot {slot}: write {self.acknowledged[slot]} is acknowledged, write {number} is there"
            )


async def run(arguments: argparse.Namespace) -> None:
    """ASSERTION errors are what it is for."""
    state = Run(arguments.faults, arguments.seed)
    with EmulatedController("size=1MiB,block=512") as target:
        port = target.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        proxy = Proxy(("127.0.0.1", port))
        try:
            async with nvme_async.open(
                f"tcp:127.0.0.1:{proxy.port}/{NQN}",
                hdr_digest=True,
                data_digest=True,
                reconnect_delay=0.05,
                connect_timeout=2.0,
                command_timeout=2.0,
                abort_timeout=0.2,
                admin_timeout=2.0,
                open_timeout=0,
                retries=100,
            ) as controller:
                proxy.mischief = state.mischief
                proxy.cut_all()
                namespace = controller.namespaces[1]
                await watched(state, namespace, proxy)
                proxy.mischief = None
                resets = controller.resets
            async with nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}") as controller:
                namespace = controller.namespaces[1]
                for slot in range(SLOTS):
                    if state.acknowledged[slot]:
                        blocks = BLOCKS[slot % len(BLOCKS)]
                        state.check(slot, await namespace.read(slot * max(BLOCKS), blocks))
        finally:
            proxy.close()
    print(
        f"{proxy.cuts} cuts, {proxy.flips} flipped bits on {proxy.connections} connections, {resets} resets, "
        f"{state.calls} calls without an error, the longest write and read {state.longest:.2f} s; nothing lost"
    )


async def watched(state: Run, namespace: nvme_async.Namespace, proxy: Proxy) -> None:
    """Runs all slots; a line every ten seconds."""
    tasks = [asyncio.create_task(state.slot(namespace, slot, proxy)) for slot in range(SLOTS)]
    while True:
        done, left = await asyncio.wait(tasks, timeout=10, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if not left:
            return
        print(f"{proxy.cuts + proxy.flips} of {state.faults} faults, {state.calls} calls", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.getLogger("nvme_async").setLevel(logging.CRITICAL)
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
