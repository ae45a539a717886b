"""Identify data as nvme-cli 2.13 prints them with `-o json`, key by key and type by type.

Numbers are numbers, 128-bit capacities included; identifiers are hex strings. One difference to
nvme-cli is intended: it prints some 32-bit values from 2**31 on as negative numbers.
"""

from __future__ import annotations

from typing import Any

import attrs

_PADDED = {"sn": 20, "mn": 40, "fr": 8}
_PERFORMANCE = frozenset({"npwg", "npwa", "npdg", "npda", "nows"})
_FORMATS_ONLY = frozenset({"nlbaf", "mc", "dpc", "nulbaf"})
_ROW = 16


def c_string(value: str) -> str:
    """`value` up to its first NUL, as C prints it."""
    return value.split("\0", 1)[0]


def ascii_rows(data: bytes, width: int = _ROW) -> list[str]:
    """Bytes as nvme-cli shows them in JSON: rows of characters, a dot for what isn't printable."""
    text = "".join(chr(byte) if 0x21 <= byte <= 0x7E else "." for byte in data)
    return [text[at : at + width] for at in range(0, len(text), width)]


def _power_state(state: Any) -> dict[str, int]:
    return {
        "max_power": state.mp,
        "max_power_scale": state.flags & 1,
        "non-operational_state": state.flags >> 1 & 1,
        "entry_lat": state.enlat,
        "exit_lat": state.exlat,
        "read_tput": state.rrt,
        "read_lat": state.rrl,
        "write_tput": state.rwt,
        "write_lat": state.rwl,
        "idle_power": state.idlp,
        "idle_scale": state.ips >> 6,
        "active_power": state.actp,
        "active_power_work": state.apws & 7,
        "active_scale": state.apws >> 6,
        "emerg_power_fail_recover_time": state.epfrt,
        "emerg_power_fail_recover_scale": state.epfr_fqv_ts & 0xF,
        "force_quiesce_vault_time": state.fqvt,
        "force_quiesce_vault_scale": state.epfr_fqv_ts >> 4,
        "emerg_power_fail_vault_time": state.epfvt,
        "emerg_power_fail_vault_scale": state.epfvts & 0xF,
    }


def controller(identify: Any) -> dict[str, Any]:
    """The output of `nvme id-ctrl -o json` for an IdentifyController."""
    result: dict[str, Any] = {}
    for field in attrs.fields(type(identify)):
        name, value = field.name, getattr(identify, field.name)
        if name in ("dctype", "vs", "psds"):
            continue
        if name in _PADDED:
            result[name] = c_string(value.ljust(_PADDED[name]))
        elif name == "subnqn":
            if c_string(value):
                result[name] = c_string(value)
        elif name == "fguid":
            result[name] = str(value)
        else:
            result[name] = value
    result["psds"] = [_power_state(state) for state in identify.power_states]
    return result


def namespace(identify: Any, *, formats_only: bool = False) -> dict[str, Any]:
    """The output of `nvme id-ns -o json` for an IdentifyNamespace; formats_only: that of `nvme
    id-ns-lba-format`.
    """
    result: dict[str, Any] = {}
    for field in attrs.fields(type(identify)):
        name, value = field.name, getattr(identify, field.name)
        if name in ("vs", "lbafs") or (formats_only and name not in _FORMATS_ONLY):
            continue
        if name in _PERFORMANCE and not identify.nsfeat & (0x10 if name == "npdg" else 0x30):
            continue
        result[name] = value.hex() if name in ("nguid", "eui64") else value
    result["lbafs"] = [{"ms": lbaf.ms, "ds": lbaf.ds, "rp": lbaf.rp} for lbaf in identify.lbafs[: identify.nlbaf + 1]]
    result["vs"] = ascii_rows(identify.vs.split(b"\0", 1)[0])
    return result
