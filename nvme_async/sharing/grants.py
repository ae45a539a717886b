"""The answer that gives a process its lease: the facts of a Grant, and the descriptors."""

from __future__ import annotations

from typing import Any

from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.keepalive.controller import Controller
from nvme_async.sharing.lease import Lease
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.stop_page import StopPage

MAX_MAPPINGS = 64
"""Of one worker."""


def grant_of(
    controller: Controller, transport: PcieTransport, policy: Policy, stops: StopPage, lease: Lease
) -> tuple[dict[str, Any], list[int]]:
    """The body, as protocol.Grant reads it, and the descriptors in the order that it lists; they
    still belong to the owner.
    """
    ids, doorbells, event_fds = transport.device.ids, transport.device.doorbells(), transport.queues.maker.event_fds
    assert doorbells.window is not None
    fd, offset, nbytes = doorbells.window
    kick = [doorbells.kick_fd] if doorbells.kick_fd >= 0 else []
    qids = list(lease.queues)
    body = {
        "lease": lease.number,
        "token": lease.token,
        "life": lease.life,
        "slot": lease.slot,
        "qids": qids,
        "window": (lease.window.start, len(lease.window)),
        "pool_bytes": policy.pool_bytes,
        "max_mappings": MAX_MAPPINGS,
        "entries": policy.entries,
        "max_transfer": transport.max_transfer,
        "uri": controller.uri,
        "cap": transport.cap.to_int(),
        "vs": transport.vs.to_int(),
        "ids": [
            ids.vendor,
            ids.device,
            ids.subsystem_vendor,
            ids.subsystem,
            ids.class_code,
            ids.revision,
            ids.serial_number,
        ],
        "quirks": controller.quirks.names(),
        "all_command_sets": transport.all_command_sets,
        "doorbells": (offset, nbytes, doorbells.offset),
        "passes": True,
        "descriptors": ["stop", "doorbells", *("kick" for _ in kick), *(f"irq.{qid}" for qid in qids)],
    }
    return body, [stops.read_only, fd, *kick, *(event_fds[qid] for qid in qids)]
