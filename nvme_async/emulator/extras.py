"""Features of an emulated controller beyond a plain drive: one option each, off by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from nvme_async.emulator.parsing import in_range, parse_bool, parse_int, parse_seconds, parse_size, parse_time
from nvme_async.errors import ConfigurationError
from nvme_async.native._emulator import MAX_CHANNELS

_SHORTEST = 0.001


def _parse_duration(text: str | float | bool, name: str) -> float:
    """Seconds; "on" is the shortest time, "off" is 0."""
    try:
        return _SHORTEST if parse_bool(text if isinstance(text, bool) else str(text), name) else 0.0
    except ConfigurationError:
        return parse_seconds(text, name)


def _parse_copy_formats(text: str | tuple[int, ...], name: str) -> tuple[int, ...]:
    """From "0/1/2/3"; format 0 is always among them."""
    if isinstance(text, tuple):
        return text
    try:
        forms = {int(form) for form in text.split("/")}
    except ValueError:
        forms = {-1}
    if not forms <= {0, 1, 2, 3}:
        raise ConfigurationError(f"{name}={text!r}: must be some of 0/1/2/3")
    return tuple(sorted(forms | {0}))


def _parse_delays(text: str | tuple[float, ...], name: str) -> tuple[float, ...]:
    """One to three times, as "100ms/1s/5s"."""
    if isinstance(text, tuple):
        return text
    return tuple(parse_time(one, name) for one in text.split("/"))


CMB_USES = ("submission", "completion", "lists", "read", "write")
PMR_HEALTHS = ("normal", "restore_error", "read_only", "unreliable")
SGL_KINDS = ("byte", "dword", "bit_bucket", "metadata", "longer")


def _parse_health(text: str, name: str) -> str:
    if text not in PMR_HEALTHS:
        raise ConfigurationError(f"{name}={text!r}: must be one of {', '.join(PMR_HEALTHS)}")
    return text


def _parse_cmb_uses(text: str | tuple[str, ...], name: str) -> tuple[str, ...]:
    """From "submission/read/write"."""
    if isinstance(text, tuple):
        return text
    uses = tuple(dict.fromkeys(text.split("/")))
    if not set(uses) <= set(CMB_USES):
        raise ConfigurationError(f"{name}={text!r}: must be some of {'/'.join(CMB_USES)}")
    return uses


def _parse_sgl(text: str | tuple[str, ...], name: str) -> tuple[str, ...]:
    """From "dword/bit_bucket"; "on" is "byte/bit_bucket/metadata", "off" is nothing."""
    if isinstance(text, tuple):
        return text
    if text in ("on", "off"):
        return ("byte", "bit_bucket", "metadata") if text == "on" else ()
    kinds = tuple(dict.fromkeys(text.split("/")))
    if not set(kinds) <= set(SGL_KINDS) or ("byte" in kinds) == ("dword" in kinds):
        raise ConfigurationError(
            f"{name}={text!r}: must be on, off, or byte or dword and some of {'/'.join(SGL_KINDS[2:])}"
        )
    return kinds


@attrs.frozen(kw_only=True)
class Extras:
    """Features of an emulated controller that a plain drive doesn't have.

    Attributes:
        capacity: bytes of all namespaces together (TNVMCAP); offers Namespace Management and
            Attachment. Created namespaces are on the same kind of medium.
        self_test: seconds that a short device self-test takes; an extended one takes twice as long.
        sanitize: seconds that a sanitize takes.
        firmware_slots: 2 to 7; offers Firmware Image Download and Commit. An image starts with
            eight printable characters, its revision.
        lba_status: Get LBA Status and its log page.
        endurance: an endurance group, with its log pages.
        telemetry: the telemetry log pages.
        persistent_events: the Persistent Event log page.
        security: Security Send and Receive, as far as TCG's level 0 discovery.
        write_cache: RAM media have a volatile write cache of 64 MiB, which Faults.power_loss()
            drops. Blocks with metadata, zones, and keys with values are durable at once.
        key_value: the namespaces hold keys of up to 16 bytes and values of up to 1 MiB, not blocks.
        zoned: the namespaces are zoned; zone_size, zone_capacity: bytes of a zone, and of its part
            that can
            be written (by default 1 MiB, and all of it). max_open, max_active: zones, 0 for no
            limit. zasl: limit of Zone Append, a power of two over 4 KiB, 0 for MDTS.
        host_memory: bytes of the Host Memory Buffer that the controller asks for (HMPRE), at least
            host_memory_min (HMMIN; by default as many), in at most host_memory_entries (HMMAXD, 0:
            any number) pieces of host_memory_entry bytes (HMMINDS) or more. Multiples of 4096.
        power_states: 2 to 5, of which the fourth and fifth are non-operational; offers autonomous
            transitions (APST). Faults.counters() has the present state and the transitions.
        save_features: Set Features can save values, as long as this controller exists.
        lockdown: the Lockdown command, and its log page.
        boot: bytes of each of two boot partitions, a multiple of 128 KiB up to 8 MiB.
            boot_protection: they are locked against writing until feature 85h unlocks them.
        capacity_management: Endurance Groups and NVM Sets can be created and deleted within
            capacity; the namespaces begin in group 1 and set 1. Implies endurance.
        secondary: secondary controllers that Virtualization Management manages, 0 to 16; they
            can't be opened.
        ana: number of ANA groups, to which the namespaces are assigned in turn.
        fused: fused Compare and Write of up to so many blocks (ACWU + 1).
        latency, jitter: seconds that a command occupies the medium: latency, and up to jitter more.
            Read, Write, Compare, Zone Append, Verify and Write Zeroes; others complete at once.
        channels: commands that the medium works on at once, with latency, jitter or bandwidth.
        bandwidth: bytes per second between medium and host, 0 for no limit.
        fdp: reclaim unit handles of Flexible Data Placement, 0 to 128; implies endurance.
            fdp_groups: reclaim groups, 1 to 16; fdp_unit: bytes of a reclaim unit. Namespaces begin
            with all handles.
        streams: streams of the Streams directive (MSL), 0 to 256.
        retry_delays: one to three times in seconds, multiples of 0.1, after which a host is to send
            a command again (CRDT1 to CRDT3); Faults.add(crd=) chooses one.
        sgl: Scatter Gather Lists of I/O commands: "byte" or "dword", the alignment and granularity
            of their data blocks, with any of "bit_bucket", "metadata" (PSDT 10b) and "longer"
            (lists may describe more than the transfer).
        cmb: bytes of a Controller Memory Buffer in BAR 2. cmb_uses: what for: submission and
            completion queues, lists, data of reads and of writes (CMBSZ). pmr: bytes of a
            Persistent Memory Region there instead; powers of two from 4 KiB to 1 GiB.
            pmr_path: the file that keeps its content, else it is as old as this controller;
            pmr_health: what it reports: normal, restore_error, read_only or unreliable; pmr_ready:
            seconds until it is ready after it was enabled.
        copy_formats: Copy descriptor formats, as "0/1/2/3"; a plain drive has the first.
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
    key_value: bool = False
    zoned: bool = False
    zone_size: int = attrs.field(default=0, validator=in_range(0, 1 << 40))
    zone_capacity: int = 0
    max_open: int = attrs.field(default=0, validator=in_range(0, 1 << 20))
    max_active: int = attrs.field(default=0, validator=in_range(0, 1 << 20))
    zasl: int = attrs.field(default=0, validator=in_range(0, 11))
    host_memory: int = attrs.field(default=0, validator=in_range(0, 1 << 32))
    host_memory_min: int = attrs.field(default=-1, validator=in_range(-1, 1 << 32))
    host_memory_entry: int = attrs.field(default=0, validator=in_range(0, 1 << 30))
    host_memory_entries: int = attrs.field(default=0, validator=in_range(0, 65535))
    power_states: int = attrs.field(default=0, validator=in_range(0, 5))
    save_features: bool = False
    lockdown: bool = False
    boot: int = attrs.field(default=0, validator=in_range(0, 8 << 20))
    boot_protection: bool = False
    capacity_management: bool = False
    secondary: int = attrs.field(default=0, validator=in_range(0, 16))
    ana: int = attrs.field(default=0, validator=in_range(0, 16))
    fused: int = attrs.field(default=0, validator=in_range(0, 1 << 16))
    latency: float = 0.0
    jitter: float = 0.0
    channels: int = attrs.field(default=32, validator=in_range(1, MAX_CHANNELS))
    bandwidth: int = attrs.field(default=0, validator=in_range(0, 1 << 40))
    sgl: tuple[str, ...] = ()
    cmb: int = attrs.field(default=0, validator=in_range(0, 1 << 30))
    cmb_uses: tuple[str, ...] = CMB_USES
    pmr: int = attrs.field(default=0, validator=in_range(0, 1 << 30))
    pmr_path: str = ""
    pmr_health: str = attrs.field(default="normal", validator=attrs.validators.in_(PMR_HEALTHS))
    pmr_ready: float = 0.0
    copy_formats: tuple[int, ...] = (0,)
    fdp: int = attrs.field(default=0, validator=in_range(0, 128))
    fdp_groups: int = attrs.field(default=1, validator=in_range(1, 16))
    fdp_unit: int = attrs.field(default=1 << 20, validator=in_range(4096, 1 << 40))
    streams: int = attrs.field(default=0, validator=in_range(0, 256))
    retry_delays: tuple[float, ...] = ()

    def __attrs_post_init__(self) -> None:
        self._check_own_memory()
        self._check_zones()
        self._check_host_memory()
        if self.boot % (128 << 10):
            raise ConfigurationError(f"boot={self.boot}: must be a multiple of {128 << 10}")
        self._check_placement()
        self._check_capacity()
        self._check_retry_delays()
        if self.key_value and self.zoned:
            raise ConfigurationError("key_value=on and zoned=on exclude each other")
        if self.firmware_slots and not 2 <= self.firmware_slots <= 7:
            raise ConfigurationError(f"firmware_slots={self.firmware_slots}: must be 0 or 2 to 7")

    def _check_retry_delays(self) -> None:
        if len(self.retry_delays) > 3 or any(round(delay * 1e9) % 10**8 for delay in self.retry_delays):
            shown = "/".join(f"{delay:g}s" for delay in self.retry_delays)
            raise ConfigurationError(f"retry_delays={shown}: must be one to three multiples of 100ms")

    def _check_own_memory(self) -> None:
        if self.cmb and self.pmr:
            raise ConfigurationError("cmb= and pmr= exclude each other")
        for name in ("cmb", "pmr"):
            nbytes = getattr(self, name)
            if nbytes and (nbytes < 4096 or nbytes & (nbytes - 1)):
                raise ConfigurationError(f"{name}={nbytes}: must be a power of two from 4096 on")
        if not self.cmb and self.cmb_uses != CMB_USES:
            raise ConfigurationError("cmb_uses needs cmb=")
        if not self.pmr and (self.pmr_path or self.pmr_ready or self.pmr_health != "normal"):
            raise ConfigurationError("pmr_path, pmr_health and pmr_ready need pmr=")

    def _check_capacity(self) -> None:
        if self.boot_protection and not self.boot:
            raise ConfigurationError("boot_protection needs boot=")
        if self.capacity_management:
            if not self.capacity or self.fdp:
                raise ConfigurationError("capacity_management needs capacity=, and excludes fdp=")
            object.__setattr__(self, "endurance", True)

    def _check_placement(self) -> None:
        if self.fdp_unit % 4096:
            raise ConfigurationError(f"fdp_unit={self.fdp_unit}: must be a multiple of 4096")
        if not self.fdp and (self.fdp_groups != 1 or self.fdp_unit != 1 << 20):
            raise ConfigurationError("fdp_groups and fdp_unit need fdp=")
        if self.fdp:
            object.__setattr__(self, "endurance", True)

    def _check_host_memory(self) -> None:
        if self.host_memory_min == -1:
            object.__setattr__(self, "host_memory_min", self.host_memory)
        for name in ("host_memory", "host_memory_min", "host_memory_entry"):
            if getattr(self, name) % 4096:
                raise ConfigurationError(f"{name}={getattr(self, name)}: must be a multiple of 4096")
        if self.host_memory_min > self.host_memory:
            raise ConfigurationError(
                f"host_memory_min={self.host_memory_min}: must be at most host_memory={self.host_memory}"
            )
        if not self.host_memory and (self.host_memory_entry or self.host_memory_entries):
            raise ConfigurationError("host_memory_entry and host_memory_entries need host_memory=")

    def _check_zones(self) -> None:
        zones = ("zone_size", "zone_capacity", "max_open", "max_active", "zasl")
        if not self.zoned:
            for name in zones:
                if getattr(self, name):
                    raise ConfigurationError(f"{name}={getattr(self, name)} needs zoned=on")
            return
        object.__setattr__(self, "zone_size", self.zone_size or 1 << 20)
        object.__setattr__(self, "zone_capacity", self.zone_capacity or self.zone_size)
        if self.zone_size % 4096 or self.zone_capacity % 4096:
            raise ConfigurationError(
                f"zone_size={self.zone_size}, zone_capacity={self.zone_capacity}: must be multiples of 4096"
            )
        if self.zone_capacity > self.zone_size:
            raise ConfigurationError(f"zone_capacity={self.zone_capacity}: must be at most zone_size={self.zone_size}")
        if self.max_open and self.max_active and self.max_open > self.max_active:
            raise ConfigurationError(f"max_open={self.max_open}: must be at most max_active={self.max_active}")


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
    "key_value": parse_bool,
    "zoned": parse_bool,
    "zone_size": parse_size,
    "zone_capacity": parse_size,
    "max_open": parse_int,
    "max_active": parse_int,
    "zasl": parse_int,
    "host_memory": parse_size,
    "host_memory_min": parse_size,
    "host_memory_entry": parse_size,
    "host_memory_entries": parse_int,
    "power_states": parse_int,
    "save_features": parse_bool,
    "lockdown": parse_bool,
    "boot": parse_size,
    "boot_protection": parse_bool,
    "capacity_management": parse_bool,
    "secondary": parse_int,
    "ana": parse_int,
    "fused": parse_int,
    "latency": parse_time,
    "jitter": parse_time,
    "channels": parse_int,
    "bandwidth": parse_size,
    "sgl": _parse_sgl,
    "cmb": parse_size,
    "cmb_uses": _parse_cmb_uses,
    "pmr": parse_size,
    "pmr_path": lambda text, name: str(text),
    "pmr_health": _parse_health,
    "pmr_ready": parse_time,
    "copy_formats": _parse_copy_formats,
    "fdp": parse_int,
    "fdp_groups": parse_int,
    "fdp_unit": parse_size,
    "streams": parse_int,
    "retry_delays": _parse_delays,
}
