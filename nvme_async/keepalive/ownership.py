"""Checks the ownership of the memory that a predecessor's commands use, by the pool's slot table
and the saved registrations.

A command that names foreign memory because of damage must not be adopted: that memory would be
read, or released, as if it were its own.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from nvme_async.dma import Slot
from nvme_async.driver.pcie.own_memory import CONTROLLER_ADDRESSES
from nvme_async.errors import InvalidSavedState
from nvme_async.keepalive.state import RegistrationState

_LARGEST_CLASS = 12
"""Of bounce pages: 4 KiB << 12 (ext/hotpath/_placement.pyx)."""
_DRIVERS_OWN = ("queue", "bounce", "manifest", "shadow doorbells")


def _kind(owner: str) -> str:
    kind, _, number = owner.rpartition(" ")
    return kind if number.isdigit() else owner


def is_drivers_own(owner: str) -> bool:
    """Is this the owner of memory that the driver itself uses, and no application?"""
    return _kind(owner) in _DRIVERS_OWN


class Ownership:
    """The ownership in one pool, as it was left."""

    def __init__(self, slots: list[Slot], registrations: list[RegistrationState]) -> None:
        self._offsets = [slot.offset for slot in slots]
        self._slots = slots
        self._registrations = registrations
        self._chunks: dict[str, list[Slot]] = {}
        for slot in slots:
            if _kind(slot.owner) == "bounce":
                self._chunks.setdefault(slot.owner, []).append(slot)

    def pieces(self, qid: int, found: dict[str, Any]) -> list[tuple[Slot, int, set[int]]]:
        """[(chunk, number of its pieces, offsets of those that belong to commands)] of a queue
        pair's bounce pages. found: by `verify_queue()`. InvalidSavedState if a command's data
        is in an impossible place.
        """
        owned: dict[int, int] = dict(found["bounce"])
        pieces = []
        for slot in self._chunks.get(f"bounce {qid}", ()):
            if slot.tag > _LARGEST_CLASS or slot.nbytes % (4096 << slot.tag):
                raise InvalidSavedState(
                    f"queue {qid}: {slot.nbytes} bytes of bounce pages at {slot.offset:#x} cannot be divided "
                    "into pieces "
                    f"of class {slot.tag}"
                )
            size = 4096 << slot.tag
            inside = {offset for offset in owned if slot.offset <= offset < slot.offset + slot.nbytes}
            if any(owned[offset] != slot.tag or (offset - slot.offset) % size for offset in inside):
                raise InvalidSavedState(
                    f"queue {qid}: bounce pages at {slot.offset:#x} are not divided as its commands need"
                )
            pieces.append((slot, slot.nbytes // size, inside))
            for offset in inside:
                del owned[offset]
        if owned:
            raise InvalidSavedState(
                f"queue {qid}: commands own bounce pages that aren't in the pool: {sorted(map(hex, owned))}"
            )
        for offset, nbytes in found["inside"]:
            self._check_inside(qid, offset, nbytes)
        for iova, nbytes in found["outside"]:
            if iova >= CONTROLLER_ADDRESSES:
                continue  # in the controller's own memory, of which nothing is handed out here
            if not any(one.iova <= iova and iova + nbytes <= one.iova + one.nbytes for one in self._registrations):
                raise InvalidSavedState(
                    f"queue {qid}: a command moves {nbytes} bytes at device address {iova:#x}, outside all registered "
                    "memory"
                )
        return pieces

    def _check_inside(self, qid: int, offset: int, nbytes: int) -> None:
        """An application's buffer in the pool."""
        at = bisect_right(self._offsets, offset) - 1
        slot = self._slots[at] if at >= 0 else None
        if slot is None or offset + nbytes > slot.offset + slot.nbytes or is_drivers_own(slot.owner):
            raise InvalidSavedState(
                f"queue {qid}: a command moves {nbytes} bytes at pool offset {offset:#x}, which belong to no buffer"
            )
