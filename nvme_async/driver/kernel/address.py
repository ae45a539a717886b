"""URIs of devices that the kernel drives.

    kernel:/dev/ng0n1    a namespace by its character device: unchanged NVMe commands (passthrough)
    kernel:/dev/nvme0n1  a namespace by its block device: reads and writes through the block layer
    kernel:nvme0         a controller with all its namespaces; /dev/ may be omitted
    file:/path           any file or block device, with an emulated Identify

Options may follow as a query, for callers that have only the URI:

    file:/tmp/disk?block_size=512&engine=threads
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import attrs

from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError

QUERY = ("engine", "direct", "io_poll", "block_size", "read_only", "allow_mounted_write")
_NODE = re.compile(r"/dev/(ng\d+n\d+|nvme\d+n\d+(p\d+)?|nvme\d+)")
_CONTROLLER = re.compile(r"/dev/nvme\d+")
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

    @property
    def is_controller(self) -> bool:
        """A controller with all its namespaces."""
        return self.scheme == "kernel" and _CONTROLLER.fullmatch(self.path) is not None

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
    options = tuple(parse_qsl(query, keep_blank_values=True))
    for name, _ in options:
        if name not in QUERY:
            raise ConfigurationError(f"{scheme}:{rest}: unknown option {name!r}; the options are {', '.join(QUERY)}")
    if scheme == "kernel" and not path.startswith("/"):
        path = f"/dev/{path}"
    if scheme == "kernel" and not _NODE.fullmatch(path):
        raise ConfigurationError(
            f"{scheme}:{rest}: {path!r} is not an NVMe node such as /dev/ng0n1, /dev/nvme0n1 or /dev/nvme0; "
            "for other block devices use file:"
        )
    if not path.startswith("/") or "\0" in path:
        raise ConfigurationError(f"{scheme}:{rest}: {path!r} is not an absolute path")
    address = Address(scheme, path, options)
    address.applied(Options())
    return address
