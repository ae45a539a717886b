"""URI schemes: which transport reaches the controller that a URI names.

The schemes of the device layer (pci:, vfio-user:, emulated:) are PCI functions. Others are registered by name,
with the module that serves them, which is imported when the first such URI is opened.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from nvme_async import device
from nvme_async.driver.options import Options
from nvme_async.driver.pcie import opening
from nvme_async.driver.transport import Transport
from nvme_async.errors import ConfigurationError


class TransportModule(Protocol):
    """What a module that serves a scheme defines."""

    def parse(self, rest: str) -> str:
        """What follows the colon, checked and in its canonical form. ConfigurationError."""

    async def open_transport(self, uri: str, options: Options) -> Transport:
        """The way to that controller, before any controller object. If it is cancelled, nothing stays open.

        Raises ConfigurationError for the URI, ControllerGone when nothing is there, ControllerTimeout.
        """


_modules: dict[str, str] = {}


def register_transport(scheme: str, module: str) -> None:
    """URIs that begin with `scheme:` are served by `module` (see TransportModule), imported at first use."""
    _modules[scheme] = module


def _module(scheme: str) -> TransportModule:
    return cast(TransportModule, importlib.import_module(_modules[scheme]))


def schemes() -> tuple[str, ...]:
    """All schemes that can be opened."""
    return (*device.schemes(), *_modules)


def parse_uri(uri: str) -> tuple[str, str]:
    """(scheme, the rest in its canonical form). ConfigurationError quotes the URI and says what is allowed."""
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if colon and scheme in _modules:
        return scheme, _module(scheme).parse(rest)
    if not colon or scheme not in device.schemes():
        forms = ", ".join(f"{name}:" for name in schemes())
        raise ConfigurationError(f"device URI {uri!r} must begin with one of {forms}")
    return device.parse_uri(uri)


async def open_transport(uri: str, options: Options) -> Transport:
    """The way to the controller that `uri` names. If this is cancelled, nothing stays open."""
    scheme, _ = parse_uri(uri)
    if scheme in _modules:
        return await _module(scheme).open_transport(uri, options)
    return await opening.open_transport(uri, options)
