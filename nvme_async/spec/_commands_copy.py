"""Copy (NVM 1.1, 3.3.2): its builder, and its source range entries in all descriptor formats."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

from nvme_async.spec._command import U16, U32, U64, Command, check
from nvme_async.spec._commands_nvm import MAX_BLOCKS
from nvme_async.spec.opcodes import CopyFormat, NvmOpcode

MAX_COPY_RANGES = 256

_EXTENDED = (CopyFormat.SOURCE_EXTENDED_PI, CopyFormat.NAMESPACE_EXTENDED_PI)
_ELSEWHERE = (CopyFormat.NAMESPACE, CopyFormat.NAMESPACE_EXTENDED_PI)
_TAGS = (1 << 80) - 1


def copy_entry_size(form: int) -> int:
    """Bytes of a source range entry in a descriptor format."""
    return 40 if form in _EXTENDED else 32


@attrs.frozen(kw_only=True)
class CopySource:
    """A source range entry of Copy (NVM 1.1, 3.3.2.1).

    Attributes:
        lba, blocks: the range.
        nsid: its namespace, in formats 2 and 3 only.
        options: source options (SOPT), in formats 2 and 3 only.
        tags: expected initial logical block reference tag, 32 bits in formats 0 and 2; storage and
            reference tag together, 80 bits in formats 1 and 3.
        apptag, apptag_mask: expected application tag.
    """

    lba: int
    blocks: int
    nsid: int = 0
    options: int = 0
    tags: int = 0
    apptag: int = 0
    apptag_mask: int = 0

    def encode(self, form: int = CopyFormat.SOURCE) -> bytes:
        """The entry, 32 bytes in formats 0 and 2, 40 bytes in formats 1 and 3."""
        check("lba", self.lba, 0, U64)
        check("blocks", self.blocks, 1, MAX_BLOCKS)
        if form not in _ELSEWHERE and (self.nsid or self.options):
            raise ValueError(f"nsid {self.nsid}, options {self.options}: format {int(form)} has no such fields")
        start = struct.pack("<I4xQH4xH", self.nsid, self.lba, self.blocks - 1, self.options)
        application = struct.pack(
            "<HH", check("apptag", self.apptag, 0, U16), check("apptag_mask", self.apptag_mask, 0, U16)
        )
        if form in _EXTENDED:
            tags = check("tags", self.tags, 0, _TAGS).to_bytes(10, "big")
            return start + bytes(2) + tags + application
        return start + struct.pack("<I", check("tags", self.tags, 0, U32)) + application

    @classmethod
    def decode(cls, entry: bytes, form: int = CopyFormat.SOURCE) -> CopySource:
        """From the bytes of an entry."""
        size = copy_entry_size(form)
        if len(entry) < size:
            raise ValueError(f"a source range entry of format {int(form)} has {size} bytes, not {len(entry)}")
        nsid, lba, blocks, options = struct.unpack_from("<I4xQH4xH", entry)
        if form in _EXTENDED:
            tags = int.from_bytes(entry[26:36], "big")
        else:
            (tags,) = struct.unpack_from("<I", entry, 24)
        apptag, mask = struct.unpack_from("<HH", entry, size - 4)
        elsewhere = form in _ELSEWHERE
        return cls(
            lba=lba,
            blocks=blocks + 1,
            nsid=nsid if elsewhere else 0,
            options=options if elsewhere else 0,
            tags=tags,
            apptag=apptag,
            apptag_mask=mask,
        )


def copy(
    nsid: int,
    lba: int,
    ranges: int,
    fua: bool = False,
    lr: bool = False,
    *,
    form: int = CopyFormat.SOURCE,
    prinfo_read: int = 0,
    prinfo_write: int = 0,
    stc_read: bool = False,
    stc_write: bool = False,
    dtype: int = 0,
    dspec: int = 0,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
) -> Command:
    """Copy (NVM 1.1, 3.3.2) to `lba` on, from so many source ranges (1..256), which
    `copy_descriptors` or CopySource packs.

    form: the descriptor format, see CopyFormat. dtype, dspec: directive of the blocks that are
    written. reftag: initial reference tag of those, with the storage tag in the bits above; up to
    80 bits, of which dword 14 has the lowest, dword 3 the next and dword 2 the highest.
    """
    check("lba", lba, 0, U64)
    check("ranges", ranges, 1, MAX_COPY_RANGES)
    check("form", form, 0, 15)
    check("reftag", reftag, 0, _TAGS)
    return Command(
        opcode=NvmOpcode.COPY,
        nsid=check("nsid", nsid, 1, U32 - 1),
        cdw2=reftag >> 64,
        cdw3=reftag >> 32 & U32,
        cdw10=lba & U32,
        cdw11=lba >> 32,
        cdw12=ranges - 1
        | form << 8
        | check("prinfo_read", prinfo_read, 0, 15) << 12
        | check("dtype", dtype, 0, 15) << 20
        | stc_write << 24
        | stc_read << 25
        | check("prinfo_write", prinfo_write, 0, 15) << 26
        | fua << 30
        | lr << 31,
        cdw13=check("dspec", dspec, 0, U16) << 16,
        cdw14=reftag & U32,
        cdw15=check("apptag", apptag, 0, U16) | check("apptag_mask", apptag_mask, 0, U16) << 16,
        data_length=copy_entry_size(form) * ranges,
    )


def copy_descriptors(ranges: Iterable[tuple[int, int] | CopySource], form: int = CopyFormat.SOURCE) -> bytes:
    """The payload of Copy: source range entries, or (lba, blocks) pairs, in a descriptor format."""
    entries = [one if isinstance(one, CopySource) else CopySource(lba=one[0], blocks=one[1]) for one in ranges]
    check("number of ranges", len(entries), 1, MAX_COPY_RANGES)
    return b"".join(entry.encode(form) for entry in entries)
