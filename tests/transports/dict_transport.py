"""A second transport, to be read in ten minutes: a controller whose one namespace is a
dictionary of blocks.

It proves the seam (nvme_async.driver.transport): lifecycle, namespaces, errors, the manager and the
benchmark work on it unchanged. `register_transport("dict", __name__)` makes `dict:BLOCKS` a URI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from nvme_async.driver.completions import error_from
from nvme_async.driver.options import Options
from nvme_async.driver.plain_queues import PlainQueue, PlainQueues
from nvme_async.driver.steps import Degraded, Step
from nvme_async.driver.transport import Owner, Transport
from nvme_async.errors import ConfigurationError, ControllerGone, NvmeError
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace, LbaFormat
from nvme_async.spec.opcodes import AdminOpcode, Cns, NvmOpcode
from nvme_async.spec.registers import Vs

BLOCK = 4096
FORMATS = (LbaFormat(ds=12), *(LbaFormat() for _ in range(63)))
INVALID_OPCODE, INVALID_FIELD, LBA_OUT_OF_RANGE, COMPARE_FAILURE = 0x01, 0x02, 0x80, 0x285


def parse(rest: str) -> str:
    """The number BLOCKS."""
    if not rest.isdigit() or not 1 <= int(rest) <= 1 << 30:
        raise ConfigurationError(f"dict:{rest}: {rest!r} is not a number of blocks, 1 to {1 << 30}")
    return str(int(rest))


async def open_transport(uri: str, options: Options) -> DictTransport:
    return DictTransport(uri, int(uri.partition(":")[2]))


class DictTransport(Transport):
    """blocks: {lba: bytes} of written blocks. gone: the next command fails with
    ControllerGone.
    """

    kind = "dict"

    def __init__(self, uri: str, size: int) -> None:
        self.uri = uri
        self.size = size
        self.blocks: dict[int, bytes] = {}
        self.vs = Vs.from_int(0x10300)
        self.gone = False
        self.resets = 0
        self.delay = 0.0
        self._on_gone: Callable[[], None] | None = None

    def attach(self, owner: Owner) -> None:
        self.queues = PlainQueues(owner, self._execute, entries=65)

    # -- bring-up, health, the end -----------------------------------------------------------------

    def open_steps(self) -> Sequence[Step]:
        return []

    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        return [Step("connect", self._connect)]

    async def _connect(self) -> None:
        self.resets += 1

    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        return []

    @property
    def max_transfer(self) -> int:
        return 8 * BLOCK

    async def lost(self) -> str:
        return ""

    async def has_failed(self) -> bool:
        return False

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self._on_gone = on_gone

    def disappear(self) -> None:
        """As if the controller were unplugged."""
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()

    async def shut_down(self, seconds: float) -> None:
        pass

    async def release(self, reason: NvmeError, *, keep: bool = False) -> DictTransport | None:
        await self.queues.fail(reason)
        if not keep:
            return None
        again = DictTransport(self.uri, self.size)
        again.blocks = self.blocks
        return again

    async def cut_off(self) -> None:
        self.gone = True

    def drop(self) -> None:
        self.gone = True

    def abandon(self) -> None:
        self.gone = True

    # -- commands ----------------------------------------------------------------------------------

    async def _execute(self, queue: PlainQueue, command: Command, buffer: memoryview | None, nbytes: int) -> Completion:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.gone:
            raise ControllerGone(f"{self.uri}: the dictionary is gone")
        if queue.qid == 0:
            if command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
                await asyncio.get_running_loop().create_future()  # there are no events
            status, data = self._admin(command)
        else:
            status, data = self._io(command, buffer)
        if status:
            raise error_from(status, 0, command.pack(), queue.qid == 0, False)
        if data is not None and buffer is not None:
            buffer[:] = data
            data = None
        return Completion(sqid=queue.qid, data=data)

    def _admin(self, command: Command) -> tuple[int, bytes | None]:
        if command.opcode != AdminOpcode.IDENTIFY:
            return INVALID_OPCODE, None
        cns = command.cdw10 & 0xFF
        if cns == Cns.CONTROLLER:
            page = IdentifyController(sn="DICT", mn="a dictionary", fr="1", nn=1, sqes=0x66, cqes=0x44, ver=0x10300)
            return 0, page.encode()
        if cns == Cns.ACTIVE_NAMESPACES:
            return 0, (b"\x01\0\0\0" if command.nsid == 0 else b"").ljust(4096, b"\0")
        if cns == Cns.NAMESPACE:
            page = IdentifyNamespace(nsze=self.size, ncap=self.size, nuse=self.size, lbafs=FORMATS)
            return 0, page.encode()
        return INVALID_FIELD, None

    def _io(self, command: Command, buffer: memoryview | None) -> tuple[int, bytes | None]:
        if command.opcode == NvmOpcode.FLUSH:
            return 0, None
        if command.opcode not in (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE):
            return INVALID_OPCODE, None
        lba, blocks = command.lba, command.blocks
        assert lba is not None
        if lba + blocks > self.size:
            return LBA_OUT_OF_RANGE, None
        if command.opcode != NvmOpcode.WRITE:
            data = b"".join(self.blocks.get(at, bytes(BLOCK)) for at in range(lba, lba + blocks))
            if command.opcode == NvmOpcode.COMPARE:
                return (0 if data == buffer else COMPARE_FAILURE), None
            return 0, data
        assert buffer is not None
        for at in range(blocks):
            self.blocks[lba + at] = bytes(buffer[at * BLOCK : (at + 1) * BLOCK])
        return 0, None
