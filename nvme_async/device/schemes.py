"""URI schemes: which module opens which kind of device.

A scheme is registered by name, with the module that serves it. The module is imported when the
first URI with that scheme is opened, so this layer can use other layers without importing them.
"""

from __future__ import annotations

import importlib
import mmap
import re
from collections.abc import Mapping
from typing import Protocol, cast

from nvme_async.device.base import Device, DeviceIds, Saved
from nvme_async.errors import ConfigurationError, DeviceError
from nvme_async.native._dma import PAGE_SIZE

DEFAULT_TIMEOUT = 10.0
"""Limit in seconds of connecting, and of each later call if calls are messages."""

_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


class Scheme(Protocol):
    """The functions of a module that serves a scheme. Both block: call them from a thread."""

    def open_uri(self, rest: str, *, timeout: float) -> Device:
        """Opens the device; `rest` is what follows the colon, as parse_uri() returns it."""

    def resume_uri(
        self,
        rest: str,
        descriptors: Mapping[str, int],
        saved: Saved | None,
        *,
        timeout: float,
        ids: DeviceIds | None = None,
    ) -> Device:
        """Continues with a device that another process opened; see resume_device()."""


_modules: dict[str, str] = {"pci": "nvme_async.device.vfio", "vfio-user": "nvme_async.device.vfio_user"}


def register_scheme(name: str, module: str) -> None:
    """URIs that begin with `name:` are served by `module` (see Scheme), which is imported at first
    use.
    """
    _modules[name] = module


def schemes() -> tuple[str, ...]:
    """The known schemes, the kernel's first."""
    return tuple(_modules)


def parse_uri(uri: str) -> tuple[str, str]:
    """(scheme, the rest), checked as far as possible without access to the system; a PCI address
    is completed.

    Raises ConfigurationError that quotes the URI and says what is allowed.
    """
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in _modules:
        forms = ", ".join(f"{name}:" for name in _modules)
        raise ConfigurationError(f"device URI {uri!r} must begin with one of {forms}")
    if scheme == "pci":
        match = _PCI_ADDRESS.fullmatch(rest)
        if match is None:
            raise ConfigurationError(f"device URI {uri!r}: {rest!r} is not a PCI address like 0000:01:00.0")
        domain, bus, slot, function = match.groups(default="0000")
        return scheme, f"{int(domain, 16):04x}:{bus}:{slot}.{function}".lower()
    if scheme == "vfio-user":
        if not rest or "\0" in rest:
            raise ConfigurationError(f"device URI {uri!r} names no socket; the form is vfio-user:PATH")
        if len(rest.encode()) > 107:
            raise ConfigurationError(f"device URI {uri!r}: a socket's path has at most 107 bytes")
    return scheme, rest


def _check_pages(uri: str) -> None:
    """The pool's pages have the controller's page size (CC.MPS 0), and mappings must be whole
    pages of the machine too.
    """
    if mmap.PAGESIZE != PAGE_SIZE:
        raise DeviceError(
            f"{uri}: this machine's memory pages have {mmap.PAGESIZE} bytes; this driver supports only pages of "
            f"{PAGE_SIZE} (on AArch64 the kernel's configuration chooses, CONFIG_ARM64_4K_PAGES)"
        )


def _scheme(name: str) -> Scheme:
    return cast(Scheme, importlib.import_module(_modules[name]))


def open_device(uri: str, *, timeout: float = DEFAULT_TIMEOUT) -> Device:
    """Opens the device that the URI names. Blocks: call it from a thread.

    `timeout`, in seconds, limits connecting and each later call if calls are messages. Raises
    ConfigurationError for the URI itself, ControllerGone if there is no device, and the errors of
    Device.
    """
    scheme, rest = parse_uri(uri)
    _check_pages(uri)
    return _scheme(scheme).open_uri(rest, timeout=timeout)


def resume_device(
    uri: str,
    descriptors: Mapping[str, int],
    saved: Saved | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    ids: DeviceIds | None = None,
) -> Device:
    """Continues with a device that another process opened, left running and handed over.

    `descriptors` and `saved` are the results of its descriptors() and save(); the descriptors
    become the device's own. Without `saved`, the device is queried again. The controller isn't
    reset. With `ids`, which are believed, nothing is asked of a device that is reached by messages,
    for another process still has it: identify_again() follows.
    """
    scheme, rest = parse_uri(uri)
    _check_pages(uri)
    return _scheme(scheme).resume_uri(rest, descriptors, saved, timeout=timeout, ids=ids)
