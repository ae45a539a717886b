"""The checksum of a tracker (ext/hotpath/sum.h), implemented a second time: each release must be
able to read what the previous one wrote.
"""

from __future__ import annotations

import struct

MASK = (1 << 64) - 1
DONE = 2
ADOPTED = 1 << 4


def fold(value: int) -> int:
    return (value * 0x9E3779B97F4A7C15 & MASK) >> 48


def tracker_sum(raw: bytes) -> int:
    """The value of bytes 102 and 103 of a live tracker."""
    word = struct.unpack_from("<8Q", raw)
    state, cid, flags, _position, tag, _offset, nbytes, status, _sum, result = struct.unpack_from(
        "<IHHQQQIHHQ", raw, 64
    )
    value = (word[0] & ~0xFFFF0000) * 0x7FEB352D
    value += word[1] * 0x31848BAB + word[2] * 0x297A2D39 + word[6] * 0x1B873593 + word[7] * 0x5BD1E995
    value += ((flags & ~ADOPTED) << 32 | nbytes) * 0x4CF5AD43 + word[5] * 0x45D9F3B1 + tag * 0x2C1B3C6D
    found = fold(value) ^ cid
    return found ^ fold(result + 8 * status) if state == DONE else found
