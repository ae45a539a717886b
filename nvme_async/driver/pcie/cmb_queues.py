"""Places for I/O queues in a Controller Memory Buffer (Base 2.0, 8.5), from its start.

On the controller's home loop. Each queue id has its place, which never changes, so a place is never
another queue's.
"""

from __future__ import annotations

from typing import Literal

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.native._hotpath import QueuePair
from nvme_async.native._mmio import Mmio
from nvme_async.spec.registers import PAGE, Cmbloc, Cmbsz

CmbQueuesOption = Literal["off", "submission", "all"]


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


@attrs.frozen(kw_only=True)
class CmbLayout:
    """Attributes:
    cmbloc, cmbsz: the registers' values, which say where the buffer is.
    address: its device address.
    entries: of each ring, at most.
    n_queues: so many queue ids, from 1 on, have a place.
    completions: completion queues, too.
    """

    cmbloc: int
    cmbsz: int
    address: int
    entries: int
    n_queues: int
    completions: bool

    @classmethod
    def of(
        cls, location: Cmbloc, size: Cmbsz, address: int, *, entries: int, n_queues: int, which: CmbQueuesOption
    ) -> CmbLayout:
        """For up to n_queues. ConfigurationError if the buffer isn't for queues, or too small for
        one.
        """
        if not size.sqs:
            raise ConfigurationError(
                f"the Controller Memory Buffer is not for submission queues (CMBSZ {size.to_int():#x})"
            )
        if which == "all" and not size.cqs:
            raise ConfigurationError(
                f"the Controller Memory Buffer is not for completion queues (CMBSZ {size.to_int():#x})"
            )
        layout = cls(
            cmbloc=location.to_int(),
            cmbsz=size.to_int(),
            address=address,
            entries=entries,
            n_queues=n_queues,
            completions=which == "all",
        )
        room = size.nbytes // layout.step
        if not room:
            raise ConfigurationError(
                f"the Controller Memory Buffer of {size.nbytes} bytes has no room for a queue of {entries} entries, "
                f"which takes {layout.step}"
            )
        return attrs.evolve(layout, n_queues=min(n_queues, room))

    @property
    def step(self) -> int:
        """Bytes from one place to the next."""
        return _pages(64 * self.entries) + (_pages(16 * self.entries) if self.completions else 0)

    @property
    def nbytes(self) -> int:
        """Of all places."""
        return self.n_queues * self.step

    @property
    def offset(self) -> int:
        """Of the buffer in its BAR."""
        return Cmbloc.from_int(self.cmbloc).ofst * Cmbsz.from_int(self.cmbsz).unit

    @property
    def bar(self) -> int:
        return Cmbloc.from_int(self.cmbloc).bir


class CmbQueues:
    """window: the mapping of the places."""

    def __init__(self, layout: CmbLayout, window: Mmio) -> None:
        self.layout = layout
        self.window = window

    def has_room(self, queue: QueuePair) -> bool:
        return 1 <= queue.qid <= self.layout.n_queues and queue.entries <= self.layout.entries

    def place(self, queue: QueuePair, *, attach: bool = False) -> None:
        """In the thread of the queue's loop; see QueuePair.place_rings(). It has_room()."""
        layout = self.layout
        at = (queue.qid - 1) * layout.step
        completions = at + _pages(64 * layout.entries) if layout.completions else -1
        queue.place_rings(self.window, layout.address, at, completions, attach=attach)
