"""Faults of the network between an NVMe/TCP host and its target: cuts, delays, splits at every
byte, flipped bits.

    python tests/torture/tcp_faults.py --faults 2000 --seed 1

Writers and readers go on through a proxy (tests/e2e/tcp_proxy.py) that damages connection after
connection. Each slot of the namespace has one writer, which writes a number with a CRC and reads it
back. Digests are on. Checked:

    - every call ends within --hang seconds, and none with an error but Transient Transport Error,
      which is a wrong data digest: then it is made again. The host reconnects by itself;
    - a block has what was acknowledged last, never older or damaged data;
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
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from tcp_proxy import Mischief, Proxy

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import CommandError

NQN = "nqn.2024-01.io.example:torture"
DIGEST_ERROR = 0x22
SLOTS = 16
BLOCKS = (1, 1, 8, 32, 64)  # of a slot, by its number


def block(slot: int, number: int, nbytes: int) -> bytes:
    """The data of write `number` to a slot: different from all others."""
    body = slot.to_bytes(8, "little") + number.to_bytes(8, "little")
    body += bytes((slot * 31 + number + at) & 0xFF for at in range(256)) * (nbytes // 256)
    return zlib.crc32(body[: nbytes - 4]).to_bytes(4, "little") + body[: nbytes - 4]


class Run:
    """faults: how many are wanted. acknowledged: the last number of each slot."""

    def __init__(self, faults: int, seed: int, hang: float) -> None:
        self.faults = faults
        self.hang = hang
        self.random = random.Random(seed)
        self.acknowledged = dict.fromkeys(range(SLOTS), 0)
        self.calls = self.digest_errors = 0
        self.longest = 0.0

    def mischief(self, number: int) -> Mischief:
        """Of one connection: sooner or later it is cut, and often something else happens before."""
        random = self.random
        made = Mischief(cut_after=random.choice([random.randrange(100, 10_000), random.randrange(10_000, 300_000)]))
        kind = random.randrange(4)
        if kind == 0:
            made.flip_after, made.flip = random.randrange(40_000), random.choice(["up", "down"])
        elif kind == 1:
            made.piece = random.choice([1, 3, 7, 100])
        elif kind == 2:
            made.piece, made.delay = 4096, 0.0005
        return made

    async def slot(self, controller: nvme_async.Controller, slot: int, proxy: Proxy) -> None:
        namespace = controller.namespaces[1]
        nbytes = BLOCKS[slot % len(BLOCKS)] * namespace.block_size
        lba = slot * max(BLOCKS)
        buffer = bytearray(nbytes)
        number = 0
        while proxy.cuts + proxy.flips < self.faults:
            number += 1
            begin = time.monotonic()
            connections, resets = proxy.connections, controller.resets
            data = block(slot, number, nbytes)
            try:
                async with asyncio.timeout(self.hang) as timer:
                    await self.until_it_succeeds(lambda data=data: namespace.write(lba, data))  # type: ignore[misc]
                    self.acknowledged[slot] = number
                    await self.until_it_succeeds(lambda: namespace.readinto(lba, buffer))
            except TimeoutError:
                if not timer.expired():
                    raise
                raise AssertionError(
                    f"slot {slot}: write and read {number} have not ended within {self.hang:g} s, in which there were "
                    f"{proxy.connections - connections} connections and {controller.resets - resets} resets: "
                    f"{controller.inspect()}"
                ) from None
            self.longest = max(self.longest, time.monotonic() - begin)
            self.calls += 2
            self.check(slot, buffer)

    async def until_it_succeeds(self, call: Callable[[], Awaitable[object]]) -> None:
        """Again and again while its data come with a wrong digest."""
        while True:
            try:
                await call()
                return
            except CommandError as error:
                if error.status != DIGEST_ERROR:
                    raise
                self.digest_errors += 1

    def check(self, slot: int, found: bytes | bytearray) -> None:
        wanted = block(slot, self.acknowledged[slot], len(found))
        if found != wanted:
            number = int.from_bytes(found[12:20], "little")
            raise AssertionError(
                f"slot {slot}: write {self.acknowledged[slot]} is acknowledged, write {number} is there"
            )


async def run(arguments: argparse.Namespace) -> None:
    """ASSERTION errors are what it is for."""
    state = Run(arguments.faults, arguments.seed, arguments.hang)
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
                await watched(state, controller, proxy)
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
        f"{state.digest_errors} commands ended by a wrong data digest, {state.calls} calls, the longest write and read "
        f"{state.longest:.2f} s; nothing lost"
    )


async def watched(state: Run, controller: nvme_async.Controller, proxy: Proxy) -> None:
    """Runs all slots; a line every ten seconds."""
    tasks = [asyncio.create_task(state.slot(controller, slot, proxy)) for slot in range(SLOTS)]
    while True:
        done, left = await asyncio.wait(tasks, timeout=10, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in done if task.exception() is not None]
        if failed:
            for task in left:
                task.cancel()
            await asyncio.wait(tasks)
            failed[0].result()
        if not left:
            return
        print(f"{proxy.cuts + proxy.flips} of {state.faults} faults, {state.calls} calls", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hang", type=float, default=30.0, help="seconds; more on a machine that has other work")
    arguments = parser.parse_args()
    logging.getLogger("nvme_async").setLevel(logging.CRITICAL)
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
