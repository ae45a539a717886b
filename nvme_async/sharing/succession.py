"""How sharing goes on when another process has the controller, or ends when it was reset first.

Workers have their queues, memory and vectors, and notice nothing of the change: only the connection is made again, at
the same path. What the successor needs of a lease is in the saved state; the stop page is a descriptor of the bundle.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from nvme_async.errors import InvalidSavedState
from nvme_async.keepalive.controller import Controller
from nvme_async.sharing.lease import Lease, process_of
from nvme_async.sharing.owner import Share
from nvme_async.sharing.stop_page import StopPage

log: logging.Logger = logging.getLogger("nvme_async")


def resume(controller: Controller, saved: dict[str, Any], fd: int) -> None:
    """The controller was taken over as it runs: shares it on. fd: of the stop page, this function's from now on.

    InvalidSavedState where leases make no sense; ConfigurationError where the path can't be listened on.
    """
    stops = StopPage(fd)
    leases: list[Lease] = []
    try:
        share = Share(controller, str(saved["path"]), dict(saved["policy"]))
        for one in saved["leases"]:
            slot = stops.take(int(one["slot"]))
            leases.append(Lease.of(one, stops.life(slot)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        stops.close()
        for lease in leases:
            if lease.pidfd >= 0:
                os.close(lease.pidfd)
        raise InvalidSavedState(f"{controller.uri}: the leases of its workers make no sense: {error!r}") from error
    share.resume(stops, leases)


def end(fd: int, saved: dict[str, Any]) -> set[int]:
    """The controller is about to be reset without its predecessor's leases: no worker rings from here on.

    fd: of the stop page, this function's from now on; -1: there is none. Returns the ids of queues whose
    workers live, as far as is known: a doorbell store that one of them had decided on may still come.
    """
    if fd >= 0:
        try:
            stops = StopPage(fd)
        except InvalidSavedState as error:
            log.warning("sharing: %s", error)
        else:
            stops.end_all()
            stops.close()
    stale: set[int] = set()
    for lease in saved.get("leases", ()):
        if process_of(int(lease["pid"]))[1] == int(lease["started"]):
            stale.update(map(int, lease["queues"]))
    return stale
