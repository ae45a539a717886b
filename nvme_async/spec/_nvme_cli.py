"""Identify data as nvme-cli 2.3 prints them with `-o json`, key by key and type by type.

128-bit capacities are strings, identifiers are hex strings, everything else is a number. One
difference to nvme-cli is intended: it prints 32-bit values from 2**31 on as negative numbers.
"""

from __future__ import annotations

from typing import Any

import attrs

_CAPACITIES = frozenset({"tnvmcap", "unvmcap", "megcap", "maxdna", "nvmcap"})
_PADDED = {"sn": 20, "mn": 40, "fr": 8}
_LATER = frozenset(
    {
        "bpcap",
        "nssl",
        "plsi",
        "crcap",
        "kpioc",
        "mptfawr",
        "tmpthha",
        "cqt",
        "oaqd",
        "rhiri",
        "hirt",
        "cmmrtd",
        "nmmrtd",
        "minmrtg",
        "maxmrtg",
        "trattr",
        "mcudmq",
        "mnsudmq",
        "mcmr",
        "nmcmr",
        "mcdqpc",
        "kpios",
        "kpiodaag",
    }
)
"""Fields that the specification has got since."""
_PERFORMANCE = frozenset({"npwg", "npwa", "npdg", "npda", "nows"})


def c_string(value: str) -> str:
    """`value` up to its first NUL, as C prints it."""
    return value.split("\0", 1)[0]


def _power_state(state: Any) -> dict[str, int]:
    return {
        "max_power": state.mp,
        "flags": state.flags,
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
    }


def controller(identify: Any) -> dict[str, Any]:
    """The output of `nvme id-ctrl -o json` for an IdentifyController."""
    result: dict[str, Any] = {}
    for field in attrs.fields(type(identify)):
        name, value = field.name, getattr(identify, field.name)
        if name in ("dctype", "vs", "psds") or name in _LATER:
            continue
        if name in _PADDED:
            result[name] = c_string(value.ljust(_PADDED[name]))
        elif name == "subnqn":
            if c_string(value):
                result[name] = c_string(value)
        elif name == "fguid" or name in _CAPACITIES:
            result[name] = str(value)
        else:
            result[name] = value
    result["psds"] = [_power_state(state) for state in identify.power_states]
    return result


def namespace(identify: Any) -> dict[str, Any]:
    """The output of `nvme id-ns -o json` for an IdentifyNamespace."""
    result: dict[str, Any] = {}
    for field in attrs.fields(type(identify)):
        name, value = field.name, getattr(identify, field.name)
        if name in ("vs", "lbafs") or name in _LATER:
            continue
        if name in _PERFORMANCE and not identify.nsfeat & 0x10:
            continue
        if name in _CAPACITIES:
            result[name] = str(value)
        elif name in ("nguid", "eui64"):
            result[name] = value.hex()
        else:
            result[name] = value
    result["lbafs"] = [{"ms": lbaf.ms, "ds": lbaf.ds, "rp": lbaf.rp} for lbaf in identify.lbafs[: identify.nlbaf + 1]]
    return result
