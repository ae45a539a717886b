"""Controller properties (registers) of the PCIe transport: offsets and bit fields (Base 3.1.3).

Everything is little-endian. A 64-bit property may be read as two 32-bit halves, lower first (`WIDE`
names them). A value of all ones means that the function does not answer any more; `is_gone` says
so.
"""

from __future__ import annotations

from enum import IntEnum

import attrs

from nvme_async.spec._bits import BitFields, bit, bits


class Register(IntEnum):
    """Byte offsets into BAR0 (Base 3.1.3, property definition table)."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CMBLOC = 0x38
    CMBSZ = 0x3C
    BPINFO = 0x40
    BPRSEL = 0x44
    BPMBL = 0x48
    CMBMSC = 0x50
    CMBSTS = 0x58
    CMBEBS = 0x5C
    CMBSWTP = 0x60
    NSSD = 0x64
    CRTO = 0x68
    PMRCAP = 0xE00
    PMRCTL = 0xE04
    PMRSTS = 0xE08
    PMREBS = 0xE0C
    PMRSWTP = 0xE10
    PMRMSCL = 0xE14
    PMRMSCU = 0xE18


WIDE = frozenset({Register.CAP, Register.ASQ, Register.ACQ, Register.BPMBL, Register.CMBMSC})
"""The 64-bit properties; all others have 32 bits."""

WITH_MSIX = tuple(register for register in Register if register not in (Register.INTMS, Register.INTMC))
"""Those that a host with MSI-X accesses (Base 2.1, 3.1.4.3)."""

PAGE = 4096
"""Bytes of a memory page with CC.MPS = 0, which this driver sets for all controllers."""

DOORBELL_BASE = 0x1000
"""Where the doorbells begin in BAR0 (NVMe over PCIe Transport 1.0, 3.1.2)."""

NSSR_RESET = 0x4E564D65
"""'NVMe', written to NSSR: resets the NVM subsystem (Base 3.1.3.7)."""

MAX_QID = 65535
"""The largest queue identifier. 0 is the admin queue pair."""


def _doorbell(qid: int, dstrd: int, completion: int) -> int:
    if not 0 <= qid <= MAX_QID:
        raise ValueError(f"queue id {qid} is not in 0..{MAX_QID}")
    if not 0 <= dstrd <= 15:
        raise ValueError(f"CAP.DSTRD {dstrd} is not in 0..15")
    return DOORBELL_BASE + (2 * qid + completion) * (4 << dstrd)


def sq_doorbell(qid: int, dstrd: int) -> int:
    """Offset in BAR0 of the submission queue tail doorbell of queue `qid`; `dstrd` is CAP.DSTRD."""
    return _doorbell(qid, dstrd, 0)


def cq_doorbell(qid: int, dstrd: int) -> int:
    """Offset in BAR0 of the completion queue head doorbell of queue `qid`; `dstrd` is CAP.DSTRD."""
    return _doorbell(qid, dstrd, 1)


def is_gone(value: int, nbytes: int = 4) -> bool:
    """True for the result of a read without a device: all ones. No valid CSTS, VS or CAP reads like
    this.
    """
    return value == (1 << 8 * nbytes) - 1


@attrs.frozen
class Cap(BitFields, width=64):
    """CAP, controller capabilities (Base 3.1.3.1)."""

    mqes: int = bits(15, 0)
    """Maximum queue entries supported, zero-based."""
    cqr: bool = bit(16)
    """Contiguous queues required."""
    ams: int = bits(18, 17)
    """Arbitration mechanisms besides round robin: bit 0 weighted round robin with urgent, bit 1
    vendor specific.
    """
    to: int = bits(31, 24)
    """Timeout for CSTS.RDY to follow CC.EN, in units of 500 ms."""
    dstrd: int = bits(35, 32)
    """Doorbell stride: 4 << dstrd bytes."""
    nssrs: bool = bit(36)
    """NVM subsystem reset supported."""
    css: int = bits(44, 37)
    """Command sets: bit 0 NVM, bit 6 one or more other I/O command sets (CC.CSS=6), bit 7 none but
    admin.
    """
    bps: bool = bit(45)
    """Boot partitions supported."""
    cps: int = bits(47, 46)
    """Controller power scope: 0 not reported, 1 controller, 2 domain, 3 NVM subsystem."""
    mpsmin: int = bits(51, 48)
    """Smallest memory page: 2 ** (12 + mpsmin) bytes."""
    mpsmax: int = bits(55, 52)
    """Largest memory page: 2 ** (12 + mpsmax) bytes."""
    pmrs: bool = bit(56)
    """Persistent memory region supported."""
    cmbs: bool = bit(57)
    """Controller memory buffer supported; CMBLOC and CMBSZ are hidden until CMBMSC.CRE is set."""
    nsss: bool = bit(58)
    """NVM subsystem shutdown supported."""
    crms: int = bits(60, 59)
    """Controller ready modes: bit 0 with media (CRWMS), bit 1 independent of media (CRIMS)."""

    @property
    def max_queue_entries(self) -> int:
        """Entries that an I/O queue may have, 2..65536."""
        return self.mqes + 1

    @property
    def timeout_seconds(self) -> float:
        """How long CSTS.RDY may take to follow CC.EN. At least 0.5 s, for controllers that report
        nothing.
        """
        return max(self.to, 1) * 0.5

    @property
    def doorbell_stride(self) -> int:
        """Bytes from one doorbell to the next."""
        return 4 << self.dstrd

    @property
    def min_page_size(self) -> int:
        """Bytes; also the unit of MDTS."""
        return 1 << 12 + self.mpsmin

    @property
    def max_page_size(self) -> int:
        """Bytes."""
        return 1 << 12 + self.mpsmax

    @property
    def nvm_command_set(self) -> bool:
        """The NVM command set can be used."""
        return bool(self.css & 0x01)

    @property
    def multiple_command_sets(self) -> bool:
        """CC.CSS = 6 and Identify with a command set identifier (CNS 05h and up) can be used."""
        return bool(self.css & 0x40)

    @property
    def admin_only(self) -> bool:
        """No I/O command set at all."""
        return bool(self.css & 0x80)


@attrs.frozen
class Vs(BitFields, width=32):
    """VS, version (Base 3.1.3.2)."""

    ter: int = bits(7, 0)
    mnr: int = bits(15, 8)
    mjr: int = bits(31, 16)

    def __str__(self) -> str:
        return f"{self.mjr}.{self.mnr}.{self.ter}" if self.ter else f"{self.mjr}.{self.mnr}"


class CommandSetSelected(IntEnum):
    """CC.CSS."""

    NVM = 0
    ALL_SUPPORTED = 6
    ADMIN_ONLY = 7


class ShutdownNotification(IntEnum):
    """CC.SHN."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class ShutdownStatus(IntEnum):
    """CSTS.SHST."""

    NORMAL_OPERATION = 0
    OCCURRING = 1
    COMPLETE = 2


@attrs.frozen
class Cc(BitFields, width=32):
    """CC, controller configuration (Base 3.1.3.5)."""

    en: bool = bit(0)
    """Enable. Clearing it is a controller reset."""
    css: int = bits(6, 4)
    """I/O command set selected, see CommandSetSelected."""
    mps: int = bits(10, 7)
    """Memory page size: 2 ** (12 + mps) bytes."""
    ams: int = bits(13, 11)
    """Arbitration: 0 round robin, 1 weighted round robin with urgent priority class, 7 vendor
    specific.
    """
    shn: int = bits(15, 14)
    """Shutdown notification, see ShutdownNotification."""
    iosqes: int = bits(19, 16)
    """I/O submission queue entry size: 2 ** iosqes bytes, 6 in all command sets so far."""
    iocqes: int = bits(23, 20)
    """I/O completion queue entry size: 2 ** iocqes bytes, 4 in all command sets so far."""
    crime: bool = bit(24)
    """Ready independent of media: CSTS.RDY may come before the media are ready."""

    @property
    def page_size(self) -> int:
        """Bytes of a memory page, the unit of PRPs."""
        return 1 << 12 + self.mps


@attrs.frozen
class Csts(BitFields, width=32):
    """CSTS, controller status (Base 3.1.3.6)."""

    rdy: bool = bit(0)
    """Ready: follows CC.EN."""
    cfs: bool = bit(1)
    """Controller fatal status: only a reset helps."""
    shst: int = bits(3, 2)
    """Shutdown status, see ShutdownStatus."""
    nssro: bool = bit(4)
    """NVM subsystem reset occurred; cleared by writing 1."""
    pp: bool = bit(5)
    """Processing paused: commands wait, for example while firmware is activated."""
    st: bool = bit(6)
    """Shutdown type: True if shst concerns an NVM subsystem shutdown."""

    @property
    def shutdown_complete(self) -> bool:
        """Power may be removed."""
        return self.shst == ShutdownStatus.COMPLETE


@attrs.frozen
class Aqa(BitFields, width=32):
    """AQA, admin queue attributes (Base 3.1.3.8). Sizes are zero-based, 2..4096 entries."""

    asqs: int = bits(11, 0)
    acqs: int = bits(27, 16)

    @classmethod
    def of(cls, entries: int, cq_entries: int | None = None) -> Aqa:
        """For queues of so many entries; the completion queue is as long as the submission queue if
        not said otherwise.
        """
        cq_entries = entries if cq_entries is None else cq_entries
        for size in (entries, cq_entries):
            if not 2 <= size <= 4096:
                raise ValueError(f"admin queue of {size} entries is not in 2..4096")
        return cls(asqs=entries - 1, acqs=cq_entries - 1)


@attrs.frozen
class Cmbloc(BitFields, width=32):
    """CMBLOC, controller memory buffer location (Base 3.1.3.11)."""

    bir: int = bits(2, 0)
    """Which BAR: 0, or 2..5."""
    cqmms: bool = bit(3)
    cqpds: bool = bit(4)
    cdpmls: bool = bit(5)
    cdpcils: bool = bit(6)
    cdmmms: bool = bit(7)
    cqda: bool = bit(8)
    ofst: int = bits(31, 12)
    """Offset in that BAR, in units of CMBSZ.SZU."""


@attrs.frozen
class Cmbsz(BitFields, width=32):
    """CMBSZ, controller memory buffer size and what it may hold (Base 3.1.3.12)."""

    sqs: bool = bit(0)
    cqs: bool = bit(1)
    lists: bool = bit(2)
    """PRP and SGL lists."""
    rds: bool = bit(3)
    wds: bool = bit(4)
    szu: int = bits(11, 8)
    sz: int = bits(31, 12)

    @property
    def unit(self) -> int:
        """Bytes: 4 KiB << 4 * szu. Also the unit of CMBLOC.OFST."""
        return 1 << 12 + 4 * self.szu

    @property
    def nbytes(self) -> int:
        """Size of the buffer; 0 if there is none."""
        return self.sz * self.unit


@attrs.frozen
class Bpinfo(BitFields, width=32):
    """BPINFO, boot partition information (Base 3.1.3.13)."""

    bpsz: int = bits(14, 0)
    """Size in units of 128 KiB."""
    brs: int = bits(25, 24)
    """Read status: 0 none requested, 1 in progress, 2 done, 3 failed."""
    abpid: bool = bit(31)

    @property
    def nbytes(self) -> int:
        """Size of a boot partition."""
        return self.bpsz * 128 * 1024


@attrs.frozen
class Bprsel(BitFields, width=32):
    """BPRSEL, boot partition read select (Base 3.1.3.14); size and offset in units of 4 KiB."""

    bprsz: int = bits(9, 0)
    bprof: int = bits(29, 10)
    bpid: bool = bit(31)


@attrs.frozen
class Cmbmsc(BitFields, width=64):
    """CMBMSC, controller memory buffer memory space control (Base 3.1.3.16)."""

    cre: bool = bit(0)
    """Shows CMBLOC and CMBSZ."""
    cmse: bool = bit(1)
    """Lets the controller answer at the controller base address."""
    cba: int = bits(63, 12)
    """Controller base address >> 12."""

    @property
    def address(self) -> int:
        """Controller base address in bytes."""
        return self.cba << 12


@attrs.frozen
class Cmbsts(BitFields, width=32):
    """CMBSTS, controller memory buffer status (Base 3.1.3.17)."""

    cbai: bool = bit(0)
    """The controller base address is invalid."""


@attrs.frozen
class Cmbebs(BitFields, width=32):
    """CMBEBS, controller memory buffer elasticity buffer size (Base 3.1.3.18)."""

    cmbszu: int = bits(3, 0)
    rbb: bool = bit(4)
    cmbwbz: int = bits(31, 8)

    @property
    def nbytes(self) -> int:
        """Size of the elasticity buffer."""
        return self.cmbwbz << 10 * self.cmbszu


@attrs.frozen
class Cmbswtp(BitFields, width=32):
    """CMBSWTP, controller memory buffer sustained write throughput (Base 3.1.3.19)."""

    cmbswtu: int = bits(3, 0)
    cmbswtv: int = bits(31, 8)

    @property
    def bytes_per_second(self) -> int:
        """Sustained write throughput."""
        return self.cmbswtv << 10 * self.cmbswtu


@attrs.frozen
class Crto(BitFields, width=32):
    """CRTO, controller ready timeouts in units of 500 ms (Base 3.1.3.21)."""

    crwmt: int = bits(15, 0)
    """With media."""
    crimt: int = bits(31, 16)
    """Independent of media."""

    @property
    def with_media_seconds(self) -> float:
        """How long ready with media may take."""
        return self.crwmt * 0.5

    @property
    def independent_of_media_seconds(self) -> float:
        """How long ready independent of media may take."""
        return self.crimt * 0.5


@attrs.frozen
class Pmrcap(BitFields, width=32):
    """PMRCAP, persistent memory region capabilities (Base 3.1.3.22)."""

    rds: bool = bit(3)
    wds: bool = bit(4)
    bir: int = bits(7, 5)
    pmrtu: int = bits(9, 8)
    pmrwbm: int = bits(13, 10)
    pmrto: int = bits(23, 16)
    cmss: bool = bit(24)

    @property
    def timeout_seconds(self) -> float:
        """How long PMRSTS.NRDY may take to follow PMRCTL.EN."""
        return self.pmrto * (60.0 if self.pmrtu == 1 else 0.5)


@attrs.frozen
class Pmrctl(BitFields, width=32):
    """PMRCTL, persistent memory region control (Base 3.1.3.23)."""

    en: bool = bit(0)


@attrs.frozen
class Pmrsts(BitFields, width=32):
    """PMRSTS, persistent memory region status (Base 3.1.3.24)."""

    err: int = bits(7, 0)
    nrdy: bool = bit(8)
    hsts: int = bits(11, 9)
    cbai: bool = bit(12)


@attrs.frozen
class Pmrebs(BitFields, width=32):
    """PMREBS, persistent memory region elasticity buffer size (Base 3.1.3.25)."""

    pmrszu: int = bits(3, 0)
    rbb: bool = bit(4)
    pmrwbz: int = bits(31, 8)

    @property
    def nbytes(self) -> int:
        """Size of the elasticity buffer."""
        return self.pmrwbz << 10 * self.pmrszu


@attrs.frozen
class Pmrswtp(BitFields, width=32):
    """PMRSWTP, persistent memory region sustained write throughput (Base 3.1.3.26)."""

    pmrswtu: int = bits(3, 0)
    pmrswtv: int = bits(31, 8)

    @property
    def bytes_per_second(self) -> int:
        """Sustained write throughput."""
        return self.pmrswtv << 10 * self.pmrswtu


@attrs.frozen
class Pmrmscl(BitFields, width=32):
    """PMRMSCL, persistent memory region memory space control, lower half (Base 3.1.3.27)."""

    cmse: bool = bit(1)
    cba: int = bits(31, 12)
