"""Reservations of a namespace (Base 2.1, 7.4 to 7.7 and 8.1.22): several hosts coordinate write
access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_async.errors import CommandError
from nvme_async.spec import commands
from nvme_async.spec.opcodes import (
    PersistThroughPowerLoss,
    ReservationAcquireAction,
    ReservationRegisterAction,
    ReservationReleaseAction,
    ReservationType,
)
from nvme_async.spec.reservations import ReservationReport

if TYPE_CHECKING:
    from nvme_async.driver.namespace import Namespace

_FIRST, _MOST = 4096, 64 << 10


class Reservations:
    """This host's operations on a namespace's reservation.

        reservations = Reservations(controller.namespaces[1])
        await reservations.register(0xABC)
        await reservations.acquire(0xABC, ReservationType.WRITE_EXCLUSIVE)

    Keys are 64-bit numbers of the application's choice. Usable from any loop. ReservationConflict
    if another host's reservation, or a missing registration, forbids a command.
    """

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    async def register(
        self,
        key: int,
        *,
        persistence: PersistThroughPowerLoss = PersistThroughPowerLoss.NO_CHANGE,
        replace: int | None = None,
        ignore_existing: bool = False,
    ) -> None:
        """Registers `key` for this host; replace: instead of that one. ignore_existing: whatever
        key it has now.
        """
        action = ReservationRegisterAction.REGISTER if replace is None else ReservationRegisterAction.REPLACE
        if ignore_existing:
            action = ReservationRegisterAction.REPLACE
        await self.namespace.submit(
            commands.reservation_register(self.namespace.nsid, action, ignore_existing, persistence),
            commands.reservation_register_payload(replace or 0, key),
        )

    async def unregister(self, key: int, *, ignore_existing: bool = False) -> None:
        """Removes this host's key; a reservation that it holds ends."""
        await self.namespace.submit(
            commands.reservation_register(self.namespace.nsid, ReservationRegisterAction.UNREGISTER, ignore_existing),
            commands.reservation_register_payload(key, 0),
        )

    async def acquire(self, key: int, kind: ReservationType) -> None:
        """Reserves the namespace."""
        await self._acquire(ReservationAcquireAction.ACQUIRE, key, 0, kind)

    async def preempt(self, key: int, other: int, kind: ReservationType, *, abort: bool = False) -> None:
        """Preempts the reservation and registration of the host with the key `other`. abort: its
        in-flight commands are aborted, too.
        """
        action = ReservationAcquireAction.PREEMPT_AND_ABORT if abort else ReservationAcquireAction.PREEMPT
        await self._acquire(action, key, other, kind)

    async def _acquire(self, action: ReservationAcquireAction, key: int, other: int, kind: ReservationType) -> None:
        await self.namespace.submit(
            commands.reservation_acquire(self.namespace.nsid, action, kind),
            commands.reservation_acquire_payload(key, other),
        )

    async def release(self, key: int, kind: ReservationType) -> None:
        """Ends the reservation that this host holds; `kind` must be its type."""
        await self._release(ReservationReleaseAction.RELEASE, key, kind)

    async def clear(self, key: int) -> None:
        """Ends the reservation and all registrations of all hosts."""
        await self._release(ReservationReleaseAction.CLEAR, key, ReservationType.NONE)

    async def _release(self, action: ReservationReleaseAction, key: int, kind: ReservationType) -> None:
        await self.namespace.submit(
            commands.reservation_release(self.namespace.nsid, action, kind),
            commands.reservation_release_payload(key),
        )

    async def report(self, *, extended: bool | None = None) -> ReservationReport:
        """The registrants and the holder. extended: with 128-bit host identifiers; None: if the
        controller uses those (CTRATT bit 0).
        """
        if extended is None:
            try:
                return await self.report(extended=True)
            except CommandError:
                return await self.report(extended=False)
        nbytes = _FIRST
        while True:
            completion = await self.namespace.submit(commands.reservation_report(self.namespace.nsid, nbytes, extended))
            assert completion.data is not None
            report = ReservationReport.decode(completion.data, extended=extended)
            if report.regctl <= len(report.registrants) or nbytes >= _MOST:
                return report
            nbytes = min(_MOST, 2 * nbytes)
