"""The seam between the driver and what it drives.

A device is named by a URI:

    pci:[DDDD:]BB:DD.F        a PCI function bound to vfio-pci, hexadecimal: pci:0000:01:00.0
    vfio-user:PATH            the Unix socket of a vfio-user server: vfio-user:/run/ctrl.sock
    emulated:[OPTION=…,…]     a controller of its own in this process: emulated:size=1GiB
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nvme_async.device.base import DOORBELL_OFFSET, Device, DeviceIds, Doorbells, Saved
from nvme_async.errors import ConfigurationError

__all__ = [
    "DOORBELL_OFFSET",
    "Device",
    "DeviceIds",
    "Doorbells",
    "open_device",
    "parse_uri",
    "resume_device",
]

SCHEMES = ("pci", "vfio-user", "emulated")
_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


def parse_uri(uri: str) -> tuple[str, str]:
    """(scheme, the rest), checked as far as it can be without looking at the system; a PCI address is
    completed.

    Raises ConfigurationError that quotes the URI and says what is allowed.
    """
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in SCHEMES:
        forms = ", ".join(f"{name}:" for name in SCHEMES)
        raise ConfigurationError(f"device URI {uri!r} must begin with one of {forms}")
    if scheme == "pci":
        match = _PCI_ADDRESS.fullmatch(rest)
        if match is None:
            raise ConfigurationError(f"device URI {uri!r}: {rest!r} is not a PCI address like 0000:01:00.0")
        domain, bus, slot, function = match.groups(default="0000")
        return scheme, f"{domain}:{bus}:{slot}.{function}".lower()
    if scheme == "vfio-user":
        if not rest or "\0" in rest:
            raise ConfigurationError(f"device URI {uri!r} names no socket; it is vfio-user:PATH")
        if len(rest.encode()) > 107:
            raise ConfigurationError(f"device URI {uri!r}: a socket's path has at most 107 bytes")
    return scheme, rest


def open_device(uri: str, *, timeout: float = 10.0) -> Device:
    """Opens the device that the URI names. Blocks: call it from a thread.

    `timeout`, in seconds, bounds connecting and each later call where calls are messages.
    Raises ConfigurationError for the URI itself, ControllerGone when nothing is there, and what Device says.
    """
    scheme, rest = parse_uri(uri)
    if scheme == "pci":
        from nvme_async.device.vfio import open_vfio

        return open_vfio(rest)
    if scheme == "vfio-user":
        from nvme_async.device.vfio_user import VfioUserDevice

        return VfioUserDevice.connect(rest, timeout=timeout)
    if scheme == "emulated":
        from nvme_async.device.emulated import EmulatedDevice

        return EmulatedDevice.start(rest, timeout=timeout)
    raise ConfigurationError(f"device URI {uri!r}: this build has no support for {scheme}:")


def resume_device(
    uri: str, descriptors: Mapping[str, int], saved: Saved | None = None, *, timeout: float = 10.0
) -> Device:
    """Goes on with a device that another process opened, left running and handed on.

    `descriptors` and `saved` are what its descriptors() and save() gave; the descriptors become the device's
    own. Without `saved`, what can be asked of the device is asked again. The controller isn't reset.
    """
    scheme, rest = parse_uri(uri)
    if scheme == "pci":
        from nvme_async.device.vfio import VfioDevice

        return VfioDevice.resume(rest, descriptors, saved)
    if scheme == "emulated":
        from nvme_async.device.emulated import EmulatedDevice

        return EmulatedDevice.resume(descriptors, saved, uri=uri, timeout=timeout)
    from nvme_async.device.vfio_user import VfioUserDevice

    return VfioUserDevice.resume(descriptors, saved, uri=uri, timeout=timeout)
