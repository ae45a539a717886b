"""URI schemes: the transport for a controller's URI.

The schemes of the device layer (pci:, vfio-user:, emulated:) are PCI functions. Others are
registered by name, with the module that serves them, which is imported when the first such URI is
opened.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Hashable
from typing import Protocol, cast

from nvme_async import device
from nvme_async.driver.options import Options
from nvme_async.driver.pcie import opening
from nvme_async.driver.transport import Transport
from nvme_async.errors import ConfigurationError


class TransportModule(Protocol):
    """The functions of a module that serves a scheme."""

    def parse(self, rest: str) -> str:
        """What follows the colon, checked and in its canonical form. ConfigurationError."""

    async def open_transport(self, uri: str, options: Options) -> Transport:
        """Opens the transport to that controller, before any controller object exists. If it is
        cancelled, nothing stays open.

        Raises ConfigurationError for the URI, ControllerGone if there is no controller,
        ControllerTimeout.
        """


_modules: dict[str, str] = {}


def register_transport(scheme: str, module: str) -> None:
    """URIs that start with `scheme:` are served by `module` (see TransportModule), imported at
    first use.
    """
    _modules[scheme] = module


def _module(scheme: str) -> TransportModule:
    return cast(TransportModule, importlib.import_module(_modules[scheme]))


def schemes() -> tuple[str, ...]:
    """All schemes that can be opened."""
    return (*device.schemes(), *_modules)


def parse_uri(uri: str) -> tuple[str, str]:
    """(scheme, the rest in its canonical form). ConfigurationError quotes the URI and lists the
    valid forms.
    """
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if colon and scheme in _modules:
        return scheme, _module(scheme).parse(rest)
    if not colon or scheme not in device.schemes():
        forms = ", ".join(f"{name}:" for name in schemes())
        raise ConfigurationError(f"device URI {uri!r} must begin with one of {forms}")
    return device.parse_uri(uri)


def location(uri: str) -> Hashable:
    """Equal for all ways to write one device's address, as links in the file system are now.
    Options in the URI don't count. A module of a scheme may have location(rest) for this.
    ConfigurationError as parse_uri(). Blocks for a stat(2) at most.
    """
    scheme, rest = parse_uri(uri)
    found = getattr(_module(scheme), "location", None) if scheme in _modules else None
    if found is not None:
        return scheme, found(rest)
    return scheme, os.path.realpath(rest) if scheme in ("vfio-user", "shared") else rest


async def open_transport(uri: str, options: Options) -> Transport:
    """Opens the transport to the controller at `uri`. If this is cancelled, nothing stays
    open.
    """
    scheme, _ = parse_uri(uri)
    if scheme in _modules:
        return await _module(scheme).open_transport(uri, options)
    return await opening.open_transport(uri, options)
