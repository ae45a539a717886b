"""Identify Controller and Identify Namespace as lines of text, with nvme-cli's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from nvme_async.cli.nvme.explain import Rows, bit_lines
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace, PowerState

# Shown in hexadecimal, as nvme-cli does; everything else is decimal.
# fmt: off
_HEX = frozenset({
    "vid", "ssvid", "cmic", "cntlid", "ver", "rtd3r", "rtd3e", "oaes", "ctratt", "rrls", "oacs", "frmw",
    "lpa", "avscc", "apsta", "rpmbs", "hctma", "sanicap", "sqes", "cqes", "oncs", "fuses", "fna", "vwc",
    "ocfs", "sgls", "fcatt", "nsze", "ncap", "nuse", "nsfeat", "flbas", "mc", "dpc", "dps", "nmic",
    "rescap", "fpi",
})
# fmt: on
_WORKLOADS = {0: "-", 1: "1MiB 32 RW, 30s idle", 2: "80K 128KiB SW"}
_WIDTH = 10


def _printable(value: str) -> str:
    """Text from a device, safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in value.split("\0", 1)[0])


def _value(name: str, value: Any) -> str:
    if name == "ieee":
        return f"{value:06x}"
    if isinstance(value, bytes):
        return value.hex()
    if name in _HEX:
        return f"{value:#x}" if value else "0"
    return _printable(str(value))


def _lines(identify: attrs.AttrsInstance, names: Iterator[str], width: int, bits: Mapping[str, Rows]) -> Iterator[str]:
    for name in names:
        value = getattr(identify, name)
        yield f"{name:<{width}}: {_value(name, value)}"
        if isinstance(value, int):
            yield from bit_lines(bits.get(name, ()), value)


def _watts(value: int, scale: int) -> str:
    """scale: 0 not reported, 1 in 0.1 mW, 2 in 10 mW."""
    if scale == 1:
        return f"{value // 10000}.{value % 10000:04}W"
    if scale == 2:
        return f"{value // 100}.{value % 100:02}W"
    return "reserved" if scale else "-"


def _power_state(index: int, state: PowerState) -> Iterator[str]:
    operational = "operational" if state.operational else "non-operational"
    indent = " " * 12
    yield (
        f"ps {index:>6} : mp:{_watts(state.mp, 1 if state.flags & 1 else 2)} {operational} "
        f"enlat:{state.enlat} exlat:{state.exlat} rrt:{state.rrt} rrl:{state.rrl}"
    )
    yield (
        f"{indent}rwt:{state.rwt} rwl:{state.rwl} idle_power:{_watts(state.idlp, state.ips >> 6)} "
        f"active_power:{_watts(state.actp, state.apws >> 6)}"
    )
    yield f"{indent}active_power_workload:{_WORKLOADS.get(state.apws & 7, 'reserved')}"


def controller_text(identify: IdentifyController, bits: Mapping[str, Rows] | None = None) -> str:
    """`field : value` lines; bits: explanations of bit fields."""
    names = (field.name for field in attrs.fields(IdentifyController))
    lines = ["NVME Identify Controller:"]
    lines += _lines(identify, (name for name in names if name not in ("dctype", "psds", "vs")), _WIDTH, bits or {})
    for index, state in enumerate(identify.power_states):
        lines += _power_state(index, state)
    return "\n".join(lines)


def namespace_text(nsid: int, identify: IdentifyNamespace, bits: Mapping[str, Rows] | None = None) -> str:
    """`field : value` lines and the LBA formats; bits: explanations of bit fields."""
    keys = identify.to_json()  # omits what the namespace does not report
    names = (field.name for field in attrs.fields(IdentifyNamespace))
    lines = [f"NVME Identify Namespace {nsid}:"]
    lines += _lines(identify, (name for name in names if name in keys and name not in ("lbafs", "vs")), 8, bits or {})
    for index, lbaf in enumerate(identify.supported_formats):
        in_use = " (in use)" if index == identify.lbaf_index else ""
        rp = f"{lbaf.rp:#x}" if lbaf.rp else "0"
        lines.append(f"lbaf {index:2} : ms:{lbaf.ms:<3} lbads:{lbaf.ds:<2} rp:{rp}{in_use}")
    return "\n".join(lines)
