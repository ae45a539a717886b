"""Key value namespaces (Key Value Command Set 1.1): values under keys of up to 16 bytes, no
blocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from typing_extensions import Buffer

from nvme_async.driver.context import ControllerContext
from nvme_async.errors import CommandError, ConfigurationError, KeyDoesNotExist
from nvme_async.native._placement import byte_view
from nvme_async.spec import commands, kv
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import Cns, Csi

_LIST_BYTES = 4096
_FIRST_READ = 4096


class KeyValueNamespace:
    """A namespace that stores values under keys.

        values = await KeyValueNamespace.of(controller, 1)
        await values.store(b"key", b"value")
        assert await values.retrieve(b"key") == b"value"

    Such namespaces have no blocks, so they are not in `controller.namespaces`. Usable from any loop
    with a queue of its own. Raises KeyDoesNotExist, KeyExists, CapacityExceeded and the
    controller's other errors.

    Attributes:
        identify: Identify Namespace of the key value command set.
        max_value: bytes of the longest value that one command transfers.
    """

    def __init__(self, controller: ControllerContext, nsid: int, identify: kv.IdentifyNamespaceKv) -> None:
        self.controller = controller
        self.nsid = nsid
        self.identify = identify
        longest = identify.kvfs[0].vml or controller.transport.max_transfer
        self.max_value: int = min(longest, controller.transport.max_transfer)

    @classmethod
    async def of(cls, controller: ControllerContext, nsid: int) -> KeyValueNamespace:
        """Queries the controller. ConfigurationError for a namespace that is no key value
        namespace.
        """
        try:
            page = await controller.admin(commands.identify(Cns.CSI_NAMESPACE, nsid, csi=Csi.KEY_VALUE))
        except CommandError as error:
            raise ConfigurationError(f"namespace {nsid} is not a key-value namespace: {error}") from error
        assert page.data is not None
        identify = kv.IdentifyNamespaceKv.decode(page.data)
        if not identify.nsze:
            raise ConfigurationError(f"namespace {nsid} is not a key-value namespace")
        return cls(controller, nsid, identify)

    async def _submit(self, command: Command, buffer: Buffer | None = None) -> Completion:
        queue = await self.controller.transport.queues.for_this_loop()
        if queue is None:
            raise ConfigurationError(
                "this event loop shares another loop's queue pair, so it can only read and write blocks"
            )
        try:
            return await queue.submit(command, buffer)
        except CommandError as error:
            # Opcodes have other names than those of the NVM command set, and there are no blocks.
            raise type(error)(
                error.sct,
                error.sc,
                dnr=error.dnr,
                more=error.more,
                crd=error.crd,
                opcode=error.opcode,
                nsid=error.nsid,
                dw0=error.dw0,
                text=error.text,
                command=kv.KvOpcode(command.opcode).name.title(),
            ) from None

    async def store(self, key: bytes, value: Buffer, *, must_exist: bool = False, must_not_exist: bool = False) -> None:
        """Stores a value under a key of 1 to 16 bytes; the arguments decide whether it may
        replace another.
        """
        if not key:
            raise ValueError("a key must have 1 to 16 bytes")
        view = byte_view(value)
        if view.nbytes > self.max_value:
            raise ValueError(f"a value of {view.nbytes} bytes: at most {self.max_value}")
        command = kv.store(self.nsid, key, view.nbytes, must_exist=must_exist, must_not_exist=must_not_exist)
        await self._submit(command, view if view.nbytes else None)

    async def retrieve(self, key: bytes) -> bytes:
        """The value. KeyDoesNotExist."""
        nbytes = min(_FIRST_READ, self.max_value)
        while True:
            completion = await self._submit(kv.retrieve(self.nsid, key, nbytes))
            assert completion.data is not None
            if completion.dw0 <= nbytes:
                return completion.data[: completion.dw0]
            if completion.dw0 > self.max_value:
                raise ValueError(
                    f"the value has {completion.dw0} bytes; one command transfers at most {self.max_value}"
                )
            nbytes = completion.dw0  # it is longer than expected, or has grown

    async def delete(self, key: bytes) -> None:
        """KeyDoesNotExist."""
        await self._submit(kv.delete(self.nsid, key))

    async def exists(self, key: bytes) -> bool:
        try:
            await self._submit(kv.exist(self.nsid, key))
        except KeyDoesNotExist:
            return False
        return True

    async def list_keys(self, start: bytes = b"") -> AsyncIterator[bytes]:
        """All keys from `start` on, in the controller's order, with as many commands as
        necessary.
        """
        last: bytes | None = None
        while True:
            completion = await self._submit(kv.list_keys(self.nsid, start if last is None else last, _LIST_BYTES))
            assert completion.data is not None
            found = kv.decode_keys(completion.data)
            new = [key for key in found if key != last]
            for key in new:
                yield key
            if not new:
                return
            last = new[-1]

    def __repr__(self) -> str:
        return f"<KeyValueNamespace {self.nsid} of {self.controller.uri}>"
