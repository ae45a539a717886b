"""Where owners listen: a socket for each controller; of an owner with several, all in one
directory.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256

from nvme_async.errors import ConfigurationError

_LONGEST = 107
"""Bytes of a Unix socket's path (unix(7))."""
_DIGEST = 12


def place_of(uri: str, path: str, several: bool) -> str:
    """The socket of one controller: PATH itself, or, for several, a distinct name in the
    directory PATH. A name that the path leaves no room for is cut, and ends with a digest of the
    URI.
    """
    if not several:
        return path
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", uri).strip("_")[-80:]
    room = _LONGEST - len(os.fsencode(path)) - len("/.sock.4194304")
    if len(name) > room > _DIGEST:
        name = f"{name[: room - _DIGEST - 1]}-{sha256(uri.encode()).hexdigest()[:_DIGEST]}".lstrip("-")
    return os.path.join(path, name + ".sock")


def parse(rest: str) -> str:
    """The path of a socket, of what follows "shared:": PATH, or PATH?device=URI for one of an
    owner's several controllers, named as the owner names it. A directory with one socket stands
    for that.

    ConfigurationError for an invalid one.
    """
    path, _, query = rest.partition("?")
    name, _, device = query.partition("=")
    if query and (name != "device" or not device):
        raise ConfigurationError(f"shared:{rest}: only ?device=URI may follow the path, not ?{query}")
    path = os.path.abspath(path) if path else ""
    if device:
        path = place_of(device, path, True)
    elif os.path.isdir(path):
        there = sorted(entry for entry in os.listdir(path) if entry.endswith(".sock"))
        if len(there) != 1:
            raise ConfigurationError(
                f"shared:{rest}: {len(there)} controllers are shared at this path; choose one with ?device=URI "
                f"({', '.join(there) or 'none'})"
            )
        path = os.path.join(path, there[0])
    if not path or len(os.fsencode(path)) > _LONGEST:
        raise ConfigurationError(f"shared:{rest}: the path of a Unix socket must have 1 to {_LONGEST} bytes")
    return path
