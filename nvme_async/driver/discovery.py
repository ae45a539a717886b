"""Discovery by Identify (Base 2.0, 5.17): the controller itself, the limits of its command set,
its namespaces.

On the controller's home loop. Every function raises CommandError if the controller refuses, and
ControllerError if it fails.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nvme_async.device.quirks import Quirk, quirks_of
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.steps import patiently
from nvme_async.errors import CommandError, ControllerError, ControllerReplaced, ControllerTimeout, InvalidNamespace
from nvme_async.spec import commands
from nvme_async.spec.identify import (
    IdentifyController,
    IdentifyControllerNvm,
    IdentifyNamespace,
    NamespaceDescriptors,
    decode_namespace_list,
)
from nvme_async.spec.identity import ControllerIdentity, NamespaceIdentity
from nvme_async.spec.opcodes import Cns, Csi
from nvme_async.spec.status import CommandSpecificStatus, GenericStatus, StatusCodeType

log: logging.Logger = logging.getLogger("nvme_async")

VS_1_1, VS_1_3, VS_1_4 = 0x10100, 0x10300, 0x10400
_NO_MORE = 0xFFFF_FFFE  # from here on no nsid is valid for a list request (Base 2.0, 5.17.2.2)
MAX_ACTIVE = 1 << 16
"""Namespaces that one controller may have here."""
MAX_SCAN = 1024
"""Ids that are tried one by one if there is no list."""
_LIST = "list of active namespaces"
# The status with which Identify Namespace is refused for a namespace of another command set.
NOT_OF_NVM = {
    (StatusCodeType.GENERIC, GenericStatus.INVALID_FIELD),
    (StatusCodeType.COMMAND_SPECIFIC, CommandSpecificStatus.COMMAND_SET_NOT_SUPPORTED),
    (StatusCodeType.COMMAND_SPECIFIC, CommandSpecificStatus.COMMAND_SET_NOT_ENABLED),
    (StatusCodeType.COMMAND_SPECIFIC, CommandSpecificStatus.INVALID_COMMAND_SET),
}

_WITHOUT_BLOCKS = {Csi.KEY_VALUE}


async def _identify(controller: ControllerContext, cns: Cns, nsid: int = 0) -> bytes:
    completion = await controller._submit_admin(commands.identify(cns, nsid))
    assert completion.data is not None
    return completion.data


async def _identify_surely(controller: ControllerContext, cns: Cns, nsid: int) -> bytes:
    """A lost completion, or a refusal without Do Not Retry, must not cost a namespace."""
    try:
        return await patiently(lambda: _identify(controller, cns, nsid))
    except ControllerTimeout:
        return await _identify(controller, cns, nsid)


_WHAT_FOR = {2: "a discovery controller", 3: "an administrative controller"}
"""CNTRLTYPE of those that have no I/O queues (Base 2.0, 3.1.2)."""


async def identify_controller(controller: ControllerContext) -> IdentifyController:
    """ControllerError for an unsupported controller; ControllerReplaced if it isn't the one that
    was identified before.
    """
    identify = IdentifyController.decode(await _identify(controller, Cns.CONTROLLER))
    if controller.transport.ids is not None:
        controller.quirks = quirks_of(
            controller.transport.ids,
            model=identify.mn.strip(),
            firmware=identify.fr.strip(),
            override=controller.options.quirks,
            owner=controller.transport.owners_quirks,
        )
    if identify.cntrltype in _WHAT_FOR:
        raise ControllerError(
            f"{controller.uri}: {_WHAT_FOR[identify.cntrltype]} (CNTRLTYPE {identify.cntrltype}) has no I/O queues"
        )
    for what, needed, ours in (("submission", identify.sq_entry_size, 64), ("completion", identify.cq_entry_size, 16)):
        if needed > ours:
            raise ControllerError(
                f"{controller.uri}: needs {what} queue entries of {needed} bytes or more; this driver's have {ours}"
            )
    identity = ControllerIdentity.of(identify, controller.transport.ids)
    # Over a fabric the controller identifier is the association's, and a new one has another.
    anew = controller.transport.ids is None
    known = controller.identity
    if known is not None and (differences := known.differences(identity, connected_anew=anew)):
        raise ControllerReplaced(f"{controller.uri}: another controller responds: {differences}")
    controller.identity = identity
    return identify


async def identify_command_set(controller: ControllerContext) -> IdentifyControllerNvm | None:
    """Limits of commands without data. Older controllers don't have the page, and it is optional
    for newer ones.
    """
    if controller.vs.to_int() < VS_1_4 or Quirk.IDENTIFY_CNS in controller.quirks:
        return None
    try:
        return IdentifyControllerNvm.decode(await _identify(controller, Cns.CSI_CONTROLLER))
    except CommandError as error:
        if (error.sct, error.sc) != (StatusCodeType.GENERIC, GenericStatus.INVALID_FIELD):
            raise
        log.debug("%s: the limits of the NVM command set can't be read: %s", controller.uri, error)
        return None


async def active_namespaces(controller: ControllerContext) -> Sequence[int]:
    """Their ids, ascending (CNS 02h, Base 2.0, 5.17.2.2). If there is no such list, or the
    controller refuses it or doesn't answer, all possible ids up to MAX_SCAN: Identify Namespace
    decides for each.

    Ids above NN are ignored, and no list is longer than MAX_ACTIVE, so that the scan ends.
    """
    degraded, nn = controller.degraded, controller.identify.nn
    if controller.vs.to_int() < VS_1_1 or Quirk.IDENTIFY_CNS in controller.quirks:
        return range(1, min(nn, MAX_SCAN) + 1)
    active: list[int] = []
    last = 0
    try:
        while last < min(nn, _NO_MORE - 1) and len(active) < MAX_ACTIVE:
            found = decode_namespace_list(await _identify_surely(controller, Cns.ACTIVE_NAMESPACES, last))
            # A page without new ids comes from a controller that ignores the request's nsid.
            new = sorted({nsid for nsid in found if last < nsid <= nn})
            active += new
            if len(found) < 1024 or not new:
                break
            last = new[-1]
    except (CommandError, ControllerTimeout) as error:
        degraded.add(_LIST, error, f"the first {min(nn, MAX_SCAN)} ids are tried")
        return sorted({*range(1, min(nn, MAX_SCAN) + 1), *controller.namespaces})
    if len(active) > MAX_ACTIVE:
        degraded.add(_LIST, f"more than {MAX_ACTIVE} namespaces", "the others are omitted")
        return active[:MAX_ACTIVE]
    degraded.clear(_LIST)
    return active


def _is_not_of_nvm(error: CommandError) -> bool:
    return (error.sct, error.sc) in NOT_OF_NVM


async def identify_namespace(controller: ControllerContext, nsid: int) -> IdentifyNamespace | None:
    """None for one that doesn't exist (any more), is of another command set, or has an invalid
    block size: it does not affect the others.
    """
    try:
        try:
            page = await _identify_surely(controller, Cns.NAMESPACE, nsid)
        except CommandError as error:
            if not _is_not_of_nvm(error):
                raise
            page = await _identify(controller, Cns.NAMESPACE, nsid)  # reported twice, so it is true
    except InvalidNamespace:
        return None
    except CommandError as error:
        # One that was driven before is of this command set, regardless of the present status.
        if not _is_not_of_nvm(error) or nsid in controller.namespaces:
            raise
        log.warning("%s: namespace %d is omitted: %s", controller.uri, nsid, error)
        return None
    identify = IdentifyNamespace.decode(page)
    if identify.active and identify.block_size < 512:
        log.warning("%s: namespace %d is omitted: its blocks have %d bytes", controller.uri, nsid, identify.block_size)
        return None
    return identify if identify.active else None


async def identify_descriptors(controller: ControllerContext, nsid: int) -> NamespaceDescriptors | None:
    """CNS 03h, for the namespace's UUID; None if the controller doesn't report it (before NVMe
    1.3, or a refusal).
    """
    if controller.vs.to_int() < VS_1_3 or Quirk.IDENTIFY_CNS in controller.quirks:
        return None
    try:
        return NamespaceDescriptors.decode(await _identify(controller, Cns.NAMESPACE_DESCRIPTORS, nsid))
    except CommandError as error:
        log.debug("%s: namespace %d: the identification descriptors can't be read: %s", controller.uri, nsid, error)
        return None


async def examine(controller: ControllerContext, nsid: int) -> tuple[IdentifyNamespace, NamespaceIdentity] | None:
    """A namespace's format and identity; None for one that doesn't exist or can't be driven.
    CommandError if Identify fails.
    """
    bogus = Quirk.BOGUS_IDS in controller.quirks
    descriptors = None
    if not bogus and controller.transport.all_command_sets:
        # Their command set decides whether Identify Namespace exists for it (Base 2.0, 5.17.2.1): a
        # request that fails would be in the controller's error log after each scan.
        descriptors = await identify_descriptors(controller, nsid)
        if descriptors is not None and descriptors.csi in _WITHOUT_BLOCKS:
            log.debug("%s: namespace %d is omitted: its command set has no blocks", controller.uri, nsid)
            return None
    identify = await identify_namespace(controller, nsid)
    if identify is None:
        return None
    if bogus:
        return identify, NamespaceIdentity()
    if descriptors is None:
        descriptors = await identify_descriptors(controller, nsid)
    return identify, NamespaceIdentity.of(identify, descriptors)
