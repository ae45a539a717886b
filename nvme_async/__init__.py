"""nvme_async: an asyncio-native, usermode NVMe driver with a native hot path.

async with nvme_async.open("emulated:size=1GiB") as controller:
    namespace = controller.namespaces[1]
    await namespace.write(0, b"hello".ljust(namespace.block_size, b"\\0"))
    data = await namespace.read(0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_async import errors
from nvme_async._open import open, stand_by, take_over
from nvme_async._version import __version__
from nvme_async.dma import DmaBuffer
from nvme_async.driver.async_namespace import AsyncNamespace
from nvme_async.driver.batch import BatchError, Many
from nvme_async.driver.byte_stream import ByteStream
from nvme_async.driver.events import Event
from nvme_async.driver.keyvalue import KeyValueNamespace
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.namespace_file import NamespaceFile
from nvme_async.driver.options import DriverOptions, Options, TakeOverOptions
from nvme_async.driver.protection import Check, Protect
from nvme_async.driver.registration import Registration
from nvme_async.driver.reservations import Reservations
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.errors import *  # noqa: F403
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.opening import OpenOptions
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion

if TYPE_CHECKING:
    from nvme_async.driver.tcp.discovery import discover, discover_subsystems
    from nvme_async.manager import ManagedDevice, ManagedNamespace, Manager, ManagerEvent

__all__ = [
    "AsyncNamespace",
    "BatchError",
    "ByteStream",
    "Check",
    "Command",
    "Completion",
    "Controller",
    "DmaBuffer",
    "DriverOptions",
    "Event",
    "ManagedDevice",
    "ManagedNamespace",
    "Manager",
    "ManagerEvent",
    "KeyValueNamespace",
    "Many",
    "Namespace",
    "NamespaceFile",
    "OpenOptions",
    "Options",
    "Protect",
    "Registration",
    "Reservations",
    "TakeOverOptions",
    "ZonedNamespace",
    "__version__",
    "discover",
    "discover_subsystems",
    "open",
    "stand_by",
    "take_over",
    *errors.__all__,
]


def __getattr__(name: str) -> object:
    # The manager imports uvloop and threading; programs that drive one controller don't pay for
    # them.
    if name in ("ManagedDevice", "ManagedNamespace", "Manager", "ManagerEvent"):
        from nvme_async import manager

        return getattr(manager, name)
    if name in ("discover", "discover_subsystems"):
        from nvme_async.driver.tcp import discovery

        return getattr(discovery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
