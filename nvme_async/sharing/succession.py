"""How sharing continues when another process has the controller, or ends when it was reset
first.

Workers have their queues, memory and vectors, and notice nothing of the change: only the connection
is made again, at the same path. The saved state has what the successor needs of a lease; the stop
page is a descriptor of the bundle.
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
    """The running controller was taken over: continues to share it. fd: of the stop page, now
    owned by this function.

    InvalidSavedState for invalid leases; ConfigurationError if the path can't be listened on.
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
        raise InvalidSavedState(f"{controller.uri}: the saved leases of its workers are invalid: {error!r}") from error
    share.resume(stops, leases)


def end(fd: int, saved: dict[str, Any]) -> set[int]:
    """The controller is about to be reset without its predecessor's leases: no worker rings from
    now on.

    fd: of the stop page, now owned by this function; -1: there is none. Returns the ids of queues
    whose workers are alive, as far as known: one of them may still store to a doorbell.
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
