"""Identify pages of QEMU's nvme device: its source's values at the specification's offsets."""

from __future__ import annotations

from typing import Any


def put(page: bytearray, offset: int, size: int, value: int) -> None:
    """A little-endian number."""
    page[offset : offset + size] = value.to_bytes(size, "little")


def qemu_controller() -> bytes:
    """Identify Controller of QEMU 7.2: `-device nvme,serial=deadbeef`."""
    page = bytearray(4096)
    put(page, 0, 2, 0x1B36)  # vid
    put(page, 2, 2, 0x1AF4)  # ssvid
    page[4:24] = b"deadbeef".ljust(20)
    page[24:64] = b"QEMU NVMe Ctrl".ljust(40)
    page[64:72] = b"7.2.17".ljust(8)
    page[72] = 6  # rab
    page[73:76] = b"\x00\x54\x52"  # ieee
    page[77] = 7  # mdts
    put(page, 80, 4, 0x0001_0400)  # ver
    put(page, 92, 4, 0x100)  # oaes
    put(page, 96, 4, 0x8000)  # ctratt: extended LBA formats
    page[111] = 1  # cntrltype
    put(page, 256, 2, 0x10A)  # oacs
    page[258] = 3  # acl
    page[259] = 3  # aerl
    page[260] = 3  # frmw
    page[261] = 7  # lpa
    put(page, 266, 2, 0x157)  # wctemp
    put(page, 268, 2, 0x175)  # cctemp
    page[512] = 0x66  # sqes
    page[513] = 0x44  # cqes
    put(page, 516, 4, 256)  # nn
    put(page, 520, 2, 0x15D)  # oncs
    page[525] = 7  # vwc
    put(page, 534, 2, 3)  # ocfs
    put(page, 536, 4, 1)  # sgls
    page[768:797] = b"nqn.2019-08.org.qemu:deadbeef"
    put(page, 2048, 2, 0x9C4)  # psd[0].mp
    put(page, 2052, 4, 0x10)  # enlat
    put(page, 2056, 4, 0x4)  # exlat
    return bytes(page)


# What nvme-cli 2.13 (Debian 13) printed for that page, `nvme id-ctrl -o json`.
QEMU_CONTROLLER_JSON: dict[str, Any] = {
    "vid": 6966,
    "ssvid": 6900,
    "sn": "deadbeef            ",
    "mn": "QEMU NVMe Ctrl                          ",
    "fr": "7.2.17  ",
    "rab": 6,
    "ieee": 5395456,
    "cmic": 0,
    "mdts": 7,
    "cntlid": 0,
    "ver": 66560,
    "rtd3r": 0,
    "rtd3e": 0,
    "oaes": 256,
    "ctratt": 32768,
    "rrls": 0,
    "bpcap": 0,
    "nssl": 0,
    "plsi": 0,
    "cntrltype": 1,
    "fguid": "00000000-0000-0000-0000-000000000000",
    "crdt1": 0,
    "crdt2": 0,
    "crdt3": 0,
    "crcap": 0,
    "nvmsr": 0,
    "vwci": 0,
    "mec": 0,
    "oacs": 266,
    "acl": 3,
    "aerl": 3,
    "frmw": 3,
    "lpa": 7,
    "elpe": 0,
    "npss": 0,
    "avscc": 0,
    "apsta": 0,
    "wctemp": 343,
    "cctemp": 373,
    "mtfa": 0,
    "hmpre": 0,
    "hmmin": 0,
    "tnvmcap": 0,
    "unvmcap": 0,
    "rpmbs": 0,
    "edstt": 0,
    "dsto": 0,
    "fwug": 0,
    "kas": 0,
    "hctma": 0,
    "mntmt": 0,
    "mxtmt": 0,
    "sanicap": 0,
    "hmminds": 0,
    "hmmaxd": 0,
    "nsetidmax": 0,
    "endgidmax": 0,
    "anatt": 0,
    "anacap": 0,
    "anagrpmax": 0,
    "nanagrpid": 0,
    "pels": 0,
    "domainid": 0,
    "kpioc": 0,
    "mptfawr": 0,
    "megcap": 0,
    "tmpthha": 0,
    "cqt": 0,
    "sqes": 102,
    "cqes": 68,
    "maxcmd": 0,
    "nn": 256,
    "oncs": 349,
    "fuses": 0,
    "fna": 0,
    "vwc": 7,
    "awun": 0,
    "awupf": 0,
    "icsvscc": 0,
    "nwpc": 0,
    "acwu": 0,
    "ocfs": 3,
    "sgls": 1,
    "mnan": 0,
    "maxdna": 0,
    "maxcna": 0,
    "oaqd": 0,
    "rhiri": 0,
    "hirt": 0,
    "cmmrtd": 0,
    "nmmrtd": 0,
    "minmrtg": 0,
    "maxmrtg": 0,
    "trattr": 0,
    "mcudmq": 0,
    "mnsudmq": 0,
    "mcmr": 0,
    "nmcmr": 0,
    "mcdqpc": 0,
    "subnqn": "nqn.2019-08.org.qemu:deadbeef",
    "ioccsz": 0,
    "iorcsz": 0,
    "icdoff": 0,
    "fcatt": 0,
    "msdbd": 0,
    "ofcs": 0,
    "psds": [
        {
            "max_power": 2500,
            "max_power_scale": 0,
            "non-operational_state": 0,
            "entry_lat": 16,
            "exit_lat": 4,
            "read_tput": 0,
            "read_lat": 0,
            "write_tput": 0,
            "write_lat": 0,
            "idle_power": 0,
            "idle_scale": 0,
            "active_power": 0,
            "active_power_work": 0,
            "active_scale": 0,
            "emerg_power_fail_recover_time": 0,
            "emerg_power_fail_recover_scale": 0,
            "force_quiesce_vault_time": 0,
            "force_quiesce_vault_scale": 0,
            "emerg_power_fail_vault_time": 0,
            "emerg_power_fail_vault_scale": 0,
        }
    ],
}


def qemu_namespace() -> bytes:
    """Identify Namespace of QEMU 7.2: a drive of 1 GiB with 512-byte blocks."""
    page = bytearray(4096)
    for offset in (0, 8, 16):  # nsze, ncap, nuse
        put(page, offset, 8, 1 << 21)
    page[24] = 0x14  # nsfeat: deallocated error, optimal performance
    page[25] = 7  # nlbaf
    page[27] = 3  # mc
    page[28] = 0x1F  # dpc
    page[33] = 9  # dlfeat
    put(page, 64, 2, 0)  # npwg
    put(page, 68, 2, 7)  # npdg
    put(page, 70, 2, 7)  # npda
    put(page, 74, 2, 128)  # mssrl
    put(page, 76, 4, 128)  # mcl
    page[80] = 127  # msrc
    page[120:128] = bytes.fromhex("525400fffe000001")  # eui64
    for index, (ms, ds) in enumerate([(0, 9), (8, 9), (16, 9), (64, 9), (0, 12), (8, 12), (16, 12), (64, 12)]):
        put(page, 128 + 4 * index, 2, ms)
        page[128 + 4 * index + 2] = ds
    return bytes(page)


# What nvme-cli 2.13 (Debian 13) printed for that page, `nvme id-ns -o json`.
QEMU_NAMESPACE_JSON: dict[str, Any] = {
    "nsze": 2097152,
    "ncap": 2097152,
    "nuse": 2097152,
    "nsfeat": 20,
    "nlbaf": 7,
    "flbas": 0,
    "mc": 3,
    "dpc": 31,
    "dps": 0,
    "nmic": 0,
    "rescap": 0,
    "fpi": 0,
    "dlfeat": 9,
    "nawun": 0,
    "nawupf": 0,
    "nacwu": 0,
    "nabsn": 0,
    "nabo": 0,
    "nabspf": 0,
    "noiob": 0,
    "nvmcap": 0,
    "npwg": 0,
    "npwa": 0,
    "npdg": 7,
    "npda": 7,
    "nows": 0,
    "mssrl": 128,
    "mcl": 128,
    "msrc": 127,
    "kpios": 0,
    "nulbaf": 0,
    "kpiodaag": 0,
    "anagrpid": 0,
    "nsattr": 0,
    "nvmsetid": 0,
    "endgid": 0,
    "nguid": "00000000000000000000000000000000",
    "eui64": "525400fffe000001",
    "lbafs": [
        {"ms": 0, "ds": 9, "rp": 0},
        {"ms": 8, "ds": 9, "rp": 0},
        {"ms": 16, "ds": 9, "rp": 0},
        {"ms": 64, "ds": 9, "rp": 0},
        {"ms": 0, "ds": 12, "rp": 0},
        {"ms": 8, "ds": 12, "rp": 0},
        {"ms": 16, "ds": 12, "rp": 0},
        {"ms": 64, "ds": 12, "rp": 0},
    ],
    "vs": [],
}
