"""nvme_async: an asyncio-native, usermode NVMe driver with a native hot path.

    async with nvme_async.open("emulated:size=1GiB") as controller:
        namespace = controller.namespaces[1]
        await namespace.write(0, b"hello".ljust(namespace.block_size, b"\\0"))
        data = await namespace.read(0)
"""

from __future__ import annotations

from nvme_async import errors
from nvme_async._open import open
from nvme_async.controller import Controller
from nvme_async.dma import DmaBuffer
from nvme_async.errors import *  # noqa: F403
from nvme_async.events import Event
from nvme_async.many import BatchError, Many
from nvme_async.memory import Registration
from nvme_async.namespace import Namespace
from nvme_async.options import Options
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion

__all__ = [
    "BatchError",
    "Command",
    "Completion",
    "Controller",
    "DmaBuffer",
    "Event",
    "Many",
    "Namespace",
    "Options",
    "Registration",
    "open",
    *errors.__all__,
]
