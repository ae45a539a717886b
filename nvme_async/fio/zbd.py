"""zonemode=zbd: I/O on a zoned namespace, as in fio. Writes go to the write pointer of their zone,
reads to what was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.errors import ConfigurationError
from nvme_async.fio.options import Options
from nvme_async.fio.plan import Region, block_sizes, used_directions
from nvme_async.native._fio import READ, WRITE, Slot
from nvme_async.spec.zns import ZoneDescriptor, ZoneState

_OPEN = (ZoneState.IMPLICITLY_OPENED, ZoneState.EXPLICITLY_OPENED, ZoneState.CLOSED)
_UNUSABLE = (ZoneState.OFFLINE, ZoneState.READ_ONLY)


@attrs.define(eq=False)
class Zone:
    """One zone of the job's region. Bytes; `written` is its write pointer as this job knows it."""

    start: int
    end: int  # of its capacity
    written: int
    writable: bool
    full: bool = False  # before its capacity was written
    turn: asyncio.Lock = attrs.Factory(asyncio.Lock)  # one write at a time goes to a write pointer
    readers: int = 0
    idle: asyncio.Event = attrs.Factory(asyncio.Event)  # set while nothing reads it

    def __attrs_post_init__(self) -> None:
        self.idle.set()

    @property
    def left(self) -> int:
        return 0 if self.full else self.end - self.written


class Zones:
    """The zones that one job uses of one namespace. Belongs to the job's event loop.

    Attributes:
        resets: zones that were reset. on_reset(start, nbytes): called before that, for each.
        limit: zones that are written at the same time; 0: any number.
    """

    def __init__(self, options: Options, region: Region, namespace: ZonedNamespace, limit: int) -> None:
        self.limit, self.resets = limit, 0
        self.on_reset: Callable[[int, int], None] = lambda start, nbytes: None
        self._options, self._region, self._namespace = options, region, namespace
        self._block: int = namespace.namespace.block_size
        self._size: int = namespace.zone_size * self._block
        given = block_sizes(options)
        self._smallest = min(size for direction in used_directions(options) for size, _ in given[direction])
        self._write_nbytes = given[WRITE][0][0]
        self._zones: list[Zone] = []
        self._open: list[Zone] = []
        self._at = [0, 0]  # the next zone of a sequential job, by direction
        self._read_from = 0  # and where in it
        self._once = not options.time_based and not options.io_size and not options.rw.random
        self._begun = False  # the sequential job has written to the zone that it is at
        self._line = asyncio.Lock()  # of a sequential job's writes
        self._held: dict[Slot, Zone] = {}

    @classmethod
    async def of(cls, options: Options, region: Region, namespace: Any, writers: int) -> Zones:
        """Reads the zones of the region; a verifying job resets them first. writers: jobs that
        share the limits of the device. ConfigurationError if the options don't fit them.
        """

        def refuse(condition: object, message: str) -> None:
            if condition:
                raise ConfigurationError(f"job {options.name!r}: {message}")

        refuse(not hasattr(namespace, "controller"), "zonemode=zbd needs a job's devices to be of one controller")
        zoned = await ZonedNamespace.of(namespace)
        size = zoned.zone_size * namespace.block_size
        refuse(options.zonesize not in (0, size), f"zonesize={options.zonesize}, but the zones have {size} bytes")
        refuse(region.start % size, f"offset {region.start} is not a multiple of the zone size, {size}")
        for direction in used_directions(options):
            for bs, _ in block_sizes(options)[direction]:
                refuse(size % bs, f"the zone size, {size}, is not a multiple of bs={bs}")
        most = options.max_open_zones or zoned.max_open or 0
        refuse(zoned.max_open and most > zoned.max_open, f"max_open_zones={most} is over the device's {zoned.max_open}")
        limits = [max(1, most // writers)] if most else []
        limits += [options.job_max_open_zones] if options.job_max_open_zones else []
        self = cls(options, region, zoned, min(limits, default=0))
        await self._read()
        refuse(not self._zones, f"size {region.length} is less than a zone of {size} bytes")
        return self

    async def _read(self) -> None:
        end = self._region.start + self._region.length
        async for found in self._namespace.zones(self._region.start // self._block):
            if found.zslba * self._block + self._size > end:
                break
            self._add(found)
        if self._options.verify != "none" and self._options.rw.writes:
            for zone in self._zones:
                if zone.written > zone.start and zone.writable:
                    await self._reset(zone)
            self._open.clear()

    def _add(self, found: ZoneDescriptor) -> None:
        start, capacity = found.zslba * self._block, found.zcap * self._block
        full, state = found.state == ZoneState.FULL, found.state
        written = start + capacity if full else found.wp * self._block
        zone = Zone(start, start + capacity, start if state == ZoneState.OFFLINE else written, state not in _UNUSABLE)
        self._zones.append(zone)
        if state in _OPEN:
            self._open.append(zone)

    async def _reset(self, zone: Zone) -> None:
        """Its turn is held. Waits for those who read it."""
        self.on_reset(zone.start, self._size)
        zone.written, zone.full = zone.start, False
        await zone.idle.wait()
        await self._namespace.reset(zone.start // self._block)
        self.resets += 1

    def renew(self) -> None:
        """The job begins again (loops)."""
        self._at, self._read_from, self._begun = [0, 0], 0, False

    def split(self, pieces: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Ranges of bytes, cut where a zone ends: not every device reads across."""
        for offset, nbytes in pieces:
            while nbytes:
                part = min(nbytes, self._size - offset % self._size)
                yield offset, part
                offset, nbytes = offset + part, nbytes - part

    # -- one I/O -----------------------------------------------------------------------------------

    async def claim(self, slot: Slot, steer: int = -1) -> int:
        """slot.claim(steer), moved to where its zone allows it, until release(). -1 also if no zone
        can be read, or a sequential job has written all.
        """
        direction, nbytes = slot.claim(steer), slot.nbytes
        if direction == READ and not self._options.read_beyond_wp:
            if self._claim_read(slot):
                return READ
            if not self._options.rw.mixed:
                return -1
            direction, nbytes = WRITE, self._write_nbytes  # there is nothing to read yet, as in fio
        return await self._claim_write(slot, nbytes) if direction == WRITE else direction

    def done(self, slot: Slot) -> None:
        """The I/O was successful."""
        zone = self._held.get(slot)
        if zone is not None and slot.direction == WRITE:
            zone.written += slot.nbytes
            if not zone.left and zone in self._open:
                self._open.remove(zone)

    def release(self, slot: Slot) -> None:
        """The end of what claim() began."""
        zone = self._held.pop(slot, None)
        if zone is None:
            return
        if slot.direction == WRITE:
            zone.turn.release()
            if not self._options.rw.random:
                self._line.release()
            return
        zone.readers -= 1
        if not zone.readers:
            zone.idle.set()

    def _index(self, offset: int) -> int:
        return min((offset - self._region.start) // self._size, len(self._zones) - 1)

    def _around(self, first: int) -> Iterator[Zone]:
        """All zones once, from the one with that index on."""
        yield from self._zones[first:]
        yield from self._zones[:first]

    # -- reads -------------------------------------------------------------------------------------

    def _claim_read(self, slot: Slot) -> bool:
        """False: no zone has data for it."""
        nbytes, smallest = slot.nbytes, self._smallest
        if self._options.rw.random:
            index = self._index(slot.offset)
            zone = next((one for one in self._around(index) if one.written - one.start >= smallest), None)
            if zone is None:
                return False
            nbytes = min(nbytes, (zone.written - zone.start) // smallest * smallest)
            room = zone.written - zone.start - nbytes
            within = slot.offset - self._zones[index].start
            at = zone.start + (within % (room + smallest) // smallest * smallest if room else 0)
        else:
            found = self._next_to_read()
            if found is None:
                return False
            zone, at = found
            nbytes = min(nbytes, (zone.written - at) // smallest * smallest)
            self._read_from = at + nbytes
        slot.aim(READ, at, nbytes)
        zone.readers += 1
        zone.idle.clear()
        self._held[slot] = zone
        return True

    def _next_to_read(self) -> tuple[Zone, int] | None:
        """Where a sequential job reads next; None: nowhere, or it has read all once."""
        for _ in range(len(self._zones) + 1):
            zone = self._zones[self._at[READ]]
            at = max(self._read_from, zone.start)
            if zone.written - at >= self._smallest:
                return zone, at
            self._at[READ] += 1
            if self._at[READ] == len(self._zones):
                self._at[READ] = self._read_from = 0
                if self._once:
                    return None
        return None

    # -- writes ------------------------------------------------------------------------------------

    async def _claim_write(self, slot: Slot, nbytes: int) -> int:
        zone = await (self._random_zone(slot) if self._options.rw.random else self._sequential_zone())
        if zone is None:
            return -1
        slot.aim(WRITE, zone.written, min(nbytes, zone.left // self._smallest * self._smallest))
        self._held[slot] = zone
        return WRITE

    async def _random_zone(self, slot: Slot) -> Zone | None:
        """A zone whose turn is held: the one that the job's offset is in, or an open one if no more
        may be open. A full one is reset.
        """
        index = self._index(slot.offset)
        for filled in [one for one in self._open if one.left < self._smallest]:
            async with filled.turn:
                if filled.left < self._smallest:  # not reset meanwhile
                    await self._finish(filled)
        while (zone := self._choose(index)) is not None:
            await zone.turn.acquire()
            try:
                if zone in self._open:  # not filled meanwhile
                    if zone.left < self._smallest:
                        await self._reset(zone)
                    return zone
            except BaseException:
                zone.turn.release()
                raise
            zone.turn.release()
        return None

    def _choose(self, index: int) -> Zone | None:
        zone = next((one for one in self._around(index) if one.writable), None)
        if zone is None or zone in self._open:
            return zone
        if self.limit and len(self._open) >= self.limit:
            free = [one for one in self._open if not one.turn.locked()] or self._open
            return free[index % len(free)]
        self._open.append(zone)
        return zone

    async def _sequential_zone(self) -> Zone | None:
        """The zone that a sequential job is at, with its turn held. It resets a full zone that it
        comes to, and goes on behind one that it has filled.
        """
        await self._line.acquire()
        try:
            zone = await self._next_to_write()
        except BaseException:
            self._line.release()
            raise
        if zone is None:
            self._line.release()
            return None
        await zone.turn.acquire()  # at once: only this job writes it, one write after another
        return zone

    async def _next_to_write(self) -> Zone | None:
        for _ in range(2 * len(self._zones) + 2):
            if self._at[WRITE] == len(self._zones):
                if self._once:
                    return None
                self._at[WRITE] = 0
            zone = self._zones[self._at[WRITE]]
            if zone.writable and (zone.left >= self._smallest or not self._begun):
                if zone.left < self._smallest:
                    await self._reset(zone)
                self._begun = True
                return zone
            if zone.writable:
                await self._finish(zone)
            self._at[WRITE] += 1
            self._begun = False
        return None

    async def _finish(self, zone: Zone) -> None:
        """Less than a block is left: it is not to stay open."""
        if zone.left:
            await self._namespace.finish(zone.start // self._block)
            zone.full = True
        if zone in self._open:
            self._open.remove(zone)
