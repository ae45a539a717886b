"""The Streams directive of a namespace (Base 2.1, 8.1.8.3)."""

from __future__ import annotations

from typing import Any, Protocol

from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.completion import Completion
from nvme_async.spec.directives import DirectiveParameters, StreamParameters, decode_streams_status
from nvme_async.spec.identify import Oacs
from nvme_async.spec.opcodes import DirectiveType, IdentifyReceive, IdentifySend, StreamsReceive, StreamsSend

MAX_STREAM = 0xFFFF
_STATUS_NBYTES = 4096


class Streamable(Protocol):
    """The part of a Namespace that streams need."""

    nsid: int
    controller: Any


class Streams:
    """Data of the same lifetime, kept together by the controller: `namespace.write_streams`.

        await namespace.write_streams.enable()
        await namespace.write(lba, data, stream=7)

    Usable from any loop. ConfigurationError if the controller has no directives, or no streams.
    """

    def __init__(self, namespace: Streamable) -> None:
        self._namespace = namespace
        self.wanted = False
        """enable() was called: after a reset, which disables streams, write() does it again."""

    def check(self, stream: int | None = None) -> None:
        """ConfigurationError without directives; ValueError for an identifier that is none."""
        controller = self._namespace.controller
        if Oacs.DIRECTIVES not in controller.identify.admin_commands:
            raise ConfigurationError(f"{controller.uri} has no directives (Identify Controller, OACS)")
        if stream is not None and not 1 <= stream <= MAX_STREAM:
            raise ValueError(f"stream is {stream}, must be 1 to {MAX_STREAM}")

    async def _receive(self, kind: DirectiveType, operation: int, nbytes: int, cdw12: int = 0) -> Completion:
        self.check()
        command = commands.directive_receive(kind, operation, nbytes=nbytes, nsid=self._namespace.nsid, cdw12=cdw12)
        completion: Completion = await self._namespace.controller.admin(command)
        return completion

    async def _send(self, kind: DirectiveType, operation: int, dspec: int = 0, cdw12: int = 0) -> None:
        self.check()
        command = commands.directive_send(kind, operation, dspec, nsid=self._namespace.nsid, cdw12=cdw12)
        await self._namespace.controller.admin(command)

    async def _directives(self) -> DirectiveParameters:
        data = (await self._receive(DirectiveType.IDENTIFY, IdentifyReceive.RETURN_PARAMETERS, 4096)).data
        assert data is not None
        return DirectiveParameters.decode(data)

    async def enabled(self) -> bool:
        """Are streams enabled for this namespace and host?"""
        return DirectiveType.STREAMS in (await self._directives()).enabled

    async def enable(self) -> None:
        """Writes may name streams from now on, also after a reset."""
        if DirectiveType.STREAMS not in (await self._directives()).supported:
            raise ConfigurationError(f"{self._namespace.controller.uri} has no streams (Identify directive)")
        await self._send(DirectiveType.IDENTIFY, IdentifySend.ENABLE, cdw12=DirectiveType.STREAMS << 8 | 1)
        self.wanted = True

    async def disable(self) -> None:
        """Ends all streams of the namespace and returns its resources."""
        self.wanted = False
        await self._send(DirectiveType.IDENTIFY, IdentifySend.ENABLE, cdw12=DirectiveType.STREAMS << 8)

    async def parameters(self) -> StreamParameters:
        """Limits and use of streams."""
        data = (await self._receive(DirectiveType.STREAMS, StreamsReceive.RETURN_PARAMETERS, 32)).data
        assert data is not None
        return StreamParameters.decode(data)

    async def open(self) -> tuple[int, ...]:
        """The identifiers of the open streams."""
        data = (await self._receive(DirectiveType.STREAMS, StreamsReceive.GET_STATUS, _STATUS_NBYTES)).data
        assert data is not None
        return decode_streams_status(data)

    async def allocate(self, count: int) -> int:
        """Reserves resources for `count` streams of this namespace; the result is how many there
        are. StreamAllocationFailed if there are none left.
        """
        if not 1 <= count <= MAX_STREAM:
            raise ValueError(f"count is {count}, must be 1 to {MAX_STREAM}")
        completion = await self._receive(DirectiveType.STREAMS, StreamsReceive.ALLOCATE_RESOURCES, 0, cdw12=count)
        return completion.dw0 & MAX_STREAM

    async def release(self, stream: int | None = None) -> None:
        """Ends a stream; without its identifier all of them, and returns what was allocated."""
        if stream is None:
            await self._send(DirectiveType.STREAMS, StreamsSend.RELEASE_RESOURCES)
            return
        self.check(stream)
        await self._send(DirectiveType.STREAMS, StreamsSend.RELEASE_IDENTIFIER, dspec=stream)
