"""This host's identity for controllers: host NQN and host identifier, where nvme-cli stores
them.
"""

from __future__ import annotations

import functools
import uuid
from pathlib import Path

import attrs

from nvme_async.driver.tcp.address import check_nqn
from nvme_async.errors import ConfigurationError

FOLDER = Path("/etc/nvme")
UUID_NQN = "nqn.2014-08.org.nvmexpress:uuid:"


@attrs.frozen
class Host:
    """Attributes:
    nqn: the host NQN. hostid: 16 bytes. Controllers, in particular reservations, treat two hosts
        with the same identifier as one (Base 2.0, 5.27.1.25).
    """

    nqn: str
    hostid: bytes


@functools.cache
def _own_uuid() -> uuid.UUID:
    """Stable for a machine that has an id, otherwise for this process."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return uuid.uuid5(uuid.UUID("7d7c0a5e-4d5c-5d7b-9c1c-6f1d4b6f8a11"), machine) if machine else uuid.uuid4()


def _read(name: str) -> str:
    try:
        return (FOLDER / name).read_text().strip()
    except OSError:
        return ""


def this_host(hostnqn: str = "", hostid: str = "") -> Host:
    """As given, otherwise from /etc/nvme/hostnqn and /etc/nvme/hostid, otherwise from this
    machine's id.

    ConfigurationError names an invalid value and its source.
    """
    nqn = hostnqn or _read("hostnqn")
    text = hostid or _read("hostid")
    if text:
        try:
            identifier = uuid.UUID(text)
        except ValueError:
            where = "hostid" if hostid else f"{FOLDER}/hostid"
            raise ConfigurationError(f"{where} is {text!r}, must be a UUID") from None
    elif nqn.startswith(UUID_NQN):
        try:
            identifier = uuid.UUID(nqn.removeprefix(UUID_NQN))
        except ValueError:
            identifier = _own_uuid()
    else:
        identifier = _own_uuid()
    if identifier.int == 0:
        raise ConfigurationError("hostid is all zeroes, which does not identify a host")
    return Host(check_nqn(nqn) if nqn else f"{UUID_NQN}{identifier}", identifier.bytes)
