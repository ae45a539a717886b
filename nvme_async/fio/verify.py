"""Blocks that prove themselves: what a verify job writes, and what it makes of what comes back.

Each verify_interval begins with a header, little-endian and packed:

    magic u32, checksum kind u16, job u16, length u32, CRC-32C of the header with this field zero
    u32, run u64, offset u64, sequence u64, digest of the rest of the interval (0 to 64 bytes)

`offset` finds a block that went to another place. `sequence` counts the job's writes, and the job
remembers the
last one of every interval: an older one is a stale block, a write that was acknowledged and lost.
`run` is a random
number, so that data of an earlier run are never taken for this one's. The contents follow from run,
offset and sequence, which is why a report can name the first wrong byte.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator

import attrs

from nvme_async.native._fio import crc32c, fill_random, xxh64

MAGIC = 0x4E564D56
_HEADER = struct.Struct("<IHHIIQQQ")
_PREFIX, _CRC = struct.Struct("<IHHI"), struct.Struct("<I")
_CRC_AT = 12

CHECKSUMS: dict[str, Callable[[memoryview], bytes]] = {
    "crc32c": lambda data: _CRC.pack(crc32c(data)),
    "crc32": lambda data: _CRC.pack(zlib.crc32(data)),
    "xxhash": lambda data: struct.pack("<Q", xxh64(data)),
} | {
    name: (lambda data, name=name: hashlib.new(name, data, usedforsecurity=False).digest())
    for name in ("md5", "sha1", "sha256", "sha512", "sha3-224", "sha3-256", "sha3-384", "sha3-512")
}
_KINDS = {name: number for number, name in enumerate(CHECKSUMS, 1)}
_DIGEST_SIZES = {name: len(function(memoryview(b""))) for name, function in CHECKSUMS.items()}


def header_size(kind: str) -> int:
    """Bytes of an interval that are not contents."""
    return 0 if kind == "pattern" else _HEADER.size + _DIGEST_SIZES[kind]


@attrs.frozen
class BadBlock:
    """An interval that is not what was written: where, and in which respect."""

    offset: int
    nbytes: int
    reason: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.reason} at offset {self.offset}, length {self.nbytes}: expected {self.expected}, got {self.got}"


class Written:
    """The sequence number of the last write to each interval of a region; 0 where none was.

    Eight bytes an interval, in anonymous memory that the kernel gives out when it is touched.
    """

    def __init__(self, start: int, length: int, interval: int) -> None:
        self.start, self.interval = start, interval
        self.units = max(1, -(-length // interval))
        self._memory = mmap.mmap(-1, self.units * 8)
        self._table = memoryview(self._memory).cast("Q")

    def unit(self, offset: int) -> int:
        return (offset - self.start) // self.interval

    def note(self, offset: int, nbytes: int, sequence: int) -> None:
        first = self.unit(offset)
        for unit in range(first, first + nbytes // self.interval):
            self._table[unit] = sequence

    def sequence(self, offset: int) -> int:
        return self._table[self.unit(offset)]

    def runs(self, max_nbytes: int) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of everything written, in order, in pieces of at most `max_nbytes`."""
        table, most, unit = self._table, max(1, max_nbytes // self.interval), 0
        while unit < self.units:
            if not table[unit]:
                unit += 1
                continue
            end = unit + 1
            while end < self.units and end - unit < most and table[end]:
                end += 1
            yield self.start + unit * self.interval, (end - unit) * self.interval
            unit = end

    def close(self) -> None:
        self._table.release()
        self._memory.close()


@attrs.define
class Verifier:
    """Makes and checks the intervals of one job.

    kind: of CHECKSUMS, or "pattern": no header, the whole is `pattern`. run: None learns it from
        the first block
    that is checked (verify_only). pattern: contents; random if empty.
    """

    kind: str
    interval: int
    run: int | None
    job: int = 0
    pattern: bytes = b""
    _filled: bytes = attrs.field(init=False, default=b"")

    def __attrs_post_init__(self) -> None:
        if self.pattern:
            self._filled = (self.pattern * (self.interval // len(self.pattern) + 1))[: self.interval]

    def stamp(self, view: memoryview, offset: int, sequence: int) -> None:
        """Fills `view`, which goes to `offset`, with contents and headers."""
        for at in range(0, len(view), self.interval):
            self._stamp(view[at : at + self.interval], offset + at, sequence)

    def _stamp(self, part: memoryview, offset: int, sequence: int) -> None:
        run = self.run or 0
        if self.kind == "pattern":
            part[:] = self._filled
            return
        begin = header_size(self.kind)
        contents = part[begin:]
        if self._filled:
            contents[:] = self._filled[begin:]
        else:
            fill_random(contents, _key(run, offset, sequence))
        _HEADER.pack_into(part, 0, MAGIC, _KINDS[self.kind], self.job, self.interval, 0, run, offset, sequence)
        part[_HEADER.size : begin] = CHECKSUMS[self.kind](contents)
        _CRC.pack_into(part, _CRC_AT, crc32c(part[:begin]))

    def check(self, view: memoryview, offset: int, written: Written | None) -> list[BadBlock]:
        """What is wrong with data read from `offset`. `written`: what to expect, None if unknown;
            intervals that
        were never written are passed over.
        """
        bad = []
        for at in range(0, len(view), self.interval):
            sequence = None
            if written is not None:
                sequence = written.sequence(offset + at)
                if not sequence:
                    continue
            found = self._check(view[at : at + self.interval], offset + at, sequence)
            if found is not None:
                bad.append(BadBlock(offset + at, self.interval, *found))
        return bad

    def _check(self, part: memoryview, offset: int, sequence: int | None) -> tuple[str, str, str] | None:
        if self.kind == "pattern":
            if part == self._filled:
                return None
            return "pattern mismatch", *_first_difference(memoryview(self._filled), part)
        begin = header_size(self.kind)
        magic, kind, job, length, header_crc, run, place, number = _HEADER.unpack_from(part)
        if magic != MAGIC:
            return "no verify header", f"magic {MAGIC:#x}", f"{magic:#x}"
        # The damage may be in the header: its CRC comes before what it says is believed.
        unsigned = bytearray(part[:begin])
        _CRC.pack_into(unsigned, _CRC_AT, 0)
        if (crc := crc32c(unsigned)) != header_crc:
            return "damaged verify header", f"header CRC {crc:#010x}", f"{header_crc:#010x}"
        if place != offset:
            return "misplaced block", f"offset {offset}", f"data of offset {place}"
        if kind != _KINDS[self.kind] or length != self.interval:
            wanted = f"{self.kind} over {self.interval} bytes"
            return "other verify settings", wanted, f"checksum kind {kind} over {length} bytes"
        if self.run is None:
            self.run = run
        if run != self.run:
            return "stale block", f"run {self.run:#x}", f"data of another run, {run:#x}"
        if sequence is not None and (number != sequence or job != self.job):
            wanted = f"write {sequence} of job {self.job}"
            return (
                "stale block" if number < sequence else "foreign block",
                wanted,
                f"write {number} of job {job}",
            )
        contents = part[begin:]
        digest = CHECKSUMS[self.kind](contents)
        stored = bytes(part[_HEADER.size : begin])
        if digest == stored:
            return None
        whole = memoryview(bytearray(self.interval))
        self._stamp(whole, offset, number)
        wrong = _first_difference(whole, part)
        return f"{self.kind} mismatch", f"{stored.hex()} ({wrong[0]})", f"{digest.hex()} ({wrong[1]})"


def _key(run: int, offset: int, sequence: int) -> int:
    """One number of three: odd multipliers, so that none cancels another."""
    return (run + offset * 0x9E3779B97F4A7C15 + sequence * 0xC2B2AE3D27D4EB4F) & 0xFFFFFFFFFFFFFFFF


def _first_difference(wanted: memoryview, got: memoryview) -> tuple[str, str]:
    for at, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if a != b:
            return f"byte {at} is {a:#04x}", f"{b:#04x}"
    return "no byte differs", "its digest does"
