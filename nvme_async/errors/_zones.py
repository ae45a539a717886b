"""Errors of zoned namespaces (ZNS Command Set 1.1)."""

from __future__ import annotations

from nvme_async.errors._command import CommandError


class ZoneError(CommandError):
    """A zone did not allow the command (ZNS Command Set 1.1, 2.1.1)."""


class ZoneBoundaryError(ZoneError):
    """Zoned Boundary Error: beyond what the zone can hold."""


class ZoneFull(ZoneError):
    """Zone Is Full."""


class ZoneReadOnly(ZoneError):
    """Zone Is Read Only."""


class ZoneOffline(ZoneError):
    """Zone Is Offline."""


class ZoneInvalidWrite(ZoneError):
    """Zone Invalid Write: not at the write pointer."""


class TooManyActiveZones(ZoneError):
    """Too Many Active Zones (MAR)."""


class TooManyOpenZones(ZoneError):
    """Too Many Open Zones (MOR)."""


class InvalidZoneTransition(ZoneError):
    """Invalid Zone State Transition."""
