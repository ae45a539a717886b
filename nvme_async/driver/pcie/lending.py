"""I/O queue pairs for other processes.

A layer above lends them (nvme_async.sharing). The queue set reserves their ids and reports the
controller's state changes; it doesn't know the borrowers.
"""

from __future__ import annotations

from typing import Any, Protocol

from nvme_async.errors import NvmeError


class Lender(Protocol):
    """On the controller's home loop. Each method is bounded in time and raises nothing."""

    async def stop(self) -> None:
        """The controller is about to be reset or disabled: no borrower rings a lent queue pair's
        doorbells any more.

        A borrower that doesn't confirm that in time keeps its ids, and none of its queues is
        created, until it has.
        """

    def disabled(self) -> None:
        """The controller was disabled: it knows no lent queue and accesses no memory for one."""

    async def go(self) -> None:
        """The controller is ready: borrowers may have their queues created again."""

    async def hold(self, nsids: frozenset[int] | None, seconds: float) -> bool:
        """Borrowers send nothing for these namespaces, or for any, until unhold(); what they
        have sent has completed. False if that took longer than `seconds`.
        """

    async def unhold(self) -> None:
        """Borrowers read Identify of the namespaces again, and continue."""

    async def fail(self, error: NvmeError) -> None:
        """The controller has failed, or is closed."""

    async def take_back(self) -> None:
        """Before the controller is shut down: deletes all lent queues."""

    async def release(self) -> None:
        """The controller no longer accesses memory: lent memory is unmapped from the device,
        which may stay open.
        """

    def forget(self) -> None:
        """A successor has the controller, or it is closed: releases everything, and touches no
        queue.
        """

    @property
    def stop_fd(self) -> int:
        """A descriptor that a successor needs with save(); the lender keeps it. -1: none."""

    def save(self) -> dict[str, Any]:
        """The state that a successor needs, in JSON's types; {} before anything can be lent."""

    def inspect(self) -> list[dict[str, Any]]:
        """All leases as plain data. From any thread."""
