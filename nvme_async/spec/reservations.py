"""Reservation status and notification (Base 7.5, 5.16.1.24, 8.19).

Payloads of the commands are in `commands`.
"""

from __future__ import annotations

from enum import IntEnum

import attrs

from nvme_async.spec._layout import Buffer, Layout, raw, uint
from nvme_async.spec.opcodes import ReservationType

EXTENDED_HEADER = 64
HEADER = 24


@attrs.frozen
class RegisteredController(Layout, size=24):
    """Registered controller data structure (Base 7.5)."""

    cntlid: int = uint(0, 2)
    """Controller identifier; FFFFh for a controller that is not there, with a host that is not
    associated.
    """
    rcsts: int = uint(2, 1)
    """Bit 0: holds the reservation."""
    hostid: int = uint(8, 8)
    rkey: int = uint(16, 8)

    @property
    def holds_reservation(self) -> bool:
        """The host of this controller holds the reservation."""
        return bool(self.rcsts & 1)


@attrs.frozen
class RegisteredControllerExtended(Layout, size=64):
    """Registered controller extended data structure (Base 7.5), for 128-bit host identifiers."""

    cntlid: int = uint(0, 2)
    rcsts: int = uint(2, 1)
    rkey: int = uint(8, 8)
    hostid: bytes = raw(16, 16)

    @property
    def holds_reservation(self) -> bool:
        """The host of this controller holds the reservation."""
        return bool(self.rcsts & 1)


@attrs.frozen
class ReservationReport:
    """Reservation status data structure (Base 7.5).

    Attributes:
        gen: a counter that changes with every registration and every change of the reservation.
        rtype: reservation type, NONE if there is none.
        regctl: number of registered controllers; more than `registrants` if the buffer was too
            small.
        ptpls: reservations and registrations persist through power loss.
        registrants: of the one or the other type.
    """

    gen: int
    rtype: ReservationType
    regctl: int
    ptpls: bool
    registrants: tuple[RegisteredController | RegisteredControllerExtended, ...]

    @classmethod
    def decode(cls, data: Buffer, *, extended: bool) -> ReservationReport:
        """From the buffer of Reservation Report; `extended` as given to the command."""
        kind = RegisteredControllerExtended if extended else RegisteredController
        start = EXTENDED_HEADER if extended else HEADER
        if len(data) < start:
            raise ValueError(f"a reservation report needs {start} bytes, not {len(data)}")
        page = bytes(data)
        regctl = int.from_bytes(page[5:7], "little")
        count = min(regctl, (len(page) - start) // kind.SIZE)
        return cls(
            gen=int.from_bytes(page[:4], "little"),
            rtype=ReservationType(page[4]),
            regctl=regctl,
            ptpls=bool(page[9]),
            registrants=tuple(
                kind.decode(page[at : at + kind.SIZE]) for at in range(start, start + kind.SIZE * count, kind.SIZE)
            ),
        )

    @property
    def holder(self) -> RegisteredController | RegisteredControllerExtended | None:
        """The first registrant that holds the reservation, None if there is none."""
        return next((registrant for registrant in self.registrants if registrant.holds_reservation), None)


class ReservationNotificationType(IntEnum):
    """RNLPT (Base 5.16.1.24)."""

    EMPTY = 0
    REGISTRATION_PREEMPTED = 1
    RESERVATION_RELEASED = 2
    RESERVATION_PREEMPTED = 3


@attrs.frozen
class ReservationNotification(Layout, size=64):
    """Reservation notification log page (LID 80h; Base 5.16.1.24)."""

    lpc: int = uint(0, 8)
    """Log page count, starts again at 1 after its maximum; 0 for an empty page."""
    rnlpt: int = uint(8, 1)
    nalp: int = uint(9, 1)
    """Number of further log pages available, 255 for 255 or more."""
    nsid: int = uint(12, 4)

    @property
    def type(self) -> ReservationNotificationType:
        """What happened. Raises ValueError for reserved types."""
        return ReservationNotificationType(self.rnlpt)
