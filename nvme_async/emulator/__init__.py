"""The built-in NVMe controller: a vfio-user server in C that runs in a thread of this process.

controller = EmulatedController(EmulatorConfig.parse("size=1GiB,block=4096"))
sock = controller.connect()        # the client's end; speak vfio-user
controller.listen("/run/c.sock")   # or serve others, one at a time
controller.close()
"""

from __future__ import annotations

from nvme_async.emulator.config import EmulatorConfig, Medium
from nvme_async.emulator.controller import EmulatedController
from nvme_async.emulator.faults import FOREVER, DmaRange, Doorbell, Faults, Outstanding, Rule
from nvme_async.emulator.formats import LbaFormat
from nvme_async.emulator.parsing import parse_size

__all__ = [
    "FOREVER",
    "DmaRange",
    "Doorbell",
    "EmulatedController",
    "EmulatorConfig",
    "Faults",
    "LbaFormat",
    "Medium",
    "Outstanding",
    "Rule",
    "parse_size",
]
