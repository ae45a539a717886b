"""DMA memory clients, their policies, and the memory that outlives the process.

A client is one user of memory with a unique name. It has its own pool, so a device can access its
own client's memory and no other. The policies are:

    private     from the configured amount, persistent: a successor finds it as it was left. Where
                none is configured, or not enough is left, that is an error; nothing else is given
                instead.
    ephemeral   ends with the client and is never saved.

A successor attaches a private client's pool and gives it to adopt(). Every allocation found in it
is pending-restore until its owner claims it; unclaimed allocations are not reused until the
controller, which may still write to them, was reset (nvme_async/keepalive/).
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Sequence
from typing import Literal

from nvme_async.errors import ConfigurationError, OutOfDmaMemory
from nvme_async.native._dma import DmaBuffer, Pool, Slot

FIRST_IOVA = 0x1_0000_0000
"""Above a platform's 32-bit windows. Each device has its own addresses, so pools may share it.
"""


class Policy(enum.StrEnum):
    """See the module."""

    PRIVATE = "private"
    EPHEMERAL = "ephemeral"


class DmaClient:
    """Memory of one user, made by DmaManager.client().

    Threads: as Pool.
    """

    def __init__(self, manager: DmaManager, name: str, policy: Policy, pool: Pool) -> None:
        self.name = name
        self.policy = policy
        self.pool = pool
        self._manager = manager

    def alloc(self, nbytes: int, *, owner: str, tag: int = 0, zero: bool = True) -> DmaBuffer:
        """As Pool.alloc(): a successor finds it if the client is private; this process's garbage
        collection frees it.
        """
        return self.pool.alloc(nbytes, owner=owner, tag=tag, zero=zero)

    def close(self) -> None:
        """Releases the memory and the name. BufferError while a buffer is exported.

        Call it only when no controller can access the memory any more.
        """
        self.pool.close()
        self._manager.forget(self)

    def states(self) -> dict[str, dict[str, int]]:
        """{state: {"slots": count, "nbytes": bytes}} of its allocations; see the module."""
        found: dict[str, dict[str, int]] = {
            state: {"slots": 0, "nbytes": 0} for state in ("allocated", "pending-restore", "leaked")
        }
        for slot in self.pool.slots():
            found[slot.state]["slots"] += 1
            found[slot.state]["nbytes"] += slot.nbytes
        found["free"] = {"slots": 0, "nbytes": self.pool.free_bytes}
        return found

    def mark_unclaimed(self) -> list[Slot]:
        """Called after a restore, when every owner has claimed its slots: slots that are still
        pending become leaked, and are returned.
        """
        unclaimed = [slot for slot in self.pool.slots() if slot.state == "pending-restore"]
        for slot in unclaimed:
            self.pool.mark_leaked(slot.offset)
        return [slot._replace(state="leaked") for slot in unclaimed]

    def __repr__(self) -> str:
        return f"<DmaClient {self.name!r} {self.policy.value} {self.pool!r}>"


class DmaManager:
    """The clients of one controller, and the configured amount of private memory.

    `private_bytes` limits the sum of the sizes of all private pools; 0 means that there is none.
        `hugepages` and `nodes` as Pool's.
    Threads: any.
    """

    def __init__(
        self,
        private_bytes: int = 0,
        *,
        hugepages: Literal["auto", "never", "require"] = "auto",
        nodes: Sequence[int] = (),
    ) -> None:
        if private_bytes < 0:
            raise ConfigurationError(f"private memory of {private_bytes} bytes: must be 0 (none) or more")
        self.private_bytes = private_bytes
        self._hugepages: Literal["auto", "never", "require"] = hugepages
        self._nodes = tuple(nodes)
        self._lock = threading.Lock()
        self._clients: dict[str, DmaClient] = {}

    def client(self, name: str, policy: Policy, nbytes: int, *, iova: int = FIRST_IOVA) -> DmaClient:
        """A new client with room for `nbytes` of allocations.

        Raises ConfigurationError for a name in use and for an unavailable policy, OutOfDmaMemory
        when the remaining private memory, or the machine's, doesn't suffice.
        """
        policy = Policy(policy)
        with self._lock:
            if name in self._clients:
                raise ConfigurationError(f"DMA client {name!r} exists already")
            client = self._clients[name] = DmaClient(self, name, policy, self._new_pool(name, policy, nbytes, iova))
            return client

    def adopt(self, pool: Pool) -> DmaClient:
        """The private client of an already attached pool that a predecessor left; it has the
        pool's name. The pool belongs to this object from now on.

        ConfigurationError for a name in use, OutOfDmaMemory if it is larger than the configured
        amount.
        """
        with self._lock:
            if pool.name in self._clients:
                raise ConfigurationError(f"DMA client {pool.name!r} exists already")
            self._check_room(pool.name, pool.nbytes)
            client = self._clients[pool.name] = DmaClient(self, pool.name, Policy.PRIVATE, pool)
            return client

    def _new_pool(self, name: str, policy: Policy, nbytes: int, iova: int) -> Pool:
        if nbytes <= 0 or nbytes % Pool.page_size:
            raise ConfigurationError(
                f"DMA client {name!r}: {nbytes} bytes is not a positive multiple of {Pool.page_size}"
            )
        size = Pool.size_for(nbytes)
        if policy is Policy.PRIVATE:
            if self.private_bytes == 0:
                raise ConfigurationError(
                    f"DMA client {name!r} requests private memory, and no private pool is configured"
                )
            self._check_room(name, size)
        pool = Pool(size, iova=iova, name=name, hugepages=self._hugepages, nodes=self._nodes)
        if policy is Policy.PRIVATE:
            try:
                self._check_room(name, pool.nbytes)  # huge pages round up
            except BaseException:
                pool.close()
                raise
        return pool

    def _check_room(self, name: str, size: int) -> None:
        left = self.private_bytes - self._used()
        if size > left:
            raise OutOfDmaMemory(
                f"DMA client {name!r} needs {size} bytes of private memory including its table; {left} of "
                f"{self.private_bytes} are left"
            )

    def _used(self) -> int:
        return sum(client.pool.nbytes for client in self._clients.values() if client.policy is Policy.PRIVATE)

    def forget(self, client: DmaClient) -> None:
        """Frees its name and its share of the private memory. Its pool isn't closed: a successor
        has it, or its buffers are still in use.
        """
        with self._lock:
            if self._clients.get(client.name) is client:
                del self._clients[client.name]
