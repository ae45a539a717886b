"""What an emulated controller can have beyond a plain drive: an option for each, off unless it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from nvme_async.emulator.parsing import in_range, parse_bool, parse_int, parse_seconds, parse_size
from nvme_async.errors import ConfigurationError

_SHORTEST = 0.001


def _parse_duration(text: str | float | bool, name: str) -> float:
    """Seconds; "on" is as short as it gets, "off" is 0."""
    try:
        return _SHORTEST if parse_bool(text if isinstance(text, bool) else str(text), name) else 0.0
    except ConfigurationError:
        return parse_seconds(text, name)


@attrs.frozen(kw_only=True)
class Extras:
    """Features of an emulated controller that a plain drive doesn't have.

    Attributes:
        capacity: bytes of all namespaces together (TNVMCAP); offers Namespace Management and
            Attachment. Created namespaces are on the same kind of medium.
        self_test: seconds that a short device self-test takes; an extended one takes twice as long.
        sanitize: seconds that a sanitize takes.
        firmware_slots: 2 to 7; offers Firmware Image Download and Commit. An image is what begins
            with eight printable characters, which are its revision.
        lba_status: Get LBA Status and its log page.
        endurance: an endurance group, with its log pages.
        telemetry: the telemetry log pages.
        persistent_events: the Persistent Event log page.
        security: Security Send and Receive, as far as TCG's level 0 discovery.
        write_cache: RAM media have a volatile write cache of 64 MiB, which Faults.power_loss()
            empties.
        ana: number of ANA groups, which the namespaces are in by turns.
    """

    capacity: int = attrs.field(default=0, validator=in_range(0, 1 << 50))
    self_test: float = 0.0
    sanitize: float = 0.0
    firmware_slots: int = 0
    lba_status: bool = False
    endurance: bool = False
    telemetry: bool = False
    persistent_events: bool = False
    security: bool = False
    write_cache: bool = False
    ana: int = attrs.field(default=0, validator=in_range(0, 16))

    def __attrs_post_init__(self) -> None:
        if self.firmware_slots and not 2 <= self.firmware_slots <= 7:
            raise ConfigurationError(f"firmware_slots={self.firmware_slots}: must be 0 or 2 to 7")


PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "capacity": parse_size,
    "self_test": _parse_duration,
    "sanitize": _parse_duration,
    "firmware_slots": parse_int,
    "lba_status": parse_bool,
    "endurance": parse_bool,
    "telemetry": parse_bool,
    "persistent_events": parse_bool,
    "security": parse_bool,
    "write_cache": parse_bool,
    "ana": parse_int,
}
