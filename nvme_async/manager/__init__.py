"""Many devices in one process: worker threads, one driver per device, and handles that outlive
it.

    async with Manager() as manager:
        ns = await manager.namespace("pci:0000:01:00.0", 1)
        data = await ns.read(0)

Threads
-------
- *Workers* (workers.py): threads with one event loop each. A controller's home is its worker's
  loop: bring-up, admin commands, resets, shutdown and events happen there. A device stays with its
  worker for as long as it is loaded.
- *Callers*: any other thread with an event loop. Reads and writes never leave the caller's thread:
  each loop has its own I/O queue pair on each controller that it uses, made at the first use
  (another loop's, if the controller has no more: `loops_sharing_a_queue`).
- *Plain threads* use `manager.run(coroutine)`; the coroutine runs on one of the workers.

Operations on one device (load, unload, reset, service, save) go through its mailbox, one at a time,
on its worker; those on different devices run concurrently. inspect() doesn't go through it, and
isn't delayed by an operation that hangs.

Locks, each held for a few dictionary operations and never during a call or an await, so that they
need no order: Registry (the devices), Workers (the assignment of devices), Gate (the calls that
wait for a device), Events (the subscribers). Everything else about a device is written only on its
worker; other threads read single attributes.
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
