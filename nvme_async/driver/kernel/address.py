"""URIs of devices that the kernel drives.

    kernel:/dev/ng0n1    a namespace by its character device: unchanged NVMe commands (passthrough)
    kernel:/dev/nvme0n1  a namespace by its block device: reads and writes through the block layer
    kernel:nvme0         a controller with all its namespaces; /dev/ may be omitted
    kernel:/dev/disk/by-id/nvme-…   a link to such a node, followed whenever it is opened
    file:/path           any file or block device, with an emulated Identify

Options may follow as a query, for callers that have only the URI:

    file:/tmp/disk?block_size=512&engine=threads
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import attrs

from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError, ControllerGone

QUERY = ("engine", "direct", "io_poll", "block_size", "read_only", "allow_mounted_write")
_NODE = re.compile(r"/dev/(ng\d+n\d+|nvme\d+n\d+(p\d+)?|nvme\d+)")
_CONTROLLER = re.compile(r"/dev/nvme\d+")
_LINKS = "/dev/disk/"
_SWITCH = {"1": True, "on": True, "yes": True, "true": True, "0": False, "off": False, "no": False, "false": False}


@attrs.frozen
class Address:
    """scheme: "kernel" or "file". path: of the node or file. query: options that the URI names."""

    scheme: str
    path: str
    query: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.query)
        return f"{self.scheme}:{quote(self.path)}{'?' if query else ''}{query}"

    def node(self) -> str:
        """The path to open: of kernel: the NVMe node that a link leads to now. ControllerGone if
        there is none, ConfigurationError if it leads elsewhere.
        """
        if self.scheme == "file" or _NODE.fullmatch(self.path):
            return self.path
        found = os.path.realpath(self.path)
        if not os.path.exists(found):
            raise ControllerGone(f"there is no {self.path}")
        if not _NODE.fullmatch(found):
            raise ConfigurationError(f"{self.path} leads to {found}, which is not an NVMe node; for others use file:")
        return found

    def location(self) -> tuple[object, ...]:
        """Equal for all paths to one file or node, as links are now."""
        try:
            found = os.stat(self.path)
        except OSError:
            return (os.path.realpath(self.path),)
        if stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
            return (stat.S_IFMT(found.st_mode), found.st_rdev)
        return (found.st_dev, found.st_ino)

    def applied(self, options: Options) -> Options:
        """The options with those of the query in their place. ConfigurationError."""
        return attrs.evolve(options, **{name: _value(name, value) for name, value in self.query})


def _value(name: str, text: str) -> Any:
    if name == "block_size":
        if not text.isdigit():
            raise ConfigurationError(f"block_size={text!r} is not a number of bytes")
        return int(text)
    if name in ("engine", "direct"):
        return text
    if text.lower() not in _SWITCH:
        raise ConfigurationError(f"{name}={text!r} must be on or off")
    return _SWITCH[text.lower()]


def parse_address(scheme: str, rest: str) -> Address:
    """ConfigurationError quotes the invalid part."""
    path, _, query = rest.partition("?")
    path = unquote(path)
    options = tuple(sorted(parse_qsl(query, keep_blank_values=True)))
    names = [name for name, _ in options]
    for name in names:
        if name not in QUERY:
            raise ConfigurationError(f"{scheme}:{rest}: unknown option {name!r}; the options are {', '.join(QUERY)}")
        if names.count(name) > 1:
            raise ConfigurationError(f"{scheme}:{rest}: option {name} is there twice")
    if scheme == "kernel" and not path.startswith("/"):
        path = f"/dev/{path}"
    if scheme == "kernel" and not (_NODE.fullmatch(path) or path.startswith(_LINKS) or os.path.islink(path)):
        raise ConfigurationError(
            f"{scheme}:{rest}: {path!r} is not an NVMe node such as /dev/ng0n1, /dev/nvme0n1 or /dev/nvme0, "
            "nor a link to one; for other block devices use file:"
        )
    if not path.startswith("/") or "\0" in path:
        raise ConfigurationError(f"{scheme}:{rest}: {path!r} is not an absolute path")
    address = Address(scheme, path, options)
    address.applied(Options())
    return address


def is_controller(node: str) -> bool:
    """A controller with all its namespaces, by its node."""
    return _CONTROLLER.fullmatch(node) is not None
