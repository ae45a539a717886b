"""The saved state of a controller besides the pool's own structures: static facts, as types and
as JSON text.

docs/reference/saved-state.md describes the format. A field that this version doesn't know is kept
and written back, so that a state survives a round trip through an older release. `format` increases
with each addition, `readable_by` only if older releases would misunderstand the rest: a release
reads any state whose `readable_by` is at most its own format.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, Literal, TypeVar, cast

import attrs
import cattrs

from nvme_async.errors import InvalidSavedState

FORMAT = 7
READABLE_BY = 1
SHARED = 5
"""`readable_by` of a state with `sharing`: older releases would reset the controller under its
workers.
"""
FUSED = 6
"""What a state with `fused` says that it is readable by: older releases would send admin
commands.
"""
IN_CMB = 7
"""What a state with `cmb` says that it is readable by: older releases would expect the rings in
the pool.
"""
DOUBTFUL = 4
"""`readable_by` of a state with `unverified`: older releases would trust its namespaces."""
CHECKSUMS = 3
"""From this format on the writer keeps checksums in the pool's slot table and in the trackers."""

Phase = Literal["live", "resetting", "failed", "closing"]
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class _Part:
    extra: dict[str, Any] = attrs.field(factory=dict)
    """Fields of a newer release, as they were read."""


@attrs.frozen(kw_only=True)
class DeviceIdentity(_Part):
    """PCI configuration space, and Identify Controller: the identity of this drive.

    serial_number: PCI's Device Serial Number, 0 = the device has none (format 2).
    """

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem: int
    class_code: int
    revision: int
    serial: str
    model: str
    firmware: str
    serial_number: int = 0


@attrs.frozen(kw_only=True)
class RegisterState(_Part):
    """Registers that must read the same at a restore."""

    cap: int
    vs: int
    cc: int
    aqa: int
    asq: int
    acq: int


@attrs.frozen(kw_only=True)
class QueueState(_Part):
    """One queue pair; state that changes with each command is in its header in the pool.

    offset: of its allocation in the pool. max_transfer: bytes of one command. shadow: its doorbells
        are in the shadow buffer.
    worker: name of the thread whose loop used it.
    cmb: its submission ring (with CmbState.completions its completion ring too) is in the
        controller's memory (format 7).
    """

    qid: int
    offset: int
    entries: int
    vector: int
    interrupts: bool
    max_transfer: int
    shadow: bool
    worker: str = ""
    cmb: bool = False


@attrs.frozen(kw_only=True)
class CmbState(_Part):
    """Places of rings in the Controller Memory Buffer, as CmbLayout of
    nvme_async.driver.pcie.cmb_queues.
    """

    cmbloc: int
    cmbsz: int
    address: int
    entries: int
    n_queues: int
    completions: bool


@attrs.frozen(kw_only=True)
class NamespaceState(_Part):
    """identify: Identify Namespace, 4096 bytes. uuid: "" = it has none, or it isn't known
    (format 4).
    """

    nsid: int
    identify: bytes
    uuid: str = ""


@attrs.frozen(kw_only=True)
class RegistrationState(_Part):
    """Memory of the writing process that is mapped at the device: must be unmapped once no
    command uses it.
    """

    iova: int
    nbytes: int


@attrs.frozen(kw_only=True)
class State(_Part):
    """Attributes:
    format, readable_by: see the module.
    uri: the device address.
    pid, written: the writer, and the time (seconds since the epoch).
    phase: "live", or why there can be no live restore: the writer was about to reset or close the
        controller, or it had failed.
    quiesced: of releases before 0.2: written by a planned save.
    unverified: a command that may change namespaces was in flight, or Identify had not been read
        afterwards: no I/O before that (format 4).
    pool_id: the pool that this state belongs to.
    decision: why keepalive was on.
    identify, identify_nvm: Identify Controller, and that of the NVM command set (None: the
        controller has none).
    queue_limit: I/O queue pairs that the controller granted.
    queues: the admin queue pair first.
    unsettled: queue pairs that were being created or deleted: the controller may or may not know
        them.
    shadow_offset: of the Doorbell Buffer Config memory in the pool, None = not in use.
    vectors: MSI-X vectors with an eventfd.
    options: those of the Controller.
    device_state: the result of Device.save().
    descriptors: the identities of the bundle's descriptors, by name (descriptors.py; format 3).
    sharing: the leases of worker processes, as written by nvme_async.sharing; empty: it is not
        shared
        (format 5).
    fused: no admin command is sent after the bring-up (format 6).
    cmb: where I/O queues are in the controller's memory; None: nowhere (format 7).
    """

    format: int = FORMAT
    readable_by: int = READABLE_BY
    uri: str
    pid: int
    written: float
    phase: Phase = "live"
    quiesced: bool = False
    unverified: bool = False
    pool_id: str
    decision: str = ""
    device: DeviceIdentity
    registers: RegisterState
    identify: bytes
    namespaces: list[NamespaceState]
    max_transfer: int
    queue_limit: int
    queues: list[QueueState]
    unsettled: list[QueueState] = attrs.field(factory=list)
    shadow_offset: int | None = None
    vectors: int
    registrations: list[RegistrationState] = attrs.field(factory=list)
    options: dict[str, Any] = attrs.field(factory=dict)
    device_state: dict[str, Any] = attrs.field(factory=dict)
    identify_nvm: bytes | None = None
    descriptors: dict[str, str] = attrs.field(factory=dict)
    sharing: dict[str, Any] = attrs.field(factory=dict)
    fused: bool = False
    cmb: CmbState | None = None


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(prefer_attrib_converters=False)
    # Identify data is mostly zeroes.
    converter.register_unstructure_hook(bytes, lambda data: base64.b64encode(zlib.compress(data)).decode())
    converter.register_structure_hook(bytes, lambda text, _: zlib.decompress(base64.b64decode(text, validate=True)))
    converter.register_structure_hook(
        bytes | None, lambda text, _: None if text is None else converter.structure(text, bytes)
    )
    converter.register_structure_hook(
        CmbState | None, lambda value, _: None if value is None else structure_part(value, CmbState)
    )
    converter.register_structure_hook(int | None, lambda value, _: None if value is None else int(value))

    def structure_part(value: Any, cls: type[T]) -> T:
        if not isinstance(value, dict):
            raise TypeError(f"{cls.__name__} must be an object, not {type(value).__name__}")
        fields = {field.name: field for field in attrs.fields(cast(Any, cls))}
        known: dict[str, Any] = {}
        extra = {}
        for name, item in value.items():
            if name in fields and name != "extra":
                known[name] = converter.structure(item, types[cls][name])
            else:
                extra[name] = item
        return cast(Any, cls)(**known, extra=extra)  # type: ignore[no-any-return]

    def unstructure_part(part: Any) -> dict[str, Any]:
        plain = {
            field.name: converter.unstructure(getattr(part, field.name))
            for field in attrs.fields(type(part))
            if field.name != "extra"
        }
        return plain | cast(dict[str, Any], part.extra)

    types: dict[Any, dict[str, Any]] = {}
    for cls in (DeviceIdentity, RegisterState, QueueState, CmbState, NamespaceState, RegistrationState, State):
        attrs.resolve_types(cls)
        types[cls] = {field.name: field.type for field in attrs.fields(cls)}
        converter.register_structure_hook(cls, structure_part)
        converter.register_unstructure_hook(cls, unstructure_part)
    return converter


_converter = _make_converter()


def encode(state: State) -> bytes:
    """As JSON, one line."""
    return json.dumps(_converter.unstructure(state), separators=(",", ":"), sort_keys=True).encode()


def decode(text: bytes) -> State:
    """From JSON. InvalidSavedState names the error."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSavedState(f"the saved state is not JSON: {error}") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("readable_by"), int):
        raise InvalidSavedState("the saved state is not that of a controller: it has no readable_by")
    if plain["readable_by"] > FORMAT:
        raise InvalidSavedState(
            f"the saved state is of format {plain.get('format')}, readable by {plain['readable_by']} "
            f"and later; this release reads {FORMAT}"
        )
    try:
        return _converter.structure(plain, State)
    except Exception as error:  # any exception of the parts' converters
        reason = (
            "; ".join(cattrs.transform_error(error)) if isinstance(error, cattrs.BaseValidationError) else repr(error)
        )
        raise InvalidSavedState(f"the saved state is invalid: {reason}") from error
