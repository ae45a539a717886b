"""The submission queue entry (Base 3.3.3.1) as a value, and the argument checks of the builders."""

from __future__ import annotations

import struct

import attrs

from nvme_async.spec.opcodes import Direction, NvmOpcode, ZnsOpcode, command_name
from nvme_async.spec.opcodes import direction as opcode_direction

_SQE = struct.Struct("<BBHIIIQQQ6I")
SQE_SIZE = 64
assert _SQE.size == SQE_SIZE

U8, U16, U32, U64 = 0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

_LIMITS = {
    "opcode": U8,
    "fuse": 3,
    "psdt": 3,
    "nsid": U32,
    "cdw2": U32,
    "cdw3": U32,
    "mptr": U64,
    "prp1": U64,
    "prp2": U64,
    "cdw10": U32,
    "cdw11": U32,
    "cdw12": U32,
    "cdw13": U32,
    "cdw14": U32,
    "cdw15": U32,
}

_WITH_LBA = frozenset(
    {
        NvmOpcode.WRITE,
        NvmOpcode.READ,
        NvmOpcode.WRITE_UNCORRECTABLE,
        NvmOpcode.COMPARE,
        NvmOpcode.WRITE_ZEROES,
        NvmOpcode.VERIFY,
        ZnsOpcode.ZONE_APPEND,
    }
)


def check(name: str, value: int, low: int, high: int) -> int:
    """`value`, or a ValueError that names the argument and its limits."""
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not in {low}..{high}")
    return value


def check_dwords(name: str, nbytes: int) -> int:
    """The zero-based number of dwords, from a length that must be a positive multiple of 4 up to 16
    GiB.
    """
    check(name, nbytes, 4, (U32 + 1) * 4)
    if nbytes % 4:
        raise ValueError(f"{name} {nbytes} is not a multiple of 4")
    return nbytes // 4 - 1


@attrs.frozen(kw_only=True)
class Command:
    """One command, without its identifier: dword 0 bits 31:16 stay 0, the queue pair fills them.

    Field names and values are the specification's. Besides the 64 bytes there is:
        data_length: bytes that the command transfers; None if the caller's buffer decides (read,
        write, …),
            0 for none. With 0 the PRP fields belong to the builder (queue addresses) and must not
            be changed.
        admin: whether the opcode is an admin command's.
    """

    opcode: int
    fuse: int = 0
    psdt: int = 0
    nsid: int = 0
    cdw2: int = 0
    cdw3: int = 0
    mptr: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0
    data_length: int | None = 0
    admin: bool = False

    def __attrs_post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} {getattr(self, name)} is not in 0..{limit}")
        if self.data_length is not None and self.data_length < 0:
            raise ValueError(f"data_length {self.data_length} is negative")

    @property
    def direction(self) -> Direction:
        """The direction of the data transfer; NONE if there is none."""
        return Direction.NONE if self.data_length == 0 else opcode_direction(self.opcode)

    @property
    def name(self) -> str:
        """The specification's name of the command, for messages."""
        return command_name(self.opcode, admin=self.admin)

    @property
    def lba(self) -> int | None:
        """The first logical block of an I/O command that names one, else None."""
        if self.admin or self.opcode not in _WITH_LBA:
            return None
        return self.cdw11 << 32 | self.cdw10

    @property
    def blocks(self) -> int | None:
        """The number of logical blocks (not zero-based) of an I/O command that names them, else
        None.
        """
        if self.admin or self.opcode not in _WITH_LBA:
            return None
        return (self.cdw12 & U16) + 1

    def pack(self) -> bytes:
        """The 64 bytes of the submission queue entry, command identifier 0."""
        return _SQE.pack(
            self.opcode,
            self.fuse | self.psdt << 6,
            0,
            self.nsid,
            self.cdw2,
            self.cdw3,
            self.mptr,
            self.prp1,
            self.prp2,
            self.cdw10,
            self.cdw11,
            self.cdw12,
            self.cdw13,
            self.cdw14,
            self.cdw15,
        )

    @classmethod
    def unpack(cls, entry: bytes | bytearray | memoryview, *, admin: bool = False) -> Command:
        """From the 64 bytes of an entry. Other fields are derived or unknown: data_length is
        None.
        """
        if len(entry) != SQE_SIZE:
            raise ValueError(f"a submission queue entry has {SQE_SIZE} bytes, not {len(entry)}")
        opcode, flags, _cid, nsid, cdw2, cdw3, mptr, prp1, prp2, *cdws = _SQE.unpack(entry)
        cdw10, cdw11, cdw12, cdw13, cdw14, cdw15 = cdws
        return cls(
            opcode=opcode,
            fuse=flags & 3,
            psdt=flags >> 6,
            nsid=nsid,
            cdw2=cdw2,
            cdw3=cdw3,
            mptr=mptr,
            prp1=prp1,
            prp2=prp2,
            cdw10=cdw10,
            cdw11=cdw11,
            cdw12=cdw12,
            cdw13=cdw13,
            cdw14=cdw14,
            cdw15=cdw15,
            data_length=None,
            admin=admin,
        )
