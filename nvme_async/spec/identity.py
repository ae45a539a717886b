"""The identity of controllers and namespaces, which distinguishes disks under the same address
or nsid.

An identity consists of what the device reports. Two identities are compared by the values that both
have, so that a value that could not be read once (an optional page, a transient error) doesn't turn
a disk into another one.
"""

from __future__ import annotations

import uuid
from typing import Protocol

import attrs

from nvme_async.spec._identify_controller import IdentifyController
from nvme_async.spec._identify_lists import NamespaceDescriptors
from nvme_async.spec._identify_namespace import IdentifyNamespace


class PciIds(Protocol):
    """The part of PCI configuration space that distinguishes devices
    (nvme_async.device.DeviceIds).
    """

    @property
    def vendor(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def subsystem_vendor(self) -> int: ...
    @property
    def subsystem(self) -> int: ...
    @property
    def serial_number(self) -> int: ...


def _names(pairs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs if value) or "without identifiers"


@attrs.frozen
class NamespaceIdentity:
    """Globally unique identifiers of a namespace (NVM Command Set 1.0, 4.1.5.1; Base 2.0,
    5.17.2.3).

    Attributes:
        nguid: 16 bytes as reported; empty if there is none (all zeroes).
        eui64: 8 bytes, likewise.
        uuid: None if there is none.
    """

    nguid: bytes = b""
    eui64: bytes = b""
    uuid: uuid.UUID | None = None

    @classmethod
    def of(cls, identify: IdentifyNamespace, descriptors: NamespaceDescriptors | None = None) -> NamespaceIdentity:
        """From Identify CNS 03h if the controller supports it; missing values come from CNS
        00h.
        """
        listed = descriptors if descriptors is not None else NamespaceDescriptors()

        def present(value: bytes | None) -> bytes:
            return value if value is not None and any(value) else b""

        return cls(
            nguid=present(listed.nguid) or present(identify.nguid),
            eui64=present(listed.eui64) or present(identify.eui64),
            uuid=listed.uuid if listed.uuid is not None and listed.uuid.int else None,
        )

    @property
    def known(self) -> bool:
        """Does the controller report any identifier?"""
        return bool(self.nguid or self.eui64 or self.uuid)

    def is_other(self, other: NamespaceIdentity) -> bool:
        """Is `other` certainly another namespace? Identifiers that both have decide; if one has
        none at all, nothing is certain.
        """
        pairs = (
            (self.nguid, other.nguid),
            (self.eui64, other.eui64),
            (self.uuid, other.uuid),
        )
        common = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        if common:
            return any(ours != theirs for ours, theirs in common)
        return self.known and other.known

    def merged(self, older: NamespaceIdentity) -> NamespaceIdentity:
        """This identity, completed by the values of `older`, of the same namespace, that could
        not be read.
        """
        return NamespaceIdentity(self.nguid or older.nguid, self.eui64 or older.eui64, self.uuid or older.uuid)

    def __str__(self) -> str:
        return _names(
            (
                ("NGUID", self.nguid.hex()),
                ("EUI-64", self.eui64.hex()),
                ("UUID", str(self.uuid) if self.uuid else ""),
            )
        )


@attrs.frozen
class ControllerIdentity:
    """The identity of a controller: Identify Controller (Base 2.0, 5.17.2.1) and PCI
    configuration space.

    Attributes:
        serial, model: without padding. subnqn: NVM subsystem qualified name, "" if there is none.
        cntlid: controller identifier; it belongs to one association, and a controller that is
            connected anew may have another.
        vendor, device, subsystem_vendor, subsystem: PCI ids.
        serial_number: PCI Device Serial Number capability, 0 = none.
    """

    serial: str
    model: str
    subnqn: str = ""
    cntlid: int = 0
    vendor: int = 0
    device: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0
    serial_number: int = 0

    @classmethod
    def of(cls, identify: IdentifyController, ids: PciIds | None) -> ControllerIdentity:
        """ids: of the PCI function; None for a controller that isn't one."""
        return cls(
            serial=identify.sn.strip(),
            model=identify.mn.strip(),
            subnqn=identify.subnqn,
            cntlid=identify.cntlid,
            vendor=ids.vendor if ids else 0,
            device=ids.device if ids else 0,
            subsystem_vendor=ids.subsystem_vendor if ids else 0,
            subsystem=ids.subsystem if ids else 0,
            serial_number=ids.serial_number if ids else 0,
        )

    def is_other(self, other: ControllerIdentity, *, connected_anew: bool = False) -> bool:
        """Is `other` another controller? connected_anew: it was opened again meanwhile, so the
        controller identifier is not compared.
        """
        return bool(self.differences(other, connected_anew=connected_anew))

    def differences(self, other: ControllerIdentity, *, connected_anew: bool = False) -> str:
        """In words, this one's value first; "" for the same controller."""
        found = []
        for field in attrs.fields(ControllerIdentity):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            optional = field.name in ("subnqn", "serial_number")
            if ours == theirs or (optional and not (ours and theirs)) or (field.name == "cntlid" and connected_anew):
                continue
            found.append(f"{field.name} {ours!r} became {theirs!r}")
        return ", ".join(found)

    def __str__(self) -> str:
        return f"{self.model}, serial number {self.serial}"
