"""Identify Namespace (NVM 4.1.5.1 and 4.1.5.2; Base 5.17.2.8 for what is independent of a command
set).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import attrs

from nvme_async.spec import _nvme_cli
from nvme_async.spec._layout import Layout, raw, structs, uint, uints


class Nsfeat(IntFlag):
    """Namespace features."""

    THIN_PROVISIONING = 1 << 0
    NAMESPACE_ATOMICITY = 1 << 1
    DEALLOCATED_ERROR = 1 << 2
    UNIQUE_ID_NOT_REUSED = 1 << 3
    OPTIMAL_PERFORMANCE = 1 << 4


class ProtectionType(IntEnum):
    """End-to-end data protection (NVM 5)."""

    NONE = 0
    TYPE_1 = 1
    TYPE_2 = 2
    TYPE_3 = 3


@attrs.frozen
class LbaFormat(Layout, size=4):
    """LBA format (NVM 4.1.5.1)."""

    ms: int = uint(0, 2)
    """Metadata bytes per logical block."""
    ds: int = uint(2, 1)
    """Logical block size as a power of two; 0 if the format does not exist."""
    rp: int = uint(3, 1)
    """Relative performance in bits 1:0, 0 the best."""

    @property
    def block_size(self) -> int:
        """Bytes of data per logical block; 0 if the format does not exist."""
        return 1 << self.ds if self.ds else 0


@attrs.frozen
class IdentifyNamespace(Layout, size=4096):
    """Identify Namespace data structure of the NVM command set (CNS 00h).

    All zeroes for an inactive namespace.
    """

    nsze: int = uint(0, 8)
    ncap: int = uint(8, 8)
    nuse: int = uint(16, 8)
    nsfeat: int = uint(24, 1)
    nlbaf: int = uint(25, 1)
    flbas: int = uint(26, 1)
    mc: int = uint(27, 1)
    dpc: int = uint(28, 1)
    dps: int = uint(29, 1)
    nmic: int = uint(30, 1)
    rescap: int = uint(31, 1)
    fpi: int = uint(32, 1)
    dlfeat: int = uint(33, 1)
    nawun: int = uint(34, 2)
    nawupf: int = uint(36, 2)
    nacwu: int = uint(38, 2)
    nabsn: int = uint(40, 2)
    nabo: int = uint(42, 2)
    nabspf: int = uint(44, 2)
    noiob: int = uint(46, 2)
    nvmcap: int = uint(48, 16)
    npwg: int = uint(64, 2)
    npwa: int = uint(66, 2)
    npdg: int = uint(68, 2)
    npda: int = uint(70, 2)
    nows: int = uint(72, 2)
    mssrl: int = uint(74, 2)
    mcl: int = uint(76, 4)
    msrc: int = uint(80, 1)
    kpios: int = uint(81, 1)
    nulbaf: int = uint(82, 1)
    kpiodaag: int = uint(84, 4)
    anagrpid: int = uint(92, 4)
    nsattr: int = uint(99, 1)
    nvmsetid: int = uint(100, 2)
    endgid: int = uint(102, 2)
    nguid: bytes = raw(104, 16)
    eui64: bytes = raw(120, 8)
    lbafs: tuple[LbaFormat, ...] = structs(128, LbaFormat, 64)
    vs: bytes = raw(384, 3712)

    @property
    def lbaf_index(self) -> int:
        """Which of `lbafs` the namespace is formatted with."""
        # FLBAS bits 6:5 count only if there are more than 16 formats (NVM 4.1.5.1).
        return self.flbas & 0xF | ((self.flbas >> 5 & 3) << 4 if self.nlbaf > 15 else 0)

    @property
    def lba_format(self) -> LbaFormat:
        """The format of the namespace."""
        return self.lbafs[self.lbaf_index]

    @property
    def block_size(self) -> int:
        """Bytes of data per logical block, without metadata."""
        return self.lba_format.block_size

    @property
    def metadata_size(self) -> int:
        """Bytes of metadata per logical block."""
        return self.lba_format.ms

    @property
    def metadata_extended(self) -> bool:
        """Metadata follow each block's data in the same buffer, otherwise they have a separate
        buffer.
        """
        return bool(self.flbas & 0x10) and self.metadata_size > 0

    @property
    def extended_block_size(self) -> int:
        """Bytes that a logical block takes in a data buffer."""
        return self.block_size + (self.metadata_size if self.metadata_extended else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of data that the namespace holds, NSZE blocks."""
        return self.nsze * self.block_size

    @property
    def active(self) -> bool:
        """False for the all-zero structure that stands for an inactive namespace."""
        return self.nsze > 0

    @property
    def supported_formats(self) -> tuple[LbaFormat, ...]:
        """The LBA formats that a Format NVM may select, also those that only some namespaces may
        have.
        """
        return self.lbafs[: self.nlbaf + self.nulbaf + 1]

    @property
    def features(self) -> Nsfeat:
        """Namespace features."""
        return Nsfeat(self.nsfeat)

    @property
    def protection_type(self) -> ProtectionType:
        """End-to-end protection that is enabled. Raises ValueError for reserved types."""
        return ProtectionType(self.dps & 7)

    @property
    def shared(self) -> bool:
        """Other controllers may have it attached as well."""
        return bool(self.nmic & 1)

    @property
    def write_protected(self) -> bool:
        """Writes fail."""
        return bool(self.nsattr & 1)

    @property
    def deallocated_reads_zero(self) -> bool:
        """Deallocated blocks are reported to read as zeroes."""
        return self.dlfeat & 7 == 1

    @property
    def optimal_write_blocks(self) -> int | None:
        """Preferred write granularity in logical blocks, None if not reported."""
        return self.npwg + 1 if Nsfeat.OPTIMAL_PERFORMANCE in self.features else None

    def to_json(self) -> dict[str, Any]:
        """The same keys, values and types as `nvme id-ns -o json` of nvme-cli 2.3."""
        return _nvme_cli.namespace(self)


@attrs.frozen
class IdentifyNamespaceNvm(Layout, size=4096):
    """Identify Namespace of the NVM command set, command set specific (CNS 05h, CSI 00h; NVM
    4.1.5.2).
    """

    lbstm: int = uint(0, 8)
    """Logical block storage tag mask."""
    pic: int = uint(8, 1)
    """Protection information capabilities: bit 0 16b guard with storage tag, bit 1 its mask is for
        masking
    only.
    """
    pifa: int = uint(9, 1)
    """Attributes of the protection information format."""
    elbafs: tuple[int, ...] = uints(12, 4, 64)
    """Extended LBA formats: storage tag size in bits 6:0, protection information format in bits
    8:7.
    """
    npdgl: int = uint(268, 4)
    """Preferred deallocate granularity, large."""
    nprg: int = uint(272, 4)
    """Preferred read granularity, in logical blocks, as the next two; zero-based."""
    npra: int = uint(276, 4)
    """Preferred read alignment."""
    nors: int = uint(280, 4)
    """Optimal read size."""
    npdal: int = uint(284, 4)
    """Preferred deallocate alignment, large."""
    lbapss: int = uint(288, 4)
    """Preferred shard size of the LBA placement."""
    tlbaag: int = uint(292, 4)
    """Granularity of the allocation of tracked blocks."""


@attrs.frozen
class IdentifyNamespaceIndependent(Layout, size=4096):
    """Identify Namespace, command set independent (CNS 08h; Base 5.17.2.8)."""

    nsfeat: int = uint(0, 1)
    nmic: int = uint(1, 1)
    rescap: int = uint(2, 1)
    fpi: int = uint(3, 1)
    anagrpid: int = uint(4, 4)
    nsattr: int = uint(8, 1)
    nvmsetid: int = uint(10, 2)
    endgid: int = uint(12, 2)
    nstat: int = uint(14, 1)
    kpios: int = uint(15, 1)
    """Key per I/O: bit 0 enabled, bit 1 supported."""
    maxkt: int = uint(16, 2)
    """Largest key tag."""
    rgrpid: int = uint(20, 4)
    """Reachability group."""

    @property
    def ready(self) -> bool:
        """The namespace is ready for I/O (with CC.CRIME it may come later than CSTS.RDY)."""
        return bool(self.nstat & 1)
