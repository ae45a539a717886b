"""The interface that all namespaces share, regardless of who has the driver."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar, overload

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.batch import Integers, Many
from nvme_async.driver.byte_access import Views
from nvme_async.driver.byte_stream import ByteStream
from nvme_async.driver.namespace_file import NamespaceFile
from nvme_async.driver.protection import Protect
from nvme_async.errors import CommandError
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.identity import NamespaceIdentity

B = TypeVar("B", bound=BufferLike)


class AsyncNamespace(Protocol):
    """The common interface of Namespace and the manager's ManagedNamespace: use this type if
    your code accepts both. See Namespace for the methods.

    Sizes are bytes unless a name says blocks. `nbytes` is the namespace's size, `blocks` the same
    in logical blocks.
    """

    identity: NamespaceIdentity

    @property
    def nsid(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_blocks(self) -> int: ...
    @property
    def identify(self) -> IdentifyNamespace: ...

    def read(self, lba: int, blocks: int = 1, *, fua: bool = False) -> Coroutine[object, None, bytes]: ...
    def readinto(self, lba: int, buffer: BufferLike, *, fua: bool = False) -> Coroutine[object, None, int]: ...
    def write(
        self,
        lba: int,
        data: BufferLike,
        *,
        fua: bool = False,
        placement: int | None = None,
        stream: int | None = None,
    ) -> Coroutine[object, None, None]: ...
    def compare(self, lba: int, data: BufferLike, *, fua: bool = False) -> Coroutine[object, None, None]: ...
    def flush(self) -> Coroutine[object, None, None]: ...
    @overload
    async def read_many(
        self,
        lbas: Integers,
        into: None = None,
        *,
        blocks: int = 1,
        depth: int = 0,
        fua: bool = False,
        check: bool = True,
    ) -> Many[bytearray]: ...
    @overload
    async def read_many(
        self, lbas: Integers, into: B, *, blocks: int = 1, depth: int = 0, fua: bool = False, check: bool = True
    ) -> Many[B]: ...
    async def write_many(
        self, lbas: Integers, data: B, *, blocks: int = 1, depth: int = 0, fua: bool = False, check: bool = True
    ) -> Many[B]: ...
    async def pread(self, nbytes: int, offset: int) -> bytes: ...
    async def pwrite(self, data: BufferLike, offset: int, *, fua: bool = False) -> int: ...
    async def readv(
        self, buffers: Sequence[BufferLike], offset: int, *, metadata: Views = None, protect: Protect | None = None
    ) -> int: ...
    async def writev(
        self,
        buffers: Sequence[BufferLike],
        offset: int,
        *,
        fua: bool = False,
        metadata: Views = None,
        protect: Protect | None = None,
    ) -> int: ...
    def stream(
        self, offset: int = 0, nbytes: int | None = None, *, chunk: int = ..., ahead: int = ...
    ) -> ByteStream: ...
    def file(self, offset: int = 0, nbytes: int | None = None) -> NamespaceFile: ...
    async def settled(self, lba: int = 0, blocks: int | None = None) -> None: ...
    async def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False, fua: bool = False) -> None: ...
    async def verify(self, lba: int, blocks: int) -> None: ...
    async def write_uncorrectable(self, lba: int, blocks: int) -> None: ...
    async def deallocate(self, lba: int | Iterable[tuple[int, int]], blocks: int | None = None) -> None: ...
    async def copy(self, sources: Iterable[tuple[int, int]], lba: int) -> None: ...
    @overload
    async def submit(self, command: Command, buffer: BufferLike | None = None, *, tag: int = 0) -> Completion: ...
    @overload
    async def submit(
        self, command: Sequence[Command], buffer: Sequence[BufferLike | None] | None = None, *, tag: int = 0
    ) -> list[Completion | CommandError]: ...
    def inspect(self) -> dict[str, Any]: ...
