"""Faults of the network between NVMe/TCP hosts and their target: cuts, delays, splits at every
byte, flipped bits.

    python tests/torture/tcp_faults.py --faults 2000 --seed 1

Several hosts (controllers of one target) write and read through a proxy (tests/e2e/tcp_proxy.py)
that damages connection after connection. Each slot of the namespace has one writer, which writes a
number with a CRC and reads it back. Digests are on. A cut connection and a flipped bit are faults;
delays and splits are only reported. Checked:

    - no call ends with an error but Transient Transport Error, which is a wrong data digest: then
      it is made again. The hosts reconnect by themselves;
    - a block has what was acknowledged last, never older or damaged data;
    - no call hangs: one that takes more than --hang seconds must end once the network carries
      everything again. Such a call was delayed by faults alone, and is reported. Without faults it
      gets --patience seconds, which only a hang or a machine with no processor to spare takes: then
      all that is known is shown;
    - at the end all blocks have what was acknowledged last, read past the proxy.

The first failed check ends the run; `--seed S` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import faulthandler
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
SLOTS = 8
"""Of each host."""
BLOCKS = (1, 1, 8, 32, 64)
"""Of a slot, by its number."""
OPTIONS: nvme_async.DriverOptions = {
    "hdr_digest": True,
    "data_digest": True,
    "reconnect_delay": 0.05,
    "connect_timeout": 2.0,
    "command_timeout": 2.0,
    "abort_timeout": 0.2,
    "admin_timeout": 2.0,
    "open_timeout": 0,
    "retries": 100,
}


def block(slot: int, number: int, nbytes: int) -> bytes:
    """The data of write `number` to a slot: different from all others."""
    body = slot.to_bytes(8, "little") + number.to_bytes(8, "little")
    body += bytes((slot * 31 + number + at) & 0xFF for at in range(256)) * (nbytes // 256)
    return zlib.crc32(body[: nbytes - 4]).to_bytes(4, "little") + body[: nbytes - 4]


class Run(logging.Handler):
    """Attributes:
    said: what the driver logged last. acknowledged: the last number of each slot. begun: when each
        slot's current write and read began.
    """

    def __init__(self, faults: int, seed: int, hosts: int, proxy: Proxy) -> None:
        super().__init__()
        self.said: collections.deque[str] = collections.deque(maxlen=200)
        self.faults = faults
        self.proxy = proxy
        self.random = random.Random(seed)
        self.acknowledged = dict.fromkeys(range(hosts * SLOTS), 0)
        self.begun: dict[int, float] = {}
        self.calls = self.digest_errors = self.split = self.delayed = self.starved = 0
        self.longest = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.created:.3f} {record.getMessage()}")

    def made(self) -> int:
        return self.proxy.cuts + self.proxy.flips

    def mischief(self, number: int) -> Mischief:
        """Of one connection: sooner or later it is cut, and often something else happens before."""
        random = self.random
        made = Mischief(cut_after=random.choice([random.randrange(100, 10_000), random.randrange(10_000, 100_000)]))
        kind = random.randrange(4)
        if kind == 0:
            made.flip_after, made.flip = random.randrange(40_000), random.choice(["up", "down"])
            made.flip_every = random.randrange(2000, 40_000)
        elif kind == 1:
            made.piece = random.choice([1, 3, 7, 100])
            # Each piece costs a system call, so connections of single bytes are shorter.
            made.cut_after = random.randrange(100, 20_000 if made.piece < 100 else 100_000)
            self.split += 1
        elif kind == 2:
            made.piece, made.delay = 4096, 0.0005
            self.delayed += 1
        return made

    async def slot(self, controller: nvme_async.Controller, slot: int) -> None:
        namespace = controller.namespaces[1]
        nbytes = BLOCKS[slot % len(BLOCKS)] * namespace.block_size
        lba = slot * max(BLOCKS)
        buffer = bytearray(nbytes)
        number = 0
        while self.made() < self.faults:
            number += 1
            begin = self.begun[slot] = time.monotonic()
            data = block(slot, number, nbytes)
            await self.until_it_succeeds(lambda data=data: namespace.write(lba, data))  # type: ignore[misc]
            self.acknowledged[slot] = number
            await self.until_it_succeeds(lambda: namespace.readinto(lba, buffer))
            self.longest = max(self.longest, time.monotonic() - begin)
            self.calls += 2
            self.check(slot, buffer)
        del self.begun[slot]

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

    async def watch(self, hang: float, patience: float, controllers: list[nvme_async.Controller]) -> None:
        """A line every ten seconds. A call that takes long is given a network without faults, in
        which only one that hangs does not end.
        """
        printed = time.monotonic()
        while True:
            await asyncio.sleep(0.2)
            if time.monotonic() - printed >= 10:
                printed = time.monotonic()
                print(f"{self.made()} of {self.faults} faults, {self.calls} calls", flush=True)
            late = [slot for slot, begun in self.begun.items() if time.monotonic() - begun > hang]
            if late:
                await self.healed(late[0], patience, controllers[late[0] // SLOTS])

    async def healed(self, slot: int, patience: float, controller: nvme_async.Controller) -> None:
        begun = self.begun[slot]
        self.proxy.mischief = None
        self.proxy.cut_all()
        healed = time.monotonic()
        while self.begun.get(slot) == begun:
            if time.monotonic() - healed > patience:
                print("\n".join(self.said), f"{self.proxy.connections} connections", sep="\n", file=sys.stderr)
                faulthandler.dump_traceback()
                raise AssertionError(
                    f"slot {slot}: a write and read hang: {healed - begun:.0f} s with faults and {patience:g} s "
                    f"without have not ended them: {controller.inspect()}"
                )
            await asyncio.sleep(0.01)
        self.starved += 1
        print(
            f"slot {slot}: a write and read took {healed - begun:.1f} s with faults, and "
            f"{time.monotonic() - healed:.2f} s more without",
            flush=True,
        )
        self.proxy.mischief = self.mischief
        self.proxy.cut_all()


async def run(arguments: argparse.Namespace) -> None:
    """AssertionError is what it is for."""
    with EmulatedController(f"size={arguments.hosts}MiB,block=512") as target, contextlib.ExitStack() as opened:
        port = target.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        proxy = Proxy(("127.0.0.1", port))
        opened.callback(proxy.close)
        state = Run(arguments.faults, arguments.seed, arguments.hosts, proxy)
        log = logging.getLogger("nvme_async")
        log.propagate = False
        log.addHandler(state)
        log.setLevel(logging.INFO)
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            controllers = [
                await stack.enter_async_context(nvme_async.open(f"tcp:127.0.0.1:{proxy.port}/{NQN}", **OPTIONS))
                for _ in range(arguments.hosts)
            ]
            proxy.mischief = state.mischief
            proxy.cut_all()
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(state.watch(arguments.hang, arguments.patience, controllers))
                async with asyncio.TaskGroup() as slots:
                    for slot in state.acknowledged:
                        slots.create_task(state.slot(controllers[slot // SLOTS], slot))
                watch.cancel()
            proxy.mischief = None
            resets = sum(controller.resets for controller in controllers)
        async with nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}") as controller:
            namespace = controller.namespaces[1]
            for slot, number in state.acknowledged.items():
                if number:
                    state.check(slot, await namespace.read(slot * max(BLOCKS), BLOCKS[slot % len(BLOCKS)]))
    print(
        f"{proxy.cuts} cuts, {proxy.flips} flipped bits on {proxy.connections} connections ({state.split} in pieces of "
        f"1 to 100 bytes, {state.delayed} delayed), {resets} resets, {state.digest_errors} commands ended by a wrong "
        f"data digest, {state.calls} calls, the longest write and read {state.longest:.2f} s, {state.starved} ended "
        f"only on a network without faults; nothing lost, nothing hung; {time.monotonic() - began:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=8, help="controllers at once")
    parser.add_argument("--hang", type=float, default=30.0, help="seconds for a call, with faults")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for it then, without faults")
    arguments = parser.parse_args()
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
