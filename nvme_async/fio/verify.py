"""Self-verifying blocks: the data that a verify job writes, and their check.

Each verify_interval starts with a header, little-endian and packed:

    magic u32, checksum kind u16, job u16, length u32, CRC-32C of the header with this field zero
    u32, run u64, plan u64, offset u64, sequence u64, digest of the rest of the interval (0 to 64
    bytes)

A header is enough for any reader to check the block: `offset` reveals a misplaced block, `length`
and kind a block written with other settings, the digest any damage. Better informed readers use the
other fields. The writer remembers the `sequence` of its last write to every interval, and `run`, a
random number of the program's run: an older one is a stale block, a write that was acknowledged and
lost. verify_only recomputes the writes of a job with the same `plan` (its order, sizes and limits
in one number), and derives sequences from that. Data of other plans, other jobs and other runs only
need to be consistent. The contents follow from run, offset and sequence, so a report can name the
first wrong byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

from nvme_async.fio.checksums import CHECKSUMS, DIGEST_SIZES, KINDS
from nvme_async.fio.written import Written
from nvme_async.native._fio import crc32c, fill_random

MAGIC = 0x4E564D57
_HEADER = struct.Struct("<IHHIIQQQQ")
_CRC = struct.Struct("<I")
_CRC_AT = 12

# Without a digest: a header alone; a header and a pattern; a pattern alone; nothing at all.
VERIFY_KINDS = (*CHECKSUMS, "meta", "pattern_hdr", "pattern", "null")


def header_size(kind: str) -> int:
    """Bytes of an interval that are not contents."""
    return 0 if kind in ("pattern", "null") else _HEADER.size + DIGEST_SIZES.get(kind, 0)


@attrs.frozen
class BadBlock:
    """An interval that differs from what was written: its place, and the difference."""

    offset: int
    nbytes: int
    reason: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.reason} at offset {self.offset}, length {self.nbytes}: expected {self.expected}, got {self.got}"


@attrs.define
class Verifier:
    """Makes and checks the intervals of one job. May be used from one thread at a time.

    kind: of VERIFY_KINDS. run: of the writer's program run; None for a job that reads what others
    wrote. plan: see the module. shared: other jobs of this run write to the same blocks, and
    theirs count. ordered: which write is the last one counts. pattern: contents; random if empty.
    """

    kind: str
    interval: int
    run: int | None
    job: int = 0
    pattern: bytes = b""
    plan: int = 0
    shared: bool = False
    ordered: bool = True
    _filled: bytes = attrs.field(init=False, default=b"")

    def __attrs_post_init__(self) -> None:
        if self.pattern:
            self._filled = (self.pattern * (self.interval // len(self.pattern) + 1))[: self.interval]

    def stamp(self, view: memoryview, offset: int, sequence: int) -> None:
        """Fills `view`, to be written at `offset`, with contents and headers."""
        if self.kind == "null":
            return
        for at in range(0, len(view), self.interval):
            self._stamp(view[at : at + self.interval], offset + at, self.run or 0, self.job, self.plan, sequence)

    def _stamp(self, part: memoryview, offset: int, run: int, job: int, plan: int, sequence: int) -> None:
        if self.kind == "pattern":
            part[:] = self._filled
            return
        begin = header_size(self.kind)
        contents = part[begin:]
        if self._filled:
            contents[:] = self._filled[begin:]
        else:
            fill_random(contents, _key(run, offset, sequence))
        _HEADER.pack_into(part, 0, MAGIC, KINDS[self.kind], job, self.interval, 0, run, plan, offset, sequence)
        if self.kind in CHECKSUMS:
            part[_HEADER.size : begin] = CHECKSUMS[self.kind](contents)
        _CRC.pack_into(part, _CRC_AT, crc32c(part[:begin]))

    def expected(self, offset: int, sequence: int) -> bytes | None:
        """The interval as this job's write `sequence` left it; None if another run wrote it."""
        if self.run is None and self.kind != "pattern":
            return None
        part = bytearray(self.interval)
        self.stamp(memoryview(part), offset, sequence)
        return bytes(part)

    def check(self, view: memoryview, offset: int, written: Written | None) -> list[BadBlock]:
        """The errors in data read from `offset`. `written`: the expectation; intervals that were
        never written, or partly overwritten, are skipped. None: every interval must be
        consistent.
        """
        if self.kind == "null":
            return []
        if written is None:
            places = ((offset + at, None) for at in range(0, len(view) - self.interval + 1, self.interval))
            return self._bad(view, offset, places)
        return self._bad(view, offset, written.whole(offset, len(view)))

    def _bad(self, view: memoryview, offset: int, places: Iterable[tuple[int, int | None]]) -> list[BadBlock]:
        bad = []
        for place, sequence in places:
            found = self._check(view[place - offset : place - offset + self.interval], place, sequence)
            if found is not None:
                bad.append(BadBlock(place, self.interval, *found))
        return bad

    def _check(self, part: memoryview, offset: int, sequence: int | None) -> tuple[str, str, str] | None:
        if self.kind == "pattern":
            if part == self._filled:
                return None
            return "pattern mismatch", *_first_difference(memoryview(self._filled), part)
        begin = header_size(self.kind)
        magic, kind, job, length, header_crc, run, plan, place, number = _HEADER.unpack_from(part)
        if magic != MAGIC:
            return "no verify header", f"magic {MAGIC:#x}", f"{magic:#x}"
        # The damage may be in the header, so its CRC is checked before it is trusted. It covers the
        # digest, of which a header of another kind may have less or more.
        known = {number: name for name, number in KINDS.items()}.get(kind)
        unsigned = bytearray(part[: header_size(known) if known else begin])
        _CRC.pack_into(unsigned, _CRC_AT, 0)
        if (crc := crc32c(unsigned)) != header_crc:
            return "damaged verify header", f"header CRC {crc:#010x}", f"{header_crc:#010x}"
        if place != offset:
            return "misplaced block", f"offset {offset}", f"data of offset {place}"
        if known != self.kind or length != self.interval:
            wanted = f"{self.kind} over {self.interval} bytes"
            return "other verify settings", wanted, f"{known or f'checksum kind {kind}'} over {length} bytes"
        if self.ordered and sequence is not None and (wrong := self._older(run, plan, job, number, sequence)):
            return wrong
        return self._check_contents(part, (offset, run, job, plan, number))

    def _older(self, run: int, plan: int, job: int, number: int, sequence: int) -> tuple[str, str, str] | None:
        """The verdict of a job that knows that write `sequence` was the last one."""
        if self.run is None:  # verify_only
            if plan != self.plan or number == sequence:
                return None
            return "stale block", f"write {sequence}", f"write {number}"
        if run != self.run:
            return "stale block", f"run {self.run:#x}", f"data of another run, {run:#x}"
        if job == self.job and number == sequence:
            return None
        if job != self.job and self.shared:
            return None
        reason = "stale block" if number < sequence else "foreign block"
        return reason, f"write {sequence} of job {self.job}", f"write {number} of job {job}"

    def _check_contents(self, part: memoryview, written: tuple[int, int, int, int, int]) -> tuple[str, str, str] | None:
        begin = header_size(self.kind)
        if self.kind == "meta":
            return None
        if self.kind == "pattern_hdr":
            if part[begin:] == self._filled[begin:]:
                return None
            return "pattern mismatch", *_first_difference(memoryview(self._filled)[begin:], part[begin:], begin)
        digest = CHECKSUMS[self.kind](part[begin:])
        stored = bytes(part[_HEADER.size : begin])
        if digest == stored:
            return None
        whole = memoryview(bytearray(self.interval))
        self._stamp(whole, *written)
        wrong = _first_difference(whole, part)
        return f"{self.kind} mismatch", f"{stored.hex()} ({wrong[0]})", f"{digest.hex()} ({wrong[1]})"


def _key(run: int, offset: int, sequence: int) -> int:
    """One number of three: odd multipliers, so that none cancels another."""
    return (run + offset * 0x9E3779B97F4A7C15 + sequence * 0xC2B2AE3D27D4EB4F) & 0xFFFFFFFFFFFFFFFF


def _first_difference(wanted: memoryview, got: memoryview, begin: int = 0) -> tuple[str, str]:
    for at, (a, b) in enumerate(zip(wanted, got, strict=True), begin):
        if a != b:
            return f"byte {at} is {a:#04x}", f"{b:#04x}"
    return "no byte differs", "its digest does"
