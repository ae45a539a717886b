"""Identify of a file or block device that isn't an NVMe namespace: a controller of NVMe 1.4 with
one namespace.
"""

from __future__ import annotations

import hashlib
import os

from nvme_async.driver.kernel.nodes import Node
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace, LbaFormat
from nvme_async.spec.opcodes import AdminOpcode, Cns
from nvme_async.spec.status import GenericStatus

VERSION = 0x10400
_COMPARE, _DSM, _WRITE_ZEROES, _VERIFY = 1 << 0, 1 << 2, 1 << 3, 1 << 7  # ONCS
_NO_RETRY = 0x4000
NO_CONTROLLER = "a file, or a block device opened as file:, is not an NVMe controller: it answers only Identify"


def _identity(node: Node) -> bytes:
    """16 bytes that stay the same for the same file or device."""
    status = os.fstat(node.fd)
    what = f"{status.st_rdev}" if status.st_rdev else f"{status.st_dev}:{status.st_ino}"
    return hashlib.sha256(what.encode()).digest()[:16]


def identify_controller(node: Node) -> bytes:
    """CNS 01h (Base 2.0, 5.17.2.1)."""
    return IdentifyController(
        sn=_identity(node).hex()[:20],
        mn=f"file {os.path.basename(node.path)}"[:40].encode("ascii", "replace").decode(),
        fr="1",
        ver=VERSION,
        cntrltype=1,
        nn=1,
        sqes=0x66,
        cqes=0x44,
        vwc=1,
        oncs=_COMPARE | _DSM | _WRITE_ZEROES | _VERIFY,
    ).encode()


def identify_namespace(node: Node) -> bytes:
    """CNS 00h (NVM Command Set 1.0, 4.1.5.1)."""
    used = LbaFormat(ds=node.block_size.bit_length() - 1)
    return IdentifyNamespace(
        nsze=node.blocks,
        ncap=node.blocks,
        nuse=node.blocks,
        nguid=_identity(node),
        lbafs=(used, *(LbaFormat() for _ in range(63))),
    ).encode()


def answer(node: Node, command: Command) -> tuple[int, bytes]:
    """(status, data) of an admin command."""
    if command.opcode != AdminOpcode.IDENTIFY:
        return GenericStatus.INVALID_OPCODE | _NO_RETRY, b""
    cns = command.cdw10 & 0xFF
    if cns == Cns.CONTROLLER:
        return 0, identify_controller(node)
    if cns == Cns.ACTIVE_NAMESPACES:
        return 0, (b"\x01\0\0\0" if command.nsid < 1 else b"").ljust(4096, b"\0")
    if cns == Cns.NAMESPACE:
        if command.nsid != 1:
            return GenericStatus.INVALID_NAMESPACE_OR_FORMAT | _NO_RETRY, b""
        return 0, identify_namespace(node)
    return GenericStatus.INVALID_FIELD | _NO_RETRY, b""
