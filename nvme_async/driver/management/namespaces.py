"""Namespace Management and Namespace Attachment (Base 2.1, 5.1.21 and 5.1.20)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvme_async.driver.management.formats import find_format
from nvme_async.errors import CommandError, ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.identify import IdentifyNamespace, encode_controller_list
from nvme_async.spec.opcodes import (
    NSID_ALL,
    Cns,
    NamespaceAttachmentAction,
    NamespaceManagementAction,
)

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller


async def create_namespace(
    controller: Controller,
    blocks: int | None = None,
    *,
    nbytes: int | None = None,
    capacity: int | None = None,
    lbaf: int | None = None,
    block_size: int | None = None,
    metadata: int = 0,
    extended: bool = False,
    pi: int = 0,
    shared: bool = False,
    ana_group: int = 0,
    nvm_set: int = 0,
    endurance_group: int = 0,
    placement_handles: Sequence[int] = (),
    csi: int = 0,
    attach: bool = True,
) -> int:
    """Creates a namespace and returns its id; once attached to this controller it appears in
    `controller.namespaces`.

    blocks or nbytes: its size; capacity: blocks that may be in use, by default all. lbaf, or
    block_size and metadata: its LBA format, by default the first. attach=False: it is only
    allocated. If attaching fails, it is deleted again.

    placement_handles: reclaim unit handles for its placement handles, in their order (Flexible Data
    Placement); without them the controller chooses one.
    """
    if (blocks is None) == (nbytes is None):
        raise ConfigurationError("give either blocks or nbytes for the size of the namespace")
    common = await _common(controller)
    if lbaf is None:
        lbaf = 0 if block_size is None else find_format(common, block_size, metadata)
    elif block_size is not None:
        raise ConfigurationError("lbaf and block_size exclude each other")
    if blocks is None:
        assert nbytes is not None
        size = common.lbafs[lbaf].block_size
        if not size or nbytes % size or nbytes <= 0:
            raise ConfigurationError(f"nbytes is {nbytes}, not a positive multiple of the block size of {size}")
        blocks = nbytes // size
    description = IdentifyNamespace(
        nsze=blocks,
        ncap=blocks if capacity is None else capacity,
        flbas=lbaf & 0xF | extended << 4 | (lbaf >> 4) << 5,
        dps=pi,
        nmic=int(shared),
        anagrpid=ana_group,
        nvmsetid=nvm_set,
        endgid=endurance_group,
    )
    command = commands.namespace_management(NamespaceManagementAction.CREATE, csi=csi)
    payload = commands.with_placement_handles(description.encode(), placement_handles)
    nsid = (await controller.admin(command, payload)).dw0
    if attach:
        try:
            await attach_namespace(controller, nsid)
        except CommandError:
            await delete_namespace(controller, nsid)
            raise
    return nsid


async def _common(controller: Controller) -> IdentifyNamespace:
    """The common properties of all namespaces."""
    completion = await controller.admin(commands.identify(Cns.NAMESPACE, NSID_ALL))
    assert completion.data is not None
    return IdentifyNamespace.decode(completion.data)


async def _attachment(
    controller: Controller, nsid: int, action: NamespaceAttachmentAction, controllers: Sequence[int] | None
) -> None:
    ids = [controller.identify.cntlid] if controllers is None else list(controllers)
    await controller.admin(commands.namespace_attachment(nsid, action), encode_controller_list(ids))


async def attach_namespace(controller: Controller, nsid: int, controllers: Sequence[int] | None = None) -> None:
    """Attaches a namespace to the controllers with these ids, by default to this one."""
    await _attachment(controller, nsid, NamespaceAttachmentAction.ATTACH, controllers)


async def detach_namespace(controller: Controller, nsid: int, controllers: Sequence[int] | None = None) -> None:
    """The reverse. In-flight I/O of the namespace ends first; its handle ends with
    InvalidNamespace.
    """
    await _attachment(controller, nsid, NamespaceAttachmentAction.DETACH, controllers)


async def delete_namespace(controller: Controller, nsid: int) -> None:
    """Deletes a namespace (FFFFFFFFh: all) with its data, attached or not."""
    await controller.admin(commands.namespace_management(NamespaceManagementAction.DELETE, nsid))
