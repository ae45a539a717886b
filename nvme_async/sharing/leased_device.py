"""A worker's view of the PCI function: doorbells, vectors and device addresses of a lease,
without registers.
"""

from __future__ import annotations

import os

from nvme_async.device import DeviceIds
from nvme_async.device.base import Doorbells
from nvme_async.dma import Pool
from nvme_async.errors import ControllerError, DeviceError, LeaseError
from nvme_async.native._mmio import Mmio
from nvme_async.sharing.channel import call_once
from nvme_async.sharing.protocol import Grant, Message
from nvme_async.sharing.stop_page import BYTES

_SECONDS = 10.0


class LeasedDevice:
    """The part of nvme_async.device.Device that pools and queue pairs need.

    Attributes:
        grant: the owner's grant. stops: the stop page, for reading.
        event_fds: {queue id: its vector's eventfd}, owned by this object.
        ended: the lease was detached: nothing is mapped any more.
    """

    direct = False  # mapping is a message: call from a thread
    gone_fd = -1

    grant: Grant

    def __init__(self, path: str, message: Message) -> None:
        """message: the answer to "lease", whose descriptors become this object's."""
        self.path = path
        self.grant = grant = Grant.of(message)
        self.uri: str = f"shared:{path}"
        self.ended = False
        try:
            if len(message.fds) != len(grant.descriptors):
                raise LeaseError(
                    f"{len(message.fds)} descriptors arrived, {len(grant.descriptors)} were announced", code="invalid"
                )
            found = dict(zip(grant.descriptors, message.fds, strict=True))
            offset, nbytes, first = grant.doorbells
            self.stops: Mmio = Mmio(found["stop"], 0, BYTES, writable=False)
            window = Mmio(found["doorbells"], offset, nbytes)
            self._kick_fd = os.dup(found["kick"]) if "kick" in found else -1
            self.event_fds = {qid: os.dup(found[f"irq.{qid}"]) for qid in grant.qids}
            self._doorbells = Doorbells(window, first, self._kick_fd)
        except (KeyError, OSError, ValueError) as error:
            raise LeaseError(f"{self.uri}: the owner's answer is invalid: {error!r}", code="invalid") from error
        finally:
            message.close()
        self.ids: DeviceIds = DeviceIds(*grant.ids)
        self.n_vectors: int = len(grant.qids) + 1
        start, length = grant.window
        self.iova_ranges: tuple[range] = (range(start, start + length),)
        self.max_mappings: int = grant.max_mappings

    def doorbells(self) -> Doorbells:
        """The same object each time."""
        return self._doorbells

    def write32(self, offset: int, value: int) -> None:
        """A worker may not write registers."""
        raise DeviceError(f"{self.uri}: register {offset:#x} is reserved for the owner")

    def map_dma(
        self, memory: Pool | int, *, iova: int, nbytes: int, file_offset: int = 0, address: int | None = None
    ) -> None:
        """Requests the mapping from the owner. DeviceError if it refuses or doesn't answer."""
        fd = memory if isinstance(memory, int) else memory.fd
        self._ask("map", {"iova": iova, "nbytes": nbytes, "offset": file_offset}, [fd])

    def unmap_dma(self, iova: int, nbytes: int) -> None:
        """Requests the unmapping from the owner; does nothing after the end of the lease, which
        unmaps all.
        """
        if not self.ended:
            self._ask("unmap", {"iova": iova, "nbytes": nbytes}, [])

    def _ask(self, kind: str, body: dict[str, int], fds: list[int]) -> None:
        try:
            call_once(self.path, kind, self.grant.secret() | body, fds, seconds=_SECONDS).close()
        except (LeaseError, ControllerError) as error:
            raise DeviceError(f"{self.uri}: {error}") from error

    def park(self, parked: bool, *, wait: bool = True) -> bool:
        """Requests name the process: the owner doesn't confuse them with a successor's."""
        return True

    def detach(self) -> None:
        """A successor has the lease."""
        self.ended = True
        self.close()

    def close(self) -> None:
        """Closes the descriptors; the doorbells stay mapped while a queue pair refers to
        them.
        """
        fds, self._kick_fd = [self._kick_fd, *self.event_fds.values()], -1
        self.event_fds = {}
        for fd in fds:
            if fd >= 0:
                os.close(fd)
