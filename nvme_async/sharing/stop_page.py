"""The stop page: memory that the owner writes and workers read before each doorbell.

A memfd of 4096 bytes, as 1024 words of 32 bits in the machine's byte order; words 0 to 15 are the
header: magic and version. Each lease has one of the others. Its value is the epoch (`life`) of the
lease's queues: it increases by one whenever the doorbells of the present queues must not be rung
any more. ext/hotpath/queue.h compares it (nvq_stopped).

A store that a worker was about to make when the word changed can still come later, whenever that
process runs again. So a queue id whose worker has not confirmed the new epoch is not used for any
queue: the late store goes to the doorbell of a queue that doesn't exist, which a controller reports
and otherwise ignores (Base 2.0, 5.2: Write to Invalid Doorbell Register).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from nvme_async.errors import InvalidSavedState, LeaseError

BYTES = 4096
WORDS = BYTES // 4
FIRST = 16
MAGIC, VERSION = 0x5453564E, 1  # "NVST"


class StopPage:
    """The owner's side. It owns its descriptor."""

    read_only: int
    fd: int

    def __init__(self, fd: int = -1) -> None:
        """fd: a predecessor's, now owned by this object; otherwise a new one is made.
        InvalidSavedState if it is no stop page.
        """
        self.fd = fd if fd >= 0 else os.memfd_create("nvme-stop", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if fd < 0:
                os.ftruncate(self.fd, BYTES)
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            if os.fstat(self.fd).st_size != BYTES:
                raise InvalidSavedState("the predecessor's stop page has another size")
            self._map = mmap.mmap(self.fd, BYTES)
            self._words = memoryview(self._map).cast("I")
            if fd < 0:
                self._words[0], self._words[1] = MAGIC, VERSION
                for slot in range(FIRST, WORDS):
                    self._words[slot] = 1
            elif struct.unpack_from("=II", self._map) != (MAGIC, VERSION):
                self._words.release()
                self._map.close()
                raise InvalidSavedState("the predecessor's stop page has a format that this release can't read")
            self._free = list(range(WORDS - 1, FIRST - 1, -1))
            # Workers get a descriptor that can't be mapped for writing.
            self.read_only = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise

    def take(self, slot: int | None = None) -> int:
        """A word for one lease; `slot`: the one that a predecessor gave it. LeaseError if there
        is none.
        """
        if slot is None:
            if not self._free:
                raise LeaseError(f"{WORDS - FIRST} leases are the limit", code="full")
            return self._free.pop()
        if slot not in self._free:
            raise InvalidSavedState(f"two leases have the word {slot} of the stop page")
        self._free.remove(slot)
        return slot

    def give(self, slot: int) -> None:
        """The word has no reader any more. Its next user starts with another epoch."""
        self.end_life(slot)
        self._free.append(slot)

    def life(self, slot: int) -> int:
        return self._words[slot]

    def end_life(self, slot: int) -> int:
        """From this store on no doorbell of the present epoch is rung. Returns the next
        epoch.
        """
        self._words[slot] = life = self._words[slot] % 0xFFFF_FFFF + 1
        return life

    def end_all(self) -> None:
        """end_life() of every word."""
        for slot in range(FIRST, WORDS):
            self.end_life(slot)

    def close(self) -> None:
        """Closes it, and changes no word."""
        if self.fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self.fd)
            os.close(self.read_only)
            self.fd = self.read_only = -1
