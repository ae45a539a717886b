"""One and two flipped bits all over the pool of a controller with commands in flight.

    python tests/torture/bitflips.py --flips 2000

Between save() and restore() bits are flipped in trackers, queue headers, PRP lists, submission
ring, the pool's header and slot table, and the manifest. A restore either refuses, with
RestoreRefused and nothing changed, or continues: then every command in flight must come back
unchanged, with its own data; memory that was allocated meanwhile must stay unchanged; and every
block must read as it was written. Some restores use policy="fresh", which brings the controller up
if a live restore is refused. Anything else is a failure: wrong data, an exception of another kind,
a lost result.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import mmap
import os
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.faults import FOREVER
from nvme_async.errors import HandedOver, OutOfDmaMemory, RestoreRefused
from nvme_async.keepalive import Bundle, restore
from nvme_async.native._dma import Pool
from nvme_async.spec import commands

BLOCK = 4096
BLOCKS = 256
WRITES = {40: 3, 60: 1, 70: 20}
"""LBA → blocks of the writes in flight."""
HEADER, PAGE = 64, 4096
WEIGHTS = {
    "trackers": 40,
    "free trackers": 6,
    "queue headers": 10,
    "lists": 8,
    "ring": 4,
    "slots": 14,
    "pool header": 8,
    "manifest": 10,
}


class Wrong(Exception):
    """A check failed."""


def block(lba: int, generation: int = 0) -> bytes:
    return struct.pack("<II", lba, generation) * (BLOCK // 8)


def blocks(lba: int, count: int, generation: int = 0) -> bytes:
    return b"".join(block(lba + i, generation) for i in range(count))


class Scene:
    """A controller that was saved with commands in flight; `bundle` is what it left."""

    def __init__(self) -> None:
        self.sent: dict[int, tuple[int, int, int, bool]] = {}  # tag → opcode, lba, blocks, brings data

    async def make(self) -> Scene:
        # No shadow doorbells: the controller writes to them, but here the image is restored
        # repeatedly.
        self.folder = tempfile.TemporaryDirectory()
        self.emulator = EmulatedController("size=16MiB,dbbuf=off")
        self.emulator.listen(f"{self.folder.name}/device")
        controller = await nvme_async.open(
            f"vfio-user:{self.folder.name}/device",
            keepalive=True,
            pool_pages=1024,
            queue_entries=16,
            keeper="none",
            hugepages="never",  # bits are flipped with pwrite(), which hugetlbfs doesn't have
        )
        namespace = controller.namespaces[1]
        for lba in range(0, BLOCKS, 32):
            await namespace.write(lba, blocks(lba, 32))
        kept = controller.alloc(4 * BLOCK, tag=1)
        for size in (3, 1):  # slots that were freed
            controller.alloc(size * BLOCK).free()
        memory = os.memfd_create("registered")
        os.ftruncate(memory, 4 * BLOCK)
        self.registered = mmap.mmap(memory, 4 * BLOCK)
        os.close(memory)
        registration = controller.register(self.registered)
        held = self.emulator.faults.add(queue="io", delay=FOREVER, count=5)
        tasks = []

        def send(tag: int, opcode: int, lba: int, count: int, buffer: Any = None) -> None:
            self.sent[tag] = (opcode, lba, count, opcode == 2 and buffer is not registered_part)
            command = (commands.read if opcode == 2 else commands.write)(1, lba, count)
            tasks.append(asyncio.ensure_future(namespace.submit(command, buffer, tag=tag)))

        registered_part = memoryview(self.registered)[512 : 512 + 2 * BLOCK]
        # Their ring entries are overwritten before the save …
        send(0x8000_0000_0000_0101, 2, 5, 1)
        send(0x102, 1, 40, 3, blocks(40, 3, 1))
        send(0x103, 2, 8, 4, kept)
        send(0x104, 2, 12, 2, registered_part)
        send(0x105, 2, 90, 5)
        await asyncio.sleep(0)
        await asyncio.to_thread(held.wait, 5)
        for lba in range(20):
            await namespace.read(lba)
        # … and these still stand.
        held = self.emulator.faults.add(queue="io", delay=FOREVER)
        send(0x106, 2, 20, 16)
        send(0x107, 1, 60, 1, block(60, 1))
        send(0x108, 2, 30, 2)
        send(0x109, 1, 70, 20, blocks(70, 20, 1))
        await asyncio.sleep(0)
        await asyncio.to_thread(held.wait, 4)
        held.remove()
        tasks.pop(6).cancel()  # an orphan
        await asyncio.sleep(0)
        self.bundle: Bundle = await controller.save()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(result, HandedOver):
                raise Wrong(f"a command in flight ended with {result!r} at the save")
        registration.close()
        self.fd = self.bundle.descriptors["pool"]
        self.image = os.pread(self.fd, os.fstat(self.fd).st_size, 0)
        self._explore()
        return self

    def _explore(self) -> None:
        """The structures' places, as (offset, bytes) by kind."""
        image = self.image
        self.places: dict[str, list[tuple[int, int]]] = {kind: [] for kind in WEIGHTS}
        self.places["pool header"].append((0, 128))
        (table,) = struct.unpack_from("<Q", image, 32)
        (high_water,) = struct.unpack_from("<Q", image, 64)
        self.places["slots"] += [
            (at, 64) for at in range(table, table + 64 * high_water, 64) if any(image[at : at + 64])
        ]
        with Pool.attach(self.fd) as pool:
            slots = pool.slots()
            pool.detach()
        for slot in slots:
            if slot.owner == "manifest":
                for at in (slot.offset, slot.offset + slot.nbytes // 2):
                    (length,) = struct.unpack_from("<Q", image, at + 24)
                    self.places["manifest"].append((at, HEADER + length))
            if slot.owner.startswith("queue "):
                base = slot.offset
                self.places["queue headers"].append((base, 192))
                entries, n_trackers = struct.unpack_from("<II", image, base + 12)
                sq, _, trackers, lists = struct.unpack_from("<4Q", image, base + 24)
                (list_bytes,) = struct.unpack_from("<I", image, base + 56)
                for i in range(n_trackers):
                    at = base + trackers + 128 * i
                    state, _, _, position = struct.unpack_from("<IHHQ", image, at + 64)
                    self.places["trackers" if state else "free trackers"].append((at, 128))
                    if state:
                        self.places["lists"].append((base + lists + list_bytes * i, 64))
                        self.places["ring"].append((base + sq + 64 * (position % entries), 64))

    def close(self) -> None:
        self.bundle.close()
        self.emulator.close()
        self.folder.cleanup()


def damage(scene: Scene, chance: random.Random) -> tuple[str, list[int]]:
    """(kind, bits) to flip: one bit, or two bits of one structure, of one kind, or of any
    two.
    """
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())

    def one(kind: str, place: tuple[int, int] | None = None) -> tuple[int, tuple[int, int]]:
        at, nbytes = place or chance.choice(scene.places[kind])
        return 8 * at + chance.randrange(8 * nbytes), (at, nbytes)

    kind = chance.choices(kinds, weights)[0]
    bit, place = one(kind)
    bits = [bit]
    if chance.random() < 0.5:
        how = chance.randrange(3)
        other = chance.choices(kinds, weights)[0] if how == 2 else kind
        bits.append(one(other, place if how == 0 else None)[0])
        kind = kind if other == kind else f"{kind} + {other}"
    return kind, sorted(set(bits))


async def check(controller: nvme_async.Controller, scene: Scene, *, live: bool) -> None:
    """The restored controller, with its predecessor's commands still in flight if `live`."""
    canaries = []
    pattern = b"\x5a" * BLOCK
    try:
        while len(canaries) < 600:
            canaries.append(controller.alloc(BLOCK))
            canaries[-1][:] = pattern
    except OutOfDmaMemory:
        pass
    scene.emulator.faults.release()
    if live:
        found = {}
        async with asyncio.timeout(20):
            async for command in controller.adopted:
                if command.tag in found:
                    raise Wrong(f"two results for tag {command.tag:#x}")
                found[command.tag] = command
        if found.keys() != scene.sent.keys():
            raise Wrong(f"results for {sorted(map(hex, found))} instead of {sorted(map(hex, scene.sent))}")
        for tag, (opcode, lba, count, brings) in scene.sent.items():
            command = found[tag]
            if (command.opcode, command.nsid, command.lba, command.blocks, command.sent) != (
                opcode,
                1,
                lba,
                count,
                True,
            ):
                raise Wrong(f"{command!r} instead of tag {tag:#x}, opcode {opcode}, lba {lba}+{count}")
            if command.error is not None or command.status != 0 or command.orphan != (tag == 0x107):
                raise Wrong(f"{command!r}: status {command.status}, error {command.error!r}, orphan {command.orphan}")
            if command.data != (blocks(lba, count) if brings else None):
                raise Wrong(f"{command!r} brought wrong data")
    del controller.adopted._commands[:]  # their data are a good part of the pool's size
    if any(bytes(canary) != pattern for canary in canaries):
        raise Wrong("memory that was allocated while commands were out was overwritten")
    canaries.clear()
    namespace = controller.namespaces[1]
    for lba in range(BLOCKS):
        writes = [start for start, count in WRITES.items() if start <= lba < start + count]
        right = {block(lba, 1)} if writes and live else {block(lba), block(lba, 1)} if writes else {block(lba)}
        got = await namespace.read(lba)
        if got not in right:
            raise Wrong(f"block {lba} reads {got[:8].hex()}…")
    await namespace.write(200, block(200))
    await controller.validate_restore() if live else None


async def attempt(scene: Scene, bits: list[int], *, fresh: bool) -> bool:
    """True: refused, and nothing has changed. False: it was taken over, checked, and closed."""
    for bit in bits:
        at = bit // 8
        os.pwrite(scene.fd, bytes([os.pread(scene.fd, 1, at)[0] ^ 1 << bit % 8]), at)
    before = os.pread(scene.fd, len(scene.image), 0)
    scene.emulator.faults.clear()
    try:
        controller = await restore(scene.bundle, policy="fresh" if fresh else "refuse")
    except RestoreRefused:
        if os.pread(scene.fd, len(scene.image), 0) != before:
            raise Wrong("a refused restore changed the pool") from None
        if scene.emulator.faults.counters()["disables"]:
            raise Wrong("a refused restore reset the controller") from None
        os.pwrite(scene.fd, scene.image, 0)
        return True
    try:
        live = scene.emulator.faults.counters()["disables"] == 0
        await check(controller, scene, live=live)
    finally:
        await controller.close()
    return False


async def flip(flips: int, seed: int) -> Counter[str]:
    """The outcomes of the attempts. Raises Wrong, or any other exception, with a note that names
    the bits.
    """
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    scene: Scene | None = None
    try:
        for number in range(flips):
            scene = scene or await Scene().make()
            kind, bits = damage(scene, chance)
            fresh = chance.random() < 0.05
            try:
                refused = await attempt(scene, bits, fresh=fresh)
            except BaseException as error:
                places = [f"{bit // 8:#x} bit {bit % 8}" for bit in bits]
                error.add_note(f"flip {number} of seed {seed}: {kind}, {places}, fresh={fresh}")
                raise
            outcomes["refused" if refused else "harmless" if not fresh else "harmless or afresh"] += 1
            outcomes[f"{len(bits)} bit{'s' if len(bits) > 1 else ''}"] += 1
            if not refused:
                scene.close()
                scene = None
    finally:
        if scene is not None:
            scene.close()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="of a run to repeat; by default a new one")
    options = parser.parse_args()
    logging.getLogger("nvme_async").setLevel(logging.CRITICAL)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    began = time.monotonic()
    outcomes = asyncio.run(flip(options.flips, seed))
    print(f"seed {seed}: {dict(outcomes)}; 0 wrong data, 0 foreign exceptions; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
