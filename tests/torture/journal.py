"""The writers' promises, in memory that survives them; and blocks that identify the write that
they come from.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import zlib
from typing import NamedTuple

BLOCK = 4096
THREADS = 4
# Sizes in blocks of a thread's units, repeated: one page, two pages, PRP lists. None is longer than
# one command.
SIZES = (1, 1, 2, 1, 4, 8, 1, 2, 16, 1, 3, 32)
UNITS_PER_THREAD = 24

_HEADER = struct.Struct("<IIQII")  # magic, unit, sequence, block within the unit, CRC-32 of the rest
_MAGIC = 0x39_6C_6C_6B
_FILLING = random.Random(9).randbytes(1 << 20)
_BODY = BLOCK - _HEADER.size


class Unit(NamedTuple):
    """Blocks that one command always writes as a whole, one write at a time."""

    index: int
    thread: int
    lba: int
    blocks: int


def _units() -> list[Unit]:
    units, lba = [], 0
    for thread in range(THREADS):
        for number in range(UNITS_PER_THREAD):
            blocks = SIZES[number % len(SIZES)]
            units.append(Unit(len(units), thread, lba, blocks))
            lba += blocks
    return units


UNITS = _units()
BLOCKS = UNITS[-1].lba + UNITS[-1].blocks
UNIT_AT = {unit.lba: unit for unit in UNITS}


class Journal:
    """Shared by all processes that are forked later, or that map the same file. Each word is
    written by one store, by the one process that drives the controller.

    issued[unit]: the write that may be out, or was the last; acked[unit]: the last that was
        acknowledged; highest[unit]: sequence numbers
    below have been used, perhaps by a write that never happened. last_ack[thread]: CLOCK_MONOTONIC
        nanoseconds. writes[thread]: acknowledged.
    """

    def __init__(self, fd: int = -1) -> None:
        words = 3 * len(UNITS) + 2 * THREADS
        nbytes = -(-words * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        if fd >= 0:
            os.ftruncate(fd, nbytes)
        self._memory = mmap.mmap(fd, nbytes)
        view = memoryview(self._memory).cast("Q")
        self.issued = view[: len(UNITS)]
        self.acked = view[len(UNITS) : 2 * len(UNITS)]
        self.highest = view[2 * len(UNITS) : 3 * len(UNITS)]
        self.last_ack = view[3 * len(UNITS) : 3 * len(UNITS) + THREADS]
        self.writes = view[3 * len(UNITS) + THREADS : words]


def content(unit: Unit, sequence: int) -> bytes:
    """The data that write `sequence` puts into the unit; zeroes before the first."""
    if sequence == 0:
        return bytes(unit.blocks * BLOCK)
    blocks = []
    for block in range(unit.blocks):
        at = (unit.index * 7919 + sequence * 104729 + block * 1299709) % (len(_FILLING) - _BODY)
        body = _FILLING[at : at + _BODY]
        blocks.append(_HEADER.pack(_MAGIC, unit.index, sequence, block, zlib.crc32(body)) + body)
    return b"".join(blocks)


class Broken(Exception):
    """Blocks that match none of the permitted writes."""


def sequence_of(unit: Unit, data: bytes | bytearray | memoryview, *permitted: int) -> int:
    """Which of the permitted writes the unit's data are from. Broken says what they are instead:
    lost, stale, torn, or another unit's.
    """
    raw = bytes(data)
    for sequence in permitted:
        if raw == content(unit, sequence):
            return sequence
    found = []
    for block in range(unit.blocks):
        piece = raw[block * BLOCK : (block + 1) * BLOCK]
        magic, index, sequence, number, crc = _HEADER.unpack_from(piece)
        if not any(piece):
            found.append("zeroes")
        elif magic != _MAGIC:
            found.append("no header")
        elif (index, number) != (unit.index, block):
            found.append(f"block {number} of unit {index}")
        else:
            found.append(f"write {sequence}" + ("" if crc == zlib.crc32(piece[_HEADER.size :]) else ", damaged"))
    what = found[0] if len(set(found)) == 1 else f"torn: {', '.join(found)}"
    wanted = " or ".join(str(sequence) for sequence in dict.fromkeys(permitted))
    raise Broken(f"unit {unit.index} (lba {unit.lba}+{unit.blocks}) should hold write {wanted}, and holds {what}")
