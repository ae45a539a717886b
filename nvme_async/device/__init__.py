"""The seam between the driver and the device.

A device is named by a URI:

    pci:[DDDD:]BB:DD.F        a PCI function bound to vfio-pci, hexadecimal: pci:0000:01:00.0
    vfio-user:PATH            the Unix socket of a vfio-user server: vfio-user:/run/ctrl.sock
    emulated:[OPTION=…,…]     an emulated controller in this process: emulated:size=1GiB
"""

from __future__ import annotations

from nvme_async.device.base import Device, DeviceIds, Doorbells, Saved
from nvme_async.device.schemes import open_device, parse_uri, register_scheme, resume_device, schemes

__all__ = [
    "Device",
    "DeviceIds",
    "Doorbells",
    "Saved",
    "open_device",
    "parse_uri",
    "register_scheme",
    "resume_device",
    "schemes",
]
