"""Identify data structures that are lists (Base 5.17.2)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from enum import IntEnum

import attrs

from nvme_async.spec._identify_controller import SecondaryController
from nvme_async.spec._layout import Buffer, Layout, uint, uints
from nvme_async.spec.registers import PAGE

MAX_NAMESPACES = PAGE // 4
MAX_CONTROLLERS = PAGE // 2 - 1


def decode_namespace_list(data: Buffer) -> tuple[int, ...]:
    """Namespace identifiers in increasing order (CNS 02h, 07h, 10h, 1Ah), at most 1024; 0 ends the
    list.

    A full list means that there may be more: request those above the last one.
    """
    nsids = struct.unpack(f"<{len(data) // 4}I", bytes(data[: len(data) // 4 * 4]))
    return nsids[: nsids.index(0)] if 0 in nsids else nsids


def encode_namespace_list(nsids: Iterable[int]) -> bytes:
    """4096 bytes with these namespace identifiers."""
    entries = tuple(nsids)
    if len(entries) > MAX_NAMESPACES:
        raise ValueError(f"{len(entries)} namespaces; the limit is {MAX_NAMESPACES}")
    return struct.pack(f"<{len(entries)}I", *entries).ljust(PAGE, b"\0")


def _page(data: Buffer, least: int, name: str) -> bytes:
    """The list's bytes. ValueError where its first part is cut off."""
    if len(data) < least:
        raise ValueError(f"a list of {name} needs {least} bytes at least, not {len(data)}")
    return bytes(data)


def decode_controller_list(data: Buffer) -> tuple[int, ...]:
    """Controller identifiers in increasing order (CNS 12h, 13h), at most 2047.

    Raises ValueError for less than 2 bytes.
    """
    page = _page(data, 2, "controllers")
    count = min(int.from_bytes(page[:2], "little"), len(page) // 2 - 1)
    return struct.unpack_from(f"<{count}H", page, 2)


def encode_controller_list(cntlids: Iterable[int]) -> bytes:
    """4096 bytes with these controller identifiers, also the payload of Namespace Attachment."""
    entries = tuple(cntlids)
    if len(entries) > MAX_CONTROLLERS:
        raise ValueError(f"{len(entries)} controllers; the limit is {MAX_CONTROLLERS}")
    return struct.pack(f"<{len(entries) + 1}H", len(entries), *entries).ljust(PAGE, b"\0")


class IdentifierType(IntEnum):
    """Namespace identifier types (Base 5.17.2.3)."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4


_IDENTIFIER_SIZE = {
    IdentifierType.EUI64: 8,
    IdentifierType.NGUID: 16,
    IdentifierType.UUID: 16,
    IdentifierType.CSI: 1,
}


@attrs.frozen
class NamespaceDescriptors:
    """Namespace identification descriptors (CNS 03h; Base 5.17.2.3). None if the controller
    reports nothing.

    Attributes:
        eui64, nguid: as they come, big-endian bytes.
        uuid: namespace UUID.
        csi: command set identifier, see `opcodes.Csi`.
    """

    eui64: bytes | None = None
    nguid: bytes | None = None
    uuid: uuid.UUID | None = None
    csi: int | None = None

    @classmethod
    def decode(cls, data: Buffer) -> NamespaceDescriptors:
        """From the list; ends at a descriptor of length 0, or one that does not fit.

        Unknown types are skipped.
        """
        page = bytes(data)
        found: dict[int, bytes] = {}
        at = 0
        while at + 4 <= len(page):
            nidt, nidl = page[at], page[at + 1]
            nid = page[at + 4 : at + 4 + nidl]
            if nidl == 0 or len(nid) < nidl:
                break
            if nidt in _IDENTIFIER_SIZE and nidl == _IDENTIFIER_SIZE[IdentifierType(nidt)]:
                found.setdefault(nidt, nid)
            at += 4 + nidl
        uuid_ = found.get(IdentifierType.UUID)
        csi = found.get(IdentifierType.CSI)
        return cls(
            eui64=found.get(IdentifierType.EUI64),
            nguid=found.get(IdentifierType.NGUID),
            uuid=uuid.UUID(bytes=uuid_) if uuid_ else None,
            csi=csi[0] if csi else None,
        )

    def encode(self) -> bytes:
        """4096 bytes."""
        page = b""
        for nidt, nid in (
            (IdentifierType.EUI64, self.eui64),
            (IdentifierType.NGUID, self.nguid),
            (IdentifierType.UUID, self.uuid.bytes if self.uuid else None),
            (IdentifierType.CSI, bytes([self.csi]) if self.csi is not None else None),
        ):
            if nid is None:
                continue
            if len(nid) != _IDENTIFIER_SIZE[nidt]:
                raise ValueError(f"{nidt.name} has {len(nid)} bytes, not {_IDENTIFIER_SIZE[nidt]}")
            page += struct.pack("<BBxx", nidt, len(nid)) + nid
        return page.ljust(PAGE, b"\0")


def decode_secondary_controllers(data: Buffer) -> tuple[SecondaryController, ...]:
    """Secondary controller list (CNS 15h; Base 5.17.2), at most 127 entries.

    Raises ValueError for less than 32 bytes.
    """
    page = _page(data, 32, "secondary controllers")
    count = min(page[0], (len(page) - 32) // SecondaryController.SIZE)
    return tuple(SecondaryController.decode(page[at : at + 32]) for at in range(32, 32 * (count + 1), 32))


def decode_uuid_list(data: Buffer) -> tuple[uuid.UUID, ...]:
    """UUID list (CNS 17h; Base 5.17.2). Entry n is UUID index n + 1; a zero UUID ends the list."""
    page = bytes(data)
    found = []
    for at in range(32, len(page) - 31, 32):
        value = uuid.UUID(bytes=page[at + 16 : at + 32])
        if not value.int:
            break
        found.append(value)
    return tuple(found)


@attrs.frozen
class NvmSet(Layout, size=128):
    """NVM set attributes entry (CNS 04h; Base 5.17.2.4). Capacities in bytes."""

    nvmsetid: int = uint(0, 2)
    endgid: int = uint(2, 2)
    rr4kt: int = uint(8, 4)
    """Typical time of a random 4 KiB read, in 100 ns."""
    ows: int = uint(12, 4)
    """Optimal write size in bytes."""
    tnvmsetcap: int = uint(16, 16)
    unvmsetcap: int = uint(32, 16)


def decode_nvm_sets(data: Buffer) -> tuple[NvmSet, ...]:
    """NVM set list (CNS 04h), at most 31 entries.

    Raises ValueError for less than 128 bytes.
    """
    page = _page(data, 128, "NVM sets")
    count = min(page[0], len(page) // NvmSet.SIZE - 1)
    return tuple(NvmSet.decode(page[at : at + 128]) for at in range(128, 128 * (count + 1), 128))


@attrs.frozen
class Domain(Layout, size=128):
    """Domain attributes entry (CNS 18h; Base 5.17.2). Capacities in bytes."""

    domainid: int = uint(0, 2)
    dcap: int = uint(16, 16)
    udcap: int = uint(32, 16)
    megdcap: int = uint(48, 16)


def decode_domains(data: Buffer) -> tuple[Domain, ...]:
    """Domain list (CNS 18h), at most 31 entries.

    Raises ValueError for less than 128 bytes.
    """
    page = _page(data, 128, "domains")
    count = min(page[0], len(page) // Domain.SIZE - 1)
    return tuple(Domain.decode(page[at : at + 128]) for at in range(128, 128 * (count + 1), 128))


def decode_endurance_groups(data: Buffer) -> tuple[int, ...]:
    """Endurance group identifiers (CNS 19h; Base 5.17.2), at most 2047; the same layout as a
    controller list.
    """
    return decode_controller_list(data)


@attrs.frozen
class NamespaceGranularity(Layout, size=16):
    """Namespace granularity descriptor (CNS 16h; Base 5.17.2), in bytes; 0 not reported."""

    nszegran: int = uint(0, 8)
    ncapgran: int = uint(8, 8)


@attrs.frozen
class NamespaceGranularityList:
    """Namespace granularity list (CNS 16h).

    Attributes:
        nga: attributes; bit 0: entry n belongs to LBA format n, otherwise the first entry to all.
        descriptors: up to 16.
    """

    nga: int
    descriptors: tuple[NamespaceGranularity, ...]

    @classmethod
    def decode(cls, data: Buffer) -> NamespaceGranularityList:
        """From 4096 bytes; the number of descriptors is zero-based there.

        Raises ValueError where one is cut off.
        """
        page = _page(data, 32, "granularities")
        count = min(page[4] + 1, 16)
        return cls(
            nga=int.from_bytes(page[:4], "little"),
            descriptors=tuple(NamespaceGranularity.decode(page[at : at + 16]) for at in range(32, 32 + 16 * count, 16)),
        )


@attrs.frozen
class CommandSets(Layout, size=4096):
    """I/O command set combinations (CNS 1Ch; Base 5.17.2): one bit per command set identifier in
    each entry.
    """

    iocsc: tuple[int, ...] = uints(0, 8, 512)

    def index(self, *csis: int) -> int | None:
        """The first combination that has all of these command sets, the value of feature 19h.

        None if there is none.
        """
        wanted = sum(1 << csi for csi in set(csis))
        for number, combination in enumerate(self.iocsc):
            if combination == 0:
                break
            if combination & wanted == wanted:
                return number
        return None
