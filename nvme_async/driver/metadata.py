"""I/O on namespaces with metadata: in a separate buffer, in extended blocks, with protection
information (NVM Command Set 1.1, 5.2 and 5.3).

Data and metadata of a command lie in one piece of DMA memory, which the queue pair holds until the
controller is done, even if the awaiter is cancelled.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from nvme_async.driver.command_io import blocks_in
from nvme_async.driver.protection import PRACT, Format, Protect, pi_error
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.scattered import cut
from nvme_async.errors import NvmeError, PiError
from nvme_async.native import _pi
from nvme_async.native._hotpath import Geometry, scattered
from nvme_async.native._placement import Scatter, byte_view
from nvme_async.runtime.tasks import together
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import IdentifyNamespace, IdentifyNamespaceNvm
from nvme_async.spec.logs import decode_error_log
from nvme_async.spec.opcodes import Cns, Csi, LogPage, NvmOpcode

_OPCODES = {
    "read": NvmOpcode.READ,
    "readinto": NvmOpcode.READ,
    "write": NvmOpcode.WRITE,
    "compare": NvmOpcode.COMPARE,
}
_ERROR_ENTRIES = 64
_ELBAS = 1 << 15  # CTRATT: formats with extended protection information


@attrs.frozen(kw_only=True)
class Plan:
    """What one request transfers: whether metadata are transferred, and who protects."""

    opcode: int
    format: Format
    protect: Protect
    carries: bool
    act: bool
    directive: tuple[int, int] = (0, 0)
    """Type, and the value for it."""

    @classmethod
    def of(cls, method: str, form: Format, metadata: Any, protect: Protect | None) -> Plan:
        """ValueError for a combination that this format doesn't allow."""
        if protect is not None and form.pi is None:
            raise ValueError("protect is given, but the namespace has no protection information")
        if metadata is not None and not form.metadata:
            raise ValueError("metadata is given, but the namespace has no metadata")
        room = form.metadata > form.pi_bytes
        if protect is None:
            protect = Protect(by="none" if metadata is not None and not room else "controller")
        act = form.pi is not None and protect.by == "controller"
        if act and metadata is not None and not room:
            raise ValueError(
                "metadata is given, but it consists only of protection information that the controller inserts"
            )
        return cls(
            opcode=_OPCODES[method],
            format=form,
            protect=protect,
            carries=form.metadata > 0 and not (act and not room),
            act=act,
        )

    @property
    def step(self) -> int:
        """Bytes of memory for a block."""
        return self.format.size + (self.format.metadata if self.carries else 0)

    def command(self, nsid: int, lba: int, blocks: int, fua: bool, mptr: int) -> Command:
        fields = self.format.fields(self.protect, lba, act=self.act)
        return Command(
            opcode=self.opcode,
            nsid=nsid,
            mptr=mptr,
            cdw2=fields["cdw2"],
            cdw3=fields["cdw3"],
            cdw10=lba & 0xFFFF_FFFF,
            cdw11=lba >> 32,
            cdw12=blocks - 1 | fua << 30 | fields["cdw12"] | self.directive[0] << 20,
            cdw13=self.directive[1] << 16,
            cdw14=fields["cdw14"],
            cdw15=fields["cdw15"],
            data_length=None,
        )


def _fill(plan: Plan, memory: memoryview, data: memoryview, metadata: memoryview, lba: int) -> None:
    """The data to send: data and metadata in the format's layout, protected."""
    form = plan.format
    if plan.carries and form.extended:
        _pi.interleave(data, metadata, memory, form.size, form.metadata)
    else:
        memory[: len(data)] = data
        if plan.carries:
            memory[len(data) : len(data) + len(metadata)] = metadata
    if plan.carries and form.pi is not None and plan.protect.by == "host":
        tags = _tags(plan, lba)
        if form.extended:
            form.pi.generate(memory, None, **tags)
        else:
            form.pi.generate(memory[: len(data)], memory[len(data) :], **tags)


def _tags(plan: Plan, lba: int) -> dict[str, int]:
    return {
        "ref_tag": plan.format.first_ref_tag(plan.protect, lba),
        "app_tag": plan.protect.app_tag,
        "storage_tag": plan.protect.storage_tag,
    }


def _take(plan: Plan, memory: memoryview, data: memoryview, metadata: memoryview, nsid: int, lba: int) -> None:
    """The received data, checked if this process does the checking."""
    form = plan.format
    blocks = len(data) // form.size
    if plan.carries and form.extended:
        _pi.separate(memory, data, metadata, form.size, form.metadata)
    else:
        data[:] = memory[: len(data)]
        if plan.carries:
            metadata[:] = memory[len(data) : len(data) + len(metadata)]
    if not plan.carries or form.pi is None or plan.protect.by != "host":
        return
    checks = int(plan.protect.checks) & (~1 if form.pi.type == 3 else 15)
    failure = form.pi.check(data, metadata, **_tags(plan, lba), app_mask=plan.protect.app_mask, checks=checks)
    if failure is not None:
        raise pi_error(failure, opcode=plan.opcode, nsid=nsid, lba=lba, blocks=blocks)


class WithMetadata(Protocol):
    """The part of a Namespace that metadata needs."""

    nsid: int
    max_blocks: int
    identify: IdentifyNamespace
    controller: Any
    _format: tuple[IdentifyNamespace, Format] | None
    _gone: BaseException | None

    def _check(self, opcode: int, lba: int, blocks: int) -> None: ...
    async def _queue(self) -> Any: ...


async def _locate(ns: WithMetadata, error: PiError) -> None:
    """The block that the controller's error log names (Base 2.1, 5.1.12.1.2)."""
    try:
        page = await ns.controller.admin(
            commands.get_log_page(LogPage.ERROR_INFORMATION, 64 * _ERROR_ENTRIES, rae=True)
        )
    except NvmeError:
        return
    assert page.data is not None
    assert error.lba is not None
    assert error.blocks is not None
    for entry in decode_error_log(page.data):
        if (
            entry.nsid == error.nsid
            and entry.status & 0x7FF == error.status
            and error.lba <= entry.lba < error.lba + error.blocks
        ):
            error.block = entry.lba
            return


async def format_of(ns: WithMetadata) -> Format:
    """The present format of its blocks. If there may be more than the 16-bit guard without
    storage tags, the controller is queried (CNS 05h), once per format.
    """
    identify, known = ns.identify, ns._format
    if known is not None and known[0] is identify:
        return known[1]
    nvm = None
    if identify.dps & 7 and ns.controller.identify.ctratt & _ELBAS:
        completion = await ns.controller.admin(commands.identify(Cns.CSI_NAMESPACE, ns.nsid, csi=Csi.NVM))
        assert completion.data is not None
        nvm = IdentifyNamespaceNvm.decode(completion.data)
    result = Format.of(identify, nvm)
    ns._format = identify, result
    return result


async def _command(
    ns: WithMetadata, geometry: Geometry, plan: Plan, lba: int, data: memoryview, metadata: memoryview, fua: bool
) -> None:
    """One command's worth."""
    size, extra = plan.format.size, plan.format.metadata if plan.carries else 0
    blocks = len(data) // size
    length = blocks * (size + extra)
    queue = await ns._queue()
    buffer = await ns.controller.buffer(length)
    try:
        view = memoryview(buffer)[:length]
        if plan.opcode != NvmOpcode.READ:
            _fill(plan, view, data, metadata, lba)
        apart = extra and not plan.format.extended
        command = plan.command(ns.nsid, lba, blocks, fua, buffer.iova + blocks * size if apart else 0)
        # PRPs cover the data alone: their form depends on the length. The view holds the whole
        # buffer, including metadata, until the controller is done.
        await queue.submit(command, view[: blocks * size] if apart else view, geometry=geometry)
        if plan.opcode == NvmOpcode.READ:
            _take(plan, view, data, metadata, ns.nsid, lba)
        view.release()
    except PiError as error:
        if error.block is None:
            await _locate(ns, error)
        raise
    finally:
        buffer.free()


async def _in_place(
    ns: WithMetadata, geometry: Geometry, plan: Plan, lba: int, data: Scatter, metadata: Scatter | None, fua: bool
) -> bool:
    """Transfers data, and metadata in a separate buffer, by Scatter Gather Lists. False: that isn't
    possible, and nothing was sent.
    """
    form = plan.format
    by_host = form.pi is not None and plan.protect.by == "host"
    if plan.carries and (metadata is None or form.extended or by_host):
        return False
    queue = await ns._queue()
    if not isinstance(queue, LoopQueue):
        return False
    most = max(1, min(ns.max_blocks, ns.controller.transport.max_transfer // plan.step))
    parts = cut(queue, data, metadata if plan.carries else None, form.size, form.metadata, most)
    at = 0
    requests = []
    for part in parts:
        blocks = part.nbytes // form.size
        command = _later(plan, at).command(ns.nsid, lba + at, blocks, fua, 0)
        to_host = plan.opcode == NvmOpcode.READ
        requests.append(scattered(queue.hot, command.pack(), part, to_host=to_host, geometry=geometry))
        at += blocks
    try:
        await together(requests)
    except PiError as error:
        if error.block is None:
            await _locate(ns, error)
        raise
    return bool(parts)


async def move_scattered_blocks(
    ns: WithMetadata,
    geometry: Geometry,
    method: str,
    lba: int,
    data: Scatter,
    *,
    metadata: Scatter | None,
    protect: Protect | None,
    fua: bool = False,
) -> None:
    """ "readinto" or "write" of whole blocks in several places, on a namespace with metadata: in
    place if the controller has SGLs for that, else with copies.
    """
    plan = Plan.of(method, await format_of(ns), metadata, protect)
    size, extra = plan.format.size, plan.format.metadata
    blocks = blocks_in(data.nbytes, size)
    if metadata is not None and metadata.nbytes != blocks * extra:
        raise ValueError(f"metadata has {metadata.nbytes} bytes, {blocks} blocks have {blocks * extra}")
    ns._check(plan.opcode, lba, blocks)
    if await _in_place(ns, geometry, plan, lba, data, metadata, fua):
        return
    meta = None if metadata is None else metadata.gather()
    copy = data.gather()
    await move(ns, geometry, method, lba, copy, fua=fua, metadata=meta, protect=protect)
    if method == "readinto":
        data.fill(copy)
        if metadata is not None and meta is not None:
            metadata.fill(meta)


async def move(
    ns: WithMetadata,
    geometry: Geometry,
    method: str,
    lba: int,
    what: Any,
    *,
    fua: bool,
    metadata: Any,
    protect: Protect | None,
    directive: tuple[int, int] = (0, 0),
) -> Any:
    """read(), readinto(), write() or compare() of a namespace with metadata: with as many
    commands as necessary, one after another.
    """
    plan = attrs.evolve(Plan.of(method, await format_of(ns), metadata, protect), directive=directive)
    size, extra = plan.format.size, plan.format.metadata
    result: bytearray | None = None
    if method == "read":
        result = bytearray(what * size)
        data = memoryview(result)
    else:
        data = byte_view(what, writable=method == "readinto")
    blocks = blocks_in(data.nbytes, size)
    if metadata is None:
        meta = memoryview(bytearray(blocks * extra))
    else:
        meta = byte_view(metadata, writable=plan.opcode == NvmOpcode.READ)
        if meta.nbytes != blocks * extra:
            raise ValueError(f"metadata has {meta.nbytes} bytes, {blocks} blocks have {blocks * extra}")
    ns._check(plan.opcode, lba, blocks)
    if (
        method != "read"
        and metadata is not None
        and await _in_place(ns, geometry, plan, lba, Scatter([data]), Scatter([meta]), fua)
    ):
        return data.nbytes if method == "readinto" else None
    step = max(1, min(ns.max_blocks, ns.controller.transport.max_transfer // plan.step))
    for at in range(0, blocks, step):
        count = min(step, blocks - at)
        await _command(
            ns,
            geometry,
            _later(plan, at),
            lba + at,
            data[at * size : (at + count) * size],
            meta[at * extra : (at + count) * extra],
            fua,
        )
    if result is not None:
        return bytes(result)
    return data.nbytes if method == "readinto" else None


def _later(plan: Plan, blocks: int) -> Plan:
    """The same for later blocks: a given reference tag is incremented."""
    if not blocks or plan.protect.ref_tag is None or plan.format.pi is None or plan.format.pi.type == 3:
        return plan
    return attrs.evolve(plan, protect=attrs.evolve(plan.protect, ref_tag=plan.protect.ref_tag + blocks))


def protected(form: Format, command: Command, lba: int) -> Command:
    """Write Zeroes so that the zeroes are protected, Verify so that the protection is checked."""
    if form.pi is None:
        return command
    act = command.opcode == NvmOpcode.WRITE_ZEROES
    fields = form.fields(Protect(), lba, act=act)
    return attrs.evolve(
        command,
        cdw2=fields["cdw2"],
        cdw3=fields["cdw3"],
        cdw12=command.cdw12 | (fields["cdw12"] & PRACT << 26 if act else fields["cdw12"]),
        cdw14=fields["cdw14"],
        cdw15=fields["cdw15"],
    )
