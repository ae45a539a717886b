"""Who may have DMA memory, of which kind, and what of it outlives the process.

A client is one user of memory, usually one controller, known by a unique name. It has a pool of its
own, so a device reaches its own client's memory and nobody else's. The policy says of which kind:

    private     from the configured amount, persistent: a successor finds it as it was left. Where
        none is
    configured,
                or not enough is left, that is an error; nothing else is given instead.
    ephemeral   ends with the client and is never saved.

In a successor every allocation that was found is pending-restore until the client of that name is
asked for and its owner claims it (DmaClient.claim). What nobody claimed by validate_restore() is
leaked: a controller may still write to it, so it stays out of use until reclaim(), which is for
after that controller's reset.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import attrs
import cattrs

from nvme_async.errors import ConfigurationError, InvalidSavedState, OutOfDmaMemory
from nvme_async.native._dma import DmaBuffer, Pool, Slot

SAVED_VERSION = 1
DEFAULT_IOVA = 0x1_0000_0000
"""Above what 32-bit windows of a platform claim. Each device has its own addresses, so pools may
share it.
"""


class Policy(enum.StrEnum):
    """See the module."""

    PRIVATE = "private"
    EPHEMERAL = "ephemeral"


@attrs.frozen
class SavedPool:
    """A private client as a successor must find it again. Its slots are in the pool itself."""

    name: str
    id: str
    nbytes: int
    iova: int


@attrs.frozen
class _SavedManager:
    version: int
    pools: tuple[SavedPool, ...]


@attrs.frozen
class Unclaimed:
    """An allocation that no owner asked for after a restore."""

    client: str
    slot: Slot


class DmaClient:
    """Memory of one user, made by DmaManager.client().

    Threads: as Pool.
    """

    def __init__(self, manager: DmaManager, name: str, policy: Policy, pool: Pool) -> None:
        self.name = name
        self.policy = policy
        self.pool = pool
        self._manager = manager

    def alloc(
        self,
        nbytes: int,
        *,
        owner: str = "",
        tag: int = 0,
        align: int = 4096,
        zero: bool = True,
        persistent: bool | None = None,
    ) -> DmaBuffer:
        """As Pool.alloc(); `owner` is the client's name unless said otherwise. A private client's
        are persistent unless said otherwise: a successor finds either kind, this process's
        garbage collection frees those that aren't.
        """
        if persistent is None:
            persistent = self.policy is Policy.PRIVATE
        return self.pool.alloc(nbytes, owner=owner or self.name, tag=tag, align=align, persistent=persistent, zero=zero)

    def pending(self) -> list[Slot]:
        """What was found at the restore and waits to be claimed."""
        return [slot for slot in self.pool.slots() if slot.state == "pending-restore"]

    def claim(self, offset: int) -> DmaBuffer:
        """The allocation at `offset`, which was found at the restore. ValueError if there is none."""
        return self.pool.claim(offset)

    def close(self) -> None:
        """Gives the memory and the name back. BufferError while a buffer is exported.

        Only when no controller reaches the memory any more. To leave it to a successor, don't
        close: save.
        """
        self.pool.close()
        self._manager.forget(self)

    def states(self) -> dict[str, dict[str, int]]:
        """{state: {"slots": how many, "nbytes": of them}} of its allocations; see the module."""
        found: dict[str, dict[str, int]] = {
            state: {"slots": 0, "nbytes": 0} for state in ("allocated", "pending-restore", "leaked")
        }
        for slot in self.pool.slots():
            found[slot.state]["slots"] += 1
            found[slot.state]["nbytes"] += slot.nbytes
        found["free"] = {"slots": 0, "nbytes": self.pool.free_bytes}
        return found

    def inspect(self) -> dict[str, object]:
        return {"name": self.name, "policy": self.policy.value, "states": self.states(), "pool": self.pool.inspect()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DmaClient {self.name!r} {self.policy.value} {self.pool!r}>"


class DmaManager:
    """The clients of this process, and the configured amount of private memory.

    `private_bytes` bounds the sizes of all private pools together; 0 means that there is none.
    `hugepages` as Pool's. Threads: any.
    """

    def __init__(self, private_bytes: int = 0, *, hugepages: Literal["auto", "never", "require"] = "auto") -> None:
        if private_bytes < 0:
            raise ConfigurationError(f"private memory of {private_bytes} bytes: must be 0 (none) or more")
        self.private_bytes = private_bytes
        self._hugepages: Literal["auto", "never", "require"] = hugepages
        self._lock = threading.Lock()
        self._clients: dict[str, DmaClient] = {}
        self._restored: dict[str, Pool] = {}  # found, and their client not asked for yet

    def client(self, name: str, policy: Policy, nbytes: int | None = None, *, iova: int = DEFAULT_IOVA) -> DmaClient:
        """A new client with room for `nbytes` of allocations, or the restored one of that name.

        A restored client's size and IOVA are what they were; `nbytes` may be left out, and more
        than there is refused. Raises ConfigurationError for a name in use and for a policy that
        can't be had, OutOfDmaMemory when the private memory that is left doesn't suffice.
        """
        policy = Policy(policy)
        with self._lock:
            if name in self._clients:
                raise ConfigurationError(f"DMA client {name!r} exists already")
            pool = self._restored.get(name)
            if pool is not None:
                if policy is not Policy.PRIVATE:
                    raise ConfigurationError(
                        f"DMA client {name!r} was restored as private and is asked for as {policy.value}"
                    )
                if nbytes is not None and nbytes > pool.free_bytes + pool.used_bytes:
                    raise OutOfDmaMemory(
                        f"restored DMA client {name!r} has {pool.free_bytes + pool.used_bytes} bytes, not {nbytes}"
                    )
                del self._restored[name]
            else:
                pool = self._new_pool(name, policy, nbytes, iova)
            client = DmaClient(self, name, policy, pool)
            self._clients[name] = client
            return client

    def adopt(self, pool: Pool) -> DmaClient:
        """The private client whose pool a predecessor left, attached already; its name is the
        pool's. The pool is this object's from here on.

        ConfigurationError for a name in use, OutOfDmaMemory if it is larger than what is
        configured.
        """
        with self._lock:
            if pool.name in self._clients or pool.name in self._restored:
                raise ConfigurationError(f"DMA client {pool.name!r} exists already")
            self._check_room(pool.name, pool.nbytes)
            client = self._clients[pool.name] = DmaClient(self, pool.name, Policy.PRIVATE, pool)
            return client

    def _new_pool(self, name: str, policy: Policy, nbytes: int | None, iova: int) -> Pool:
        if nbytes is None:
            raise ConfigurationError(f"DMA client {name!r} is new and needs a size")
        if nbytes <= 0 or nbytes % Pool.page_size:
            raise ConfigurationError(
                f"DMA client {name!r}: {nbytes} bytes is not a positive multiple of {Pool.page_size}"
            )
        size = Pool.size_for(nbytes)
        if policy is Policy.PRIVATE:
            if self.private_bytes == 0:
                raise ConfigurationError(
                    f"DMA client {name!r} asks for private memory, and no private pool is configured"
                )
            self._check_room(name, size)
        pool = Pool(size, iova=iova, name=name, hugepages=self._hugepages)
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
                f"DMA client {name!r} needs {size} bytes of private memory with its table, {left} of "
                f"{self.private_bytes} are left"
            )

    def _used(self) -> int:
        private = [client.pool for client in self._clients.values() if client.policy is Policy.PRIVATE]
        return sum(pool.nbytes for pool in (*private, *self._restored.values()))

    def forget(self, client: DmaClient) -> None:
        """Its name and its share of the private memory are free again. Its pool isn't closed: a
        successor has it, or its buffers live on.
        """
        with self._lock:
            if self._clients.get(client.name) is client:
                del self._clients[client.name]

    # --- save and restore

    def save(self) -> dict[str, Any]:
        """What restore() needs beside descriptors(), in JSON's types: private clients only."""
        pools = [SavedPool(name, pool.id, pool.nbytes, pool.iova) for name, pool in self._persistent().items()]
        return {"version": SAVED_VERSION, "pools": [attrs.asdict(pool) for pool in pools]}

    def descriptors(self) -> dict[str, int]:
        """The private pools' descriptors by client name. They belong to the pools: duplicate to
        keep.
        """
        return {name: pool.fd for name, pool in self._persistent().items()}

    def _persistent(self) -> dict[str, Pool]:
        with self._lock:
            found = {n: c.pool for n, c in self._clients.items() if c.policy is Policy.PRIVATE}
            return {**found, **self._restored}

    @classmethod
    def restore(
        cls,
        saved: Mapping[str, Any],
        descriptors: Mapping[str, int],
        private_bytes: int,
        *,
        hugepages: Literal["auto", "never", "require"] = "auto",
    ) -> Self:
        """A manager with the private memory of a predecessor, which has stopped, before anything
        new is allocated.

        All or nothing: raises InvalidSavedState when a pool is missing, damaged or another one,
        ConfigurationError when the private memory configured now can't hold what there was. The
        descriptors are duplicated and stay the caller's.
        """
        state = _structure(saved)
        manager = cls(private_bytes, hugepages=hugepages)
        total = sum(pool.nbytes for pool in state.pools)
        if total > private_bytes:
            names = ", ".join(repr(pool.name) for pool in state.pools)
            raise ConfigurationError(
                f"the predecessor left {total} bytes of private memory ({names}), "
                + (f"only {private_bytes} are configured" if private_bytes else "no private pool is configured")
            )
        try:
            for expected in state.pools:
                if expected.name not in descriptors:
                    raise InvalidSavedState(f"the pool of DMA client {expected.name!r} is missing")
                if expected.name in manager._restored:
                    raise InvalidSavedState(f"saved DMA state names client {expected.name!r} twice")
                pool = Pool.attach(descriptors[expected.name])
                manager._restored[expected.name] = pool
                found = SavedPool(expected.name, pool.id, pool.nbytes, pool.iova)
                if found != expected:
                    raise InvalidSavedState(
                        f"the pool of DMA client {expected.name!r} is another: {found}, saved {expected}"
                    )
        except BaseException:
            for pool in manager._restored.values():
                pool.close()
            raise
        return manager

    def validate_restore(self) -> list[Unclaimed]:
        """To be called when every client is back: what nobody claimed is leaked from now on, and
        returned.
        """
        with self._lock:
            pools = {name: client.pool for name, client in self._clients.items()} | self._restored
            unclaimed = []
            for name, pool in pools.items():
                for slot in pool.slots():
                    if slot.state == "pending-restore":
                        pool.mark_leaked(slot.offset)
                        unclaimed.append(Unclaimed(name, slot._replace(state="leaked")))
            return unclaimed

    def reclaim(self, name: str) -> int:
        """Frees what is pending or leaked of client `name`, or all of a restored client that nobody
        asked for.

        Only after the reset of the controller that used it. Returns the bytes freed.
        ConfigurationError for an unknown name.
        """
        with self._lock:
            pool = self._restored.pop(name, None)
            if pool is not None:
                freed = pool.used_bytes
                pool.close()
                return freed
            if name not in self._clients:
                raise ConfigurationError(f"there is no DMA client {name!r}")
            pool = self._clients[name].pool
            before = pool.used_bytes
            for slot in pool.slots():
                if slot.state in ("pending-restore", "leaked"):
                    pool.reclaim(slot.offset)
            return before - pool.used_bytes

    def inspect(self) -> dict[str, object]:
        """Plain data for people and tools."""
        with self._lock:
            return {
                "private_bytes": self.private_bytes,
                "private_used": self._used(),
                "clients": [client.inspect() for client in self._clients.values()],
                "pending_clients": [{"name": name, "pool": pool.inspect()} for name, pool in self._restored.items()],
            }

    def close(self) -> None:
        """Closes every client. BufferError, with nothing closed, while a buffer of any is exported."""
        with self._lock:
            pools = [client.pool for client in self._clients.values()] + list(self._restored.values())
            for pool in pools:
                if not pool.closed and pool.inspect()["exports"]:
                    raise BufferError(f"pool {pool.name!r} has exported buffers")
            for pool in pools:
                pool.close()
            self._clients.clear()
            self._restored.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_converter = cattrs.Converter()
_structure_manager = _converter.get_structure_hook(_SavedManager)


def _structure(saved: Mapping[str, Any]) -> _SavedManager:
    version = saved.get("version")
    if version != SAVED_VERSION:
        raise InvalidSavedState(f"saved DMA state has version {version!r}, this code knows {SAVED_VERSION}")
    try:
        state: _SavedManager = _structure_manager(dict(saved), _SavedManager)
    except Exception as error:  # whatever the nested converters raise
        reasons = "; ".join(cattrs.transform_error(error)) if isinstance(error, cattrs.BaseValidationError) else error
        raise InvalidSavedState(f"saved DMA state makes no sense: {reasons}") from error
    return state
