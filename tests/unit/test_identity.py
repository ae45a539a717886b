"""When two namespaces or controllers count as different."""

from __future__ import annotations

import uuid

import attrs
import pytest

from nvme_async.device import DeviceIds
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace, NamespaceDescriptors
from nvme_async.spec.identity import ControllerIdentity, NamespaceIdentity

A, B = bytes(range(16)), bytes(range(1, 17))
U, V = uuid.UUID(int=1), uuid.UUID(int=2)
NOTHING = NamespaceIdentity()


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        (NamespaceIdentity(A), NamespaceIdentity(A), False),
        (NamespaceIdentity(A), NamespaceIdentity(B), True),
        (NamespaceIdentity(A, A[:8], U), NamespaceIdentity(A, A[:8], V), True),
        (NamespaceIdentity(A, A[:8], U), NamespaceIdentity(A), False),  # the UUID could not be read
        (NamespaceIdentity(A, uuid=U), NamespaceIdentity(B, uuid=U), True),
        (NamespaceIdentity(A), NamespaceIdentity(uuid=U), True),  # a drive does not change its kind of identifier
        (NamespaceIdentity(A), NOTHING, False),  # nothing is certain
        (NOTHING, NOTHING, False),
    ],
)
def test_namespaces_are_compared_by_common_identifiers(
    one: NamespaceIdentity, other: NamespaceIdentity, differs: bool
) -> None:
    assert one.is_other(other) is differs
    assert other.is_other(one) is differs


def test_a_namespaces_identity_comes_from_descriptors_and_identify() -> None:
    identify = attrs.evolve(IdentifyNamespace.decode(bytes(4096)), nguid=A, eui64=bytes(8))
    assert NamespaceIdentity.of(identify) == NamespaceIdentity(A)
    listed = NamespaceDescriptors(nguid=bytes(16), eui64=B[:8], uuid=U)
    assert NamespaceIdentity.of(identify, listed) == NamespaceIdentity(A, B[:8], U)
    assert NamespaceIdentity.of(identify, NamespaceDescriptors(uuid=uuid.UUID(int=0))) == NamespaceIdentity(A)
    assert not NamespaceIdentity.of(IdentifyNamespace.decode(bytes(4096))).known


def test_known_identifiers_are_kept() -> None:
    full = NamespaceIdentity(A, A[:8], U)
    assert NamespaceIdentity(A).merged(full) == full
    assert str(full) == f"NGUID {A.hex()}, EUI-64 {A[:8].hex()}, UUID {U}"
    assert str(NOTHING) == "without identifiers"


DRIVE = ControllerIdentity("S1", "M", "nqn.x", 1, 0x1B36, 0x10, 0x1AF4, 0x1100, 77)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("serial", "S2"),
        ("model", "N"),
        ("subnqn", "nqn.y"),
        ("vendor", 1),
        ("device", 1),
        ("subsystem_vendor", 1),
        ("subsystem", 1),
        ("serial_number", 78),
    ],
)
def test_another_controller_is_recognized(change: str, value: object) -> None:
    other = attrs.evolve(DRIVE, **{change: value})
    assert DRIVE.is_other(other)
    assert DRIVE.is_other(other, connected_anew=True)
    assert DRIVE.differences(other) == f"{change} {getattr(DRIVE, change)!r} became {value!r}"


def test_a_controller_id_belongs_to_one_association() -> None:
    other = attrs.evolve(DRIVE, cntlid=2)
    assert DRIVE.is_other(other)
    assert not DRIVE.is_other(other, connected_anew=True)


@pytest.mark.parametrize("missing", [{"subnqn": ""}, {"serial_number": 0}])
def test_identifiers_that_one_side_lacks_are_ignored(missing: dict[str, object]) -> None:
    assert not DRIVE.is_other(attrs.evolve(DRIVE, **missing))


def test_a_controllers_identity_is_without_padding() -> None:
    page = bytearray(4096)
    page[4:24], page[24:64], page[78:80], page[768:773] = b"S1".ljust(20), b"M".ljust(40), b"\1\0", b"nqn.x"
    ids = DeviceIds(0x1B36, 0x10, 0x1AF4, 0x1100, 0x10802, 2, 77)
    assert ControllerIdentity.of(IdentifyController.decode(bytes(page)), ids) == DRIVE
