"""Many devices in one process: worker threads, one driver for each device, and handles that outlive
it.

    async with Manager() as manager:
        ns = await manager.namespace("pci:0000:01:00.0", 1)
        data = await ns.read(0)

Threads
-------
- *Workers* (workers.py): threads with an event loop each. A controller's home is its worker's loop:
  bring-up, admin commands, resets, shutdown and events happen there. A device stays with its worker
  for as long as it is loaded.
- *Callers*: any other thread with an event loop. Reads and writes never leave the caller's thread:
  each loop has an I/O queue pair of its own on each controller that it uses, made at the first use
  (the neighbour's, if the controller has no more: `loops_sharing_a_queue`).
- *Plain threads* use `manager.run(coroutine)`; the coroutine runs on one of the workers.

Operations on one device (load, unload, reset, service, save) go through its mailbox, one at a time,
on its worker; those on different devices run concurrently. Looking (inspect) doesn't go through it,
and isn't held up by an operation that hangs.

Locks, each held for a few dictionary operations and never while anything is called or awaited, so
that there is no order between them: Registry (which devices), Workers (who is where), Gate (which
calls wait for a device), Events (who listens). Everything else about a device is written on its
worker only; others read single attributes.
"""

from __future__ import annotations

from nvme_async.manager.device import ManagedDevice
from nvme_async.manager.events import ManagerEvent, Subscription
from nvme_async.manager.handles import ManagedNamespace
from nvme_async.manager.manager import Manager
from nvme_async.manager.servicing import SavedDevices
from nvme_async.manager.settings import ManagerOptions

__all__ = [
    "ManagedDevice",
    "ManagedNamespace",
    "Manager",
    "ManagerEvent",
    "ManagerOptions",
    "SavedDevices",
    "Subscription",
]
