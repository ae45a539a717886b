"""nvme-cli's JSON of registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvme_async.spec.registers import WIDE, Register

NAMES = {
    Register.CAP: "Controller Capabilities",
    Register.VS: "Version",
    Register.INTMS: "Interrupt Vector Mask Set",
    Register.INTMC: "Interrupt Vector Mask Clear",
    Register.CC: "Controller Configuration",
    Register.CSTS: "Controller Status",
    Register.NSSR: "NVM Subsystem Reset",
    Register.AQA: "Admin Queue Attributes",
    Register.ASQ: "Admin Submission Queue Base Address",
    Register.ACQ: "Admin Completion Queue Base Address",
    Register.CMBLOC: "Controller Memory Buffer Location",
    Register.CMBSZ: "Controller Memory Buffer Size",
    Register.BPINFO: "Boot Partition Information",
    Register.BPRSEL: "Boot Partition Read Select",
    Register.BPMBL: "Boot Partition Memory Buffer Location",
    Register.CMBMSC: "Controller Memory Buffer Memory Space Control",
    Register.CMBSTS: "Controller Memory Buffer Status",
    Register.CMBEBS: "Controller Memory Buffer Elasticity Buffer Size",
    Register.CMBSWTP: "Controller Memory Buffer Sustained Write Throughput",
    Register.NSSD: "NVM Subsystem Shutdown",
    Register.CRTO: "Controller Ready Timeouts",
    Register.PMRCAP: "Persistent Memory Region Capabilities",
    Register.PMRCTL: "Persistent Memory Region Control",
    Register.PMRSTS: "Persistent Memory Region Status",
    Register.PMREBS: "Persistent Memory Region Elasticity Buffer Size",
    Register.PMRSWTP: "Persistent Memory Region Sustained Write Throughput",
    Register.PMRMSCL: "Persistent Memory Region Memory Space Control Lower",
    Register.PMRMSCU: "Persistent Memory Region Memory Space Control Upper",
}
_UNITS = ("Bytes", "One KB", "One MB", "One GB")
_CMB_UNITS = ("4 KB", "64 KB", "1 MB", "16 MB", "256 MB", "4 GB", "64 GB")
_HEALTH = ("Normal Operation", "Restore Error", "Read Only", "Unreliable")
Values = dict[Register, int]
Fields = dict[str, Any]


def _of(words: tuple[str, ...], index: int) -> str:
    return words[index] if index < len(words) else "Reserved"


def _supported(value: int) -> str:
    return "Supported" if value & 1 else "Not supported"


def _yes(value: int) -> str:
    return "Yes" if value & 1 else "No"


def _hex(value: int) -> str:
    """C's %#x."""
    return f"{value:#x}" if value else "0"


def _cap(value: int, all_: Values) -> Fields:
    css, scope = value >> 37 & 0xFF, value >> 46 & 3
    return {
        "cap": f"{value:x}",
        "NVM Subsystem Shutdown Enhancements Supported (NSSES)": _supported(value >> 61),
        "Controller Ready With Media Support (CRWMS)": _supported(value >> 59),
        "Controller Ready Independent of Media Support (CRIMS)": _supported(value >> 60),
        "NVM Subsystem Shutdown Supported (NSSS)": _supported(value >> 58),
        "Controller Memory Buffer Supported (CMBS):": _supported(value >> 57),
        "Persistent Memory Region Supported (PMRS)": _supported(value >> 56),
        "Memory Page Size Maximum (MPSMAX)": f"{1 << 12 + (value >> 52 & 0xF)} bytes",
        "Memory Page Size Minimum (MPSMIN)": f"{1 << 12 + (value >> 48 & 0xF)} bytes",
        "Controller Power Scope (CPS)": ("Not Reported", "Controller scope", "Domain scope", "NVM subsystem scope")[
            scope
        ],
        "Boot Partition Support (BPS)": _yes(value >> 45),
        "Command Sets Supported (CSS)": [
            {
                "NVM command set": _supported(css),
                "One or more I/O Command Sets": _supported(css >> 6),
                "Only Admin Command Set" if css & 0x80 else "I/O Command Set": "Supported",
            }
        ],
        "NVM Subsystem Reset Supported (NSSRS)": _yes(value >> 36),
        "Doorbell Stride (DSTRD)": f"{1 << 2 + (value >> 32 & 0xF)} bytes",
        "Timeout (TO)": f"{(value >> 24 & 0xFF) * 500} ms",
        "Arbitration Mechanism Supported (AMS)": [
            {"Weighted Round Robin with Urgent Priority Class": _supported(value >> 18)}
        ],
        "Contiguous Queues Required (CQR)": _yes(value >> 16),
        "Maximum Queue Entries Supported (MQES)": (value & 0xFFFF) + 1,
    }


def _vs(value: int, all_: Values) -> Fields:
    return {
        "Version": f"{value:x}",
        "NVMe specification": f"{value >> 16}.{value >> 8 & 0xFF}.{value & 0xFF}",
    }


def _cc(value: int, all_: Values) -> Fields:
    shutdown = ("No notification; no effect", "Normal shutdown notification", "Abrupt shutdown notification")
    arbitration = {0: "Round Robin", 1: "Weighted Round Robin with Urgent Priority Class", 7: "Vendor Specific"}
    sets = {0: "NVM Command Set", 6: "All supported I/O Command Sets", 7: "Admin Command Set only"}
    return {
        "cc": f"{value:x}",
        "Controller Ready Independent of Media Enable (CRIME)": "Enabled" if value >> 24 & 1 else "Disabled",
        "I/O Completion Queue Entry Size (IOCQES): ": f"{1 << (value >> 20 & 0xF)} bytes",
        "I/O Submission Queue Entry Size (IOSQES)": f"{1 << (value >> 16 & 0xF)} bytes",
        "Shutdown Notification (SHN)": _of(shutdown, value >> 14 & 3),
        "Arbitration Mechanism Selected (AMS)": arbitration.get(value >> 11 & 7, "Reserved"),
        "Memory Page Size (MPS)": f"{1 << 12 + (value >> 7 & 0xF)} bytes",
        "I/O Command Set Selected (CSS)": sets.get(value >> 4 & 7, "Reserved"),
        "Enable (EN)": _yes(value),
    }


def _csts(value: int, all_: Values) -> Fields:
    states = (
        "Normal operation (no shutdown has been requested)",
        "Shutdown processing occurring",
        "Shutdown processing complete",
    )
    return {
        "csts": f"{value:x}",
        "Shutdown Type (ST)": "Subsystem" if value >> 6 & 1 else "Controller",
        "Processing Paused (PP)": _yes(value >> 5),
        "NVM Subsystem Reset Occurred (NSSRO)": _yes(value >> 4),
        "Shutdown Status (SHST)": _of(states, value >> 2 & 3),
        "Controller Fatal Status (CFS)": "True" if value >> 1 & 1 else "False",
        "Ready (RDY)": _yes(value),
    }


def _cmbloc(value: int, all_: Values) -> Fields:
    if not all_.get(Register.CMBSZ):
        return {"cmbloc": f"{value:x}", "Result": "Controller Memory Buffer feature is not supported"}
    rules = (
        ("CMB Data Metadata Mixed Memory Support (CDMMMS)", 7),
        ("CMB Data Pointer and Command Independent Locations Support (CDPCILS)", 6),
        ("CMB Data Pointer Mixed Locations Support (CDPMLS)", 5),
        ("CMB Queue Physically Discontiguous Support (CQPDS)", 4),
        ("CMB Queue Mixed Memory Support (CQMMS)", 3),
    )
    return {
        "cmbloc": f"{value:x}",
        "Offset (OFST) (See cmbsz.szu for granularity)": f"{value >> 12:#x}",
        "CMB Queue Dword Alignment (CQDA)": value >> 8 & 1,
        **{name: "Not enforced" if value >> bit & 1 else "Enforced" for name, bit in rules},
        "Base Indicator Register (BIR)": f"{value & 7:#x}",
    }


def _cmbsz(value: int, all_: Values) -> Fields:
    if not value:
        return {"cmbsz": "0", "Result": "Controller Memory Buffer feature is not supported"}
    uses = (
        ("Write Data Support (WDS)", 4),
        ("Read Data Support (RDS)", 3),
        ("PRP SGL List Support (LISTS)", 2),
        ("Completion Queue Support (CQS)", 1),
        ("Submission Queue Support (SQS)", 0),
    )
    return {
        "cmbsz": f"{value:x}",
        "Size (SZ)": value >> 12,
        "Size Units (SZU)": _of(_CMB_UNITS, value >> 8 & 0xF),
        **{name: _supported(value >> bit) for name, bit in uses},
    }


def _bpinfo(value: int, all_: Values) -> Fields:
    states = (
        "No Boot Partition read operation requested",
        "Boot Partition read in progress",
        "Boot Partition read completed successfully",
        "Error completing Boot Partition read",
    )
    return {
        "bpinfo": f"{value:x}",
        "Active Boot Partition ID (ABPID)": value >> 31,
        "Boot Read Status (BRS)": states[value >> 24 & 3],
        "Boot Partition Size (BPSZ)": value & 0x7FFF,
    }


def _pmrcap(value: int, all_: Values) -> Fields:
    return {
        "pmrcap": f"{value:x}",
        "Controller Memory Space Supported (CMSS)": _supported(value >> 24),
        "Persistent Memory Region Timeout (PMRTO)": f"{value >> 16 & 0xFF:x}",
        "Persistent Memory Region Write Barrier Mechanisms (PMRWBM)": f"{value >> 10 & 0xF:x}",
        "Persistent Memory Region Time Units (PMRTU)": "minutes" if value >> 8 & 3 else "500 milliseconds",
        "Base Indicator Register (BIR)": f"{value >> 5 & 7:x}",
        "Write Data Support (WDS)": _supported(value >> 4),
        "Read Data Support (RDS)": _supported(value >> 3),
    }


def _pmrsts(value: int, all_: Values) -> Fields:
    ready = not value >> 8 & 1 and all_.get(Register.PMRCTL, 1) & 1
    return {
        "pmrsts": f"{value:x}",
        "Controller Base Address Invalid (CBAI)": f"{value >> 12 & 1:x}",
        "Health Status (HSTS)": _of(_HEALTH, value >> 9 & 7),
        "Not Ready (NRDY)": "Ready" if ready else "Not ready",
        "Error (ERR)": f"{value & 0xFF:x}",
    }


_EXPLAIN: dict[Register, Callable[[int, Values], Fields]] = {
    Register.CAP: _cap,
    Register.VS: _vs,
    Register.INTMS: lambda value, _: {"intms": f"{value:x}", "Interrupt Vector Mask Set (IVMS)": f"{value:x}"},
    Register.INTMC: lambda value, _: {"intmc": f"{value:x}", "Interrupt Vector Mask Set (IVMC)": f"{value:x}"},
    Register.CC: _cc,
    Register.CSTS: _csts,
    Register.NSSR: lambda value, _: {"nssr": f"{value:x}", "NVM Subsystem Reset Control (NSSRC)": value},
    Register.AQA: lambda value, _: {
        "aqa": f"{value:x}",
        "Admin Completion Queue Size (ACQS)": (value >> 16 & 0xFFF) + 1,
        "Admin Submission Queue Size (ASQS)": (value & 0xFFF) + 1,
    },
    Register.ASQ: lambda value, _: {"asq": f"{value:x}", "Admin Submission Queue Base (ASQB)": f"{value:x}"},
    Register.ACQ: lambda value, _: {"acq": f"{value:x}", "Admin Completion Queue Base (ACQB)": f"{value:x}"},
    Register.CMBLOC: _cmbloc,
    Register.CMBSZ: _cmbsz,
    Register.BPINFO: _bpinfo,
    Register.BPRSEL: lambda value, _: {
        "bprsel": f"{value:x}",
        "Boot Partition Identifier (BPID)": value >> 31,
        "Boot Partition Read Offset (BPROF)": f"{value >> 10 & 0xFFFFF:x}",
        "Boot Partition Read Size (BPRSZ)": f"{value & 0x3FF:x}",
    },
    Register.BPMBL: lambda value, _: {
        "bpmbl": f"{value:x}",
        "Boot Partition Memory Buffer Base Address (BMBBA)": f"{value >> 12:x}",
    },
    Register.CMBMSC: lambda value, _: {
        "cmbmsc": f"{value:x}",
        "Controller Base Address (CBA)": f"{value >> 12:x}",
        "Controller Memory Space Enable (CMSE)": f"{value >> 1 & 1:x}",
        "Capabilities Registers Enabled (CRE)": "Enabled" if value & 1 else "Not enabled",
    },
    Register.CMBSTS: lambda value, _: {
        "cmbsts": f"{value:x}",
        "Controller Base Address Invalid (CBAI)": f"{value & 1:x}",
    },
    Register.CMBEBS: lambda value, _: {
        "cmbebs": _hex(value),
        "CMB Elasticity Buffer Size Base (CMBWBZ)": _hex(value >> 8),
        "CMB Read Bypass Behavior (CMBRBB)": "shall" if value >> 4 & 1 else "may",
        "CMB Elasticity Buffer Size Units (CMBSZU)": _of(_UNITS, value & 0xF),
    },
    Register.CMBSWTP: lambda value, _: {
        "cmbswtp": _hex(value),
        "CMB Sustained Write Throughput (CMBSWTV)": _hex(value >> 8),
        "CMB Sustained Write Throughput Units (CMBSWTU)": f"{_of(_UNITS, value & 0xF)}/second",
    },
    Register.NSSD: lambda value, _: {"NVM Subsystem Shutdown Control (NSSC)": _hex(value)},
    Register.CRTO: lambda value, _: {
        "crto": f"{value:x}",
        "CRIMT": f"{(value >> 16) * 500 // 1000} secs",
        "CRWMT": f"{(value & 0xFFFF) * 500 // 1000} secs",
    },
    Register.PMRCAP: _pmrcap,
    Register.PMRCTL: lambda value, _: {"pmrctl": f"{value:x}", "Enable (EN)": "Ready" if value & 1 else "Disabled"},
    Register.PMRSTS: _pmrsts,
    Register.PMREBS: lambda value, _: {
        "pmrebs": f"{value:x}",
        "PMR Elasticity Buffer Size Base (PMRWBZ)": f"{value >> 8:x}",
        "Read Bypass Behavior": "Shall" if value >> 4 & 1 else "May",
        "PMR Elasticity Buffer Size Units (PMRSZU)": _of(_UNITS, value & 0xF),
    },
    Register.PMRSWTP: lambda value, _: {
        "pmrswtp": f"{value:x}",
        "PMR Sustained Write Throughput (PMRSWTV)": f"{value >> 8:x}",
        "PMR Sustained Write Throughput Units (PMRSWTU)": f"{_of(_UNITS, value & 0xF)}/second",
    },
    Register.PMRMSCL: lambda value, _: {
        "pmrmscl": _hex(value),
        "Controller Base Address (CBA)": _hex(value >> 12),
        "Controller Memory Space Enable (CMSE)": _hex(value >> 1 & 1),
    },
    Register.PMRMSCU: lambda value, _: {"pmrmscu": _hex(value), "Controller Base Address (CBA)": _hex(value)},
}


def symbol(register: Register) -> str:
    """nvme-cli's short name."""
    return register.name.lower()


def explain(register: Register, value: int, values: Values | None = None) -> Fields:
    """The fields of a register. values: those of the registers that say what it means."""
    return _EXPLAIN[register](value, {register: value} if values is None else values)


def registers(values: Values, *, human: bool) -> dict[str, Any]:
    """`nvme show-regs -o json`, of the registers that were read. NSSD and CRTO have their place
    behind CMBSWTP.
    """
    if not human:
        return {symbol(register): value for register, value in values.items()}
    return {symbol(register): [explain(register, value, values)] for register, value in values.items()}


def one_register(register: Register, value: int, *, human: bool) -> dict[str, Any]:
    """`nvme get-reg -o json`."""
    key = f"register: {f'0x{register:02x}' if register else '0000'}"
    if human:
        return {key: [{NAMES[register]: value, symbol(register): [explain(register, value)]}]}
    name = "version" if register is Register.VS else symbol(register)
    return {key: [{"name": name, "value": value}]}


def one_property(register: Register, value: int, *, human: bool) -> dict[str, Any]:
    """`nvme get-property -o json`."""
    if human:
        return explain(register, value)
    return {"property": f"0x{register:02x}", "name": NAMES[register], "value": f"{value:x}"}


def is_wide(register: Register) -> bool:
    """Whether it has 64 bits."""
    return register in WIDE
