"""What there is behind a controller, by Identify (Base 2.0, 5.17): itself, the limits of its command set, its namespaces.

On the controller's home loop. Every function raises CommandError for what the controller refuses, and ControllerError when it fails.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nvme_async.errors import CommandError, InvalidNamespace
from nvme_async.events import Event, Kind
from nvme_async.namespace import Namespace
from nvme_async.spec import commands
from nvme_async.spec.completion import AsyncEvent
from nvme_async.spec.identify import IdentifyController, IdentifyControllerNvm, IdentifyNamespace, decode_namespace_list
from nvme_async.spec.opcodes import Cns
from nvme_async.spec.status import CommandSpecificStatus, GenericStatus, StatusCodeType

if TYPE_CHECKING:
    from nvme_async.controller import Controller

log = logging.getLogger("nvme_async")

VS_1_1, VS_1_4 = 0x10100, 0x10400
# How Identify Namespace is refused for a namespace of a command set that it doesn't know.
NOT_OF_NVM = {
    (StatusCodeType.GENERIC, GenericStatus.INVALID_FIELD),
    (StatusCodeType.COMMAND_SPECIFIC, CommandSpecificStatus.COMMAND_SET_NOT_SUPPORTED),
    (StatusCodeType.COMMAND_SPECIFIC, CommandSpecificStatus.COMMAND_SET_NOT_ENABLED),
    (StatusCodeType.COMMAND_SPECIFIC, CommandSpecificStatus.INVALID_COMMAND_SET),
}


async def _identify(controller: Controller, cns: Cns, nsid: int = 0) -> bytes:
    completion = await controller.admin_queue.submit(commands.identify(cns, nsid))
    assert completion.data is not None
    return completion.data


async def identify_controller(controller: Controller) -> IdentifyController:
    return IdentifyController.decode(await _identify(controller, Cns.CONTROLLER))


async def identify_command_set(controller: Controller) -> IdentifyControllerNvm | None:
    """Limits of commands that move no data. Older controllers don't know the page, and it is optional for younger ones."""
    if controller.vs.to_int() < VS_1_4:
        return None
    try:
        return IdentifyControllerNvm.decode(await _identify(controller, Cns.CSI_CONTROLLER))
    except CommandError as error:
        log.debug("%s: no limits for the NVM command set: %s", controller.uri, error)
        return None


async def active_namespaces(controller: Controller) -> list[int]:
    """Their ids, ascending (CNS 02h, Base 2.0, 5.17.2.2)."""
    if controller.vs.to_int() < VS_1_1:
        return list(range(1, controller.identify.nn + 1))  # there is no list: Identify Namespace tells of each
    active: list[int] = []
    while True:
        page = decode_namespace_list(await _identify(controller, Cns.ACTIVE_NAMESPACES, active[-1] if active else 0))
        active += page
        if len(page) < 1024:
            return active


async def identify_namespace(controller: Controller, nsid: int) -> IdentifyNamespace | None:
    """None for one that isn't there (any more), is of another command set, or has blocks that make no sense: it keeps nobody from the
    others."""
    try:
        identify = IdentifyNamespace.decode(await _identify(controller, Cns.NAMESPACE, nsid))
    except InvalidNamespace:
        return None
    except CommandError as error:
        if (error.sct, error.sc) not in NOT_OF_NVM:
            raise
        log.warning("%s: namespace %d is left out: %s", controller.uri, nsid, error)
        return None
    if identify.active and identify.block_size < 512:
        log.warning("%s: namespace %d is left out: its blocks have %d bytes", controller.uri, nsid, identify.block_size)
        return None
    return identify if identify.active else None


async def rescan(controller: Controller, cause: AsyncEvent | None = None) -> None:
    """Brings `controller.namespaces` up to date and publishes what has changed."""
    found = {}
    changes: list[tuple[Kind, int]] = []
    for nsid in await active_namespaces(controller):
        identify = await identify_namespace(controller, nsid)
        if identify is None:
            continue
        namespace = controller.namespaces.get(nsid)
        if namespace is None:
            namespace = Namespace(controller, nsid)
            namespace._update(identify)
            changes.append(("namespace-added", nsid))
        elif namespace._update(identify):
            changes.append(("namespace-changed", nsid))
        found[nsid] = namespace
    for nsid, namespace in list(controller.namespaces.items()):
        if nsid not in found:
            del controller.namespaces[nsid]
            namespace._remove()
            changes.append(("namespace-removed", nsid))
    for nsid in sorted(found):
        controller.namespaces.pop(nsid, None)
        controller.namespaces[nsid] = found[nsid]
    if changes:
        controller.note()
    for kind, nsid in changes:
        controller.listener.publish(Event(kind, controller.uri, nsid, cause))
