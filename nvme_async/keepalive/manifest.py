"""The manifest: the saved state's place in the pool, and when it is written.

It lies in pool slots of owner "manifest", in two halves that are written alternately; the one with
the higher sequence and a valid checksum counts. A half is published by the store of its sequence,
which comes last, so that a process killed while writing leaves the other half intact.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import struct
import time
from typing import Any, cast

import attrs

from nvme_async.dma import DmaBuffer, Pool
from nvme_async.driver.controller import Controller
from nvme_async.driver.pcie.cmb_queues import CmbQueues
from nvme_async.driver.pcie.transport import pcie
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.errors import InvalidSavedState, NvmeError
from nvme_async.keepalive import state as saved
from nvme_async.keepalive.descriptors import identity
from nvme_async.keepalive.inheritance import passed_on
from nvme_async.keepalive.state import (
    CmbState,
    DeviceIdentity,
    NamespaceState,
    Phase,
    QueueState,
    RegisterState,
    RegistrationState,
    State,
)

log: logging.Logger = logging.getLogger("nvme_async")

OWNER = "manifest"
_MAGIC = b"NVMEMANI"
_VERSION = 1
# magic, version, reserved, sequence, length, sha256 of sequence, length and body
_HEADER = struct.Struct("<8sIIQQ32s")
_SEQUENCE_AT = 16
_FIRST_HALF = 64 << 10


def _digest(sequence: int, body: Any) -> bytes:
    digest = hashlib.sha256(struct.pack("<QQ", sequence, len(body)))
    digest.update(body)
    return digest.digest()


class _Half:
    """One half as it lies in the pool."""

    def __init__(self, offset: int, half: memoryview) -> None:
        self.offset = offset  # bytes of its slot
        self._half = half
        self.magic, self.version, _, self.sequence, self.length, self.digest = _HEADER.unpack_from(half)

    @property
    def untouched(self) -> bool:
        return bool(self.magic == bytes(8) and self.sequence == 0)

    def body(self, sequence: int) -> bytes | str:
        """Its content, if it was written as number `sequence`; otherwise the error."""
        if self.magic != _MAGIC:
            return "it is not a manifest"
        if self.version != _VERSION:
            return f"it has version {self.version}; this release reads {_VERSION}"
        if self.length > len(self._half) - _HEADER.size:
            return f"it is truncated: {self.length} bytes in {len(self._half)}"
        body = bytes(self._half[_HEADER.size : _HEADER.size + self.length])
        if _digest(sequence, body) != self.digest:
            return "its checksum is wrong: it was altered"
        return body


def find(pool: Pool) -> tuple[int, int, bytes]:
    """(slot offset, sequence, body) of the valid manifest. Changes nothing.

    InvalidSavedState if the pool has none, or if a completely written half is damaged: it may have
    been the newer one, and the older one may describe an outdated state.
    """
    best: tuple[int, int, bytes] | None = None
    unfinished = []
    problems = []
    with memoryview(_window(pool)) as window:
        for slot in pool.slots():
            if slot.owner != OWNER:
                continue
            size = slot.nbytes // 2
            if size < _HEADER.size or slot.offset + 2 * size > len(window):
                problems.append(
                    f"its slot has {slot.nbytes} bytes at {slot.offset:#x}, not within the {len(window)} bytes mapped"
                )
                continue
            for at in (slot.offset, slot.offset + size):
                half = _Half(slot.offset, window[at : at + size])
                if half.sequence == 0:
                    if not half.untouched:
                        unfinished.append(half)
                    continue
                body = half.body(half.sequence)
                if isinstance(body, str):
                    problems.append(body)
                elif best is None or half.sequence > best[1]:
                    best = (slot.offset, half.sequence, body)
        if not problems:
            # Killed before the very last store, or that store was damaged: the newest half counts,
            # if it is complete.
            number = best[1] + 1 if best is not None else 1
            for half in unfinished:
                body = half.body(number)
                if isinstance(body, bytes):
                    best = (half.offset, number, body)
                elif best is None:
                    problems.append("it was being written")
    if problems or best is None:
        why = f" ({'; '.join(dict.fromkeys(problems))})" if problems else ""
        raise InvalidSavedState(f"pool {pool.name!r} has no valid manifest{why}")
    return best


def stands(slot: memoryview, sequence: int, body: bytes) -> bool:
    """Is what was found in this slot as number `sequence`, `body`, still the last word? By
    comparing, which takes no checksum; False where that doesn't show.
    """
    size = len(slot) // 2
    if size < _HEADER.size:
        return False
    at = (sequence & 1) * size
    other = _SEQUENCE_AT + (size - at)
    (newer,) = struct.unpack_from("<Q", slot, other)
    magic, version, _, number, length, _ = _HEADER.unpack_from(slot, at)
    return (
        (magic, version, number, length) == (_MAGIC, _VERSION, sequence, len(body))
        and newer < sequence
        and bytes(slot[at + _HEADER.size : at + _HEADER.size + length]) == body
    )


def _window(pool: Pool) -> Any:
    """The whole pool, read only."""
    return mmap.mmap(pool.fd, pool.nbytes, mmap.MAP_SHARED, mmap.PROT_READ)


class Manifest:
    """The manifest of one pool, for writing. Owner bytes of its slot; on the controller's home
    loop.
    """

    def __init__(self, pool: Pool, buffer: DmaBuffer | None = None, sequence: int = 0, body: bytes = b"") -> None:
        """buffer, sequence, body: as found, for a successor; otherwise a new slot is made."""
        self._pool = pool
        self._buffer = buffer or pool.alloc(2 * _FIRST_HALF, owner=OWNER, persistent=True)
        self.sequence: int = sequence
        self.body: bytes = body

    def write(self, body: bytes) -> None:
        """Replaces the content; OutOfDmaMemory if it has grown and the pool has no room. If the
        process is killed at any instruction, one of the two is valid.
        """
        half = self._buffer.nbytes // 2
        if len(body) + _HEADER.size > half:
            half = -(-(len(body) + _HEADER.size) * 2 // 4096) * 4096
            larger = self._pool.alloc(2 * half, owner=OWNER, persistent=True)
            before, self._buffer = self._buffer, larger
            self._write(body, half)
            before.free()
        else:
            self._write(body, half)
        self.body = body

    def _write(self, body: bytes, half: int) -> None:
        sequence = self.sequence + 1
        at = (sequence & 1) * half
        with (
            memoryview(self._buffer)[at : at + half] as view,
            view[_SEQUENCE_AT : _SEQUENCE_AT + 8].cast("Q") as published,
        ):
            published[0] = 0
            view[_HEADER.size : _HEADER.size + len(body)] = body
            view[:_SEQUENCE_AT] = struct.pack("<8sII", _MAGIC, _VERSION, 0)
            view[_SEQUENCE_AT + 8 : _HEADER.size] = struct.pack("<Q32s", len(body), _digest(sequence, body))
            published[0] = sequence
        self.sequence = sequence


def descriptors_of(controller: Controller) -> dict[str, int]:
    """A bundle's descriptors besides the pool, by name; the controller still owns them."""
    transport = pcie(controller.transport)
    found = {f"device.{name}": fd for name, fd in transport.device.descriptors().items()}
    found |= {f"irq.{vector}": fd for vector, fd in enumerate(transport.queues.maker.event_fds)}
    lender = transport.queues.lender
    return found | ({"sharing.stop": lender.stop_fd} if lender is not None and lender.stop_fd >= 0 else {})


def _qid(queue: LoopQueue) -> int:
    return queue.qid


def _facts(queue: LoopQueue) -> tuple[Any, ...]:
    """The changing part of a queue pair's description; the rest comes from its native half and
    is constant.
    """
    hot = queue.hot
    return hot, queue.vector, queue.interrupts, queue.worker, hot.has_shadow_doorbells, hot.rings_in_cmb


class Recorder:
    """Keeps a controller's manifest up to date. On its home loop."""

    def __init__(self, controller: Controller, manifest: Manifest, decision: str = "") -> None:
        self._controller = controller
        self.decision = decision  # about keepalive, as text
        self.manifest = manifest
        self.extra: dict[str, Any] = {}
        self._descriptors: dict[str, tuple[int, str]] = {}
        self._written: tuple[Any, ...] | None = None
        """The input of the present manifest; None: it must be written."""
        self._inherited = False  # a predecessor's, and nothing has changed since
        self._namespaces: dict[int, tuple[Any, NamespaceState]] = {}
        self._identify: tuple[Any, bytes] = (None, b"")

    def inherit(self, state: State) -> None:
        """A predecessor's state that was read need not be encoded again, and unknown fields must
        be passed on.
        """
        controller = self._controller
        self._inherited = True
        self.extra = state.extra
        self._identify = (controller.identify, state.identify)
        for described in state.namespaces:
            namespace = controller.namespaces.get(described.nsid)
            if namespace is not None:
                self._namespaces[described.nsid] = (namespace.identify, described)

    def accept(self) -> None:
        """The predecessor's state is valid for a restore, so a save has nothing to add, unless
        something has changed since inherit().
        """
        if self._inherited:
            self._inherited = False
            self._written = self._inputs("live")

    def renew(self) -> None:
        """Writes it in this process's name and format, although nothing has changed."""
        self._written = None
        self.note()

    def record(self, phase: Phase = "live", *, saving: bool = False) -> None:
        """Writes the state if it has changed; not while the controller is being saved, when the
        save's own state counts. OutOfDmaMemory if the pool is full.
        """
        if saving:
            self.accept()
        else:
            self._inherited = False
            if self._controller.state == "saving":
                return
        inputs = self._inputs(phase)
        if inputs != self._written:
            self.manifest.write(saved.encode(self.snapshot(phase)))
            self._written = inputs

    def _inputs(self, phase: Phase) -> tuple[Any, ...]:
        """Everything changeable that snapshot() reads. Much cheaper than encoding it."""
        controller = self._controller
        transport = pcie(controller.transport)
        queues, memory = transport.queues, transport.memory
        assert memory is not None
        return (
            phase,
            self.decision,
            controller.effects.unverified,
            controller.identify,
            controller.identify_nvm,
            [(space.nsid, space.identify, space.identity.uuid) for space in controller.namespaces.values()],
            dict(transport.registers.programmed),
            queues.limit,
            queues.maker.max_transfer,
            queues.maker.shadow_offset,
            queues.maker.event_fds,
            # In whatever order: a loop that takes one of a predecessor's changes nothing else.
            [_facts(queue) for queue in sorted(queues.all(), key=_qid)],
            [_facts(queue) for queue in queues.unsettled],
            list(queues.inherited),
            memory.foreign_mappings(),
            queues.lender.save() if queues.lender is not None else {},
            controller.options,
            transport.device.save(),
            transport.own_memory.queues,
        )

    def note(self, phase: Phase = "live") -> None:
        """record() for cases in which a failure must not end the operation: the earlier state
        still counts.
        """
        try:
            self.record(phase)
        except (NvmeError, OSError, ValueError) as error:
            log.warning("%s: the saved state could not be updated: %s", self._controller.uri, error)

    def snapshot(self, phase: Phase = "live") -> State:
        controller = self._controller
        transport = pcie(controller.transport)
        queues, memory, identify = transport.queues, transport.memory, controller.identify
        ids = transport.device.ids
        assert memory is not None
        unverified = controller.effects.unverified
        sharing = queues.lender.save() if queues.lender is not None else {}
        return State(
            readable_by=saved.IN_CMB
            if transport.own_memory.queues is not None
            else saved.FUSED
            if controller.fused
            else saved.SHARED
            if sharing
            else saved.DOUBTFUL
            if unverified
            else saved.READABLE_BY,
            fused=controller.fused,
            cmb=self._cmb(transport.own_memory.queues),
            sharing=sharing,
            unverified=unverified,
            uri=controller.uri,
            pid=os.getpid(),
            written=round(time.time(), 3),
            phase=phase,
            pool_id=memory.pools[0].id,
            decision=self.decision,
            device=DeviceIdentity(
                vendor=ids.vendor,
                device=ids.device,
                subsystem_vendor=ids.subsystem_vendor,
                subsystem=ids.subsystem,
                class_code=ids.class_code,
                revision=ids.revision,
                serial_number=ids.serial_number,
                serial=identify.sn,
                model=identify.mn,
                firmware=identify.fr,
            ),
            registers=RegisterState(**cast(Any, transport.registers.programmed)),
            identify=self._identify_bytes(),
            identify_nvm=controller.identify_nvm.encode() if controller.identify_nvm is not None else None,
            namespaces=[self._namespace(namespace) for namespace in controller.namespaces.values()],
            max_transfer=queues.maker.max_transfer,
            queue_limit=queues.limit,
            queues=[self._queue(queue) for queue in queues.all()],
            unsettled=[*(self._queue(queue) for queue in queues.unsettled), *queues.inherited.values()],
            shadow_offset=queues.maker.shadow_offset,
            vectors=len(queues.maker.event_fds),
            registrations=[RegistrationState(iova=iova, nbytes=nbytes) for iova, nbytes in memory.foreign_mappings()],
            options=passed_on(controller.options),
            device_state=transport.device.save(),
            descriptors=self._identities(),
            extra=self.extra,
        )

    def _identities(self) -> dict[str, str]:
        """The identities of the bundle's descriptors, which stay open as long as this
        controller.
        """
        known = self._descriptors
        for name, fd in descriptors_of(self._controller).items():
            if name not in known or known[name][0] != fd:
                known[name] = (fd, identity(fd))
        return {name: told for name, (_, told) in known.items() if told}

    def _identify_bytes(self) -> bytes:
        identify = self._controller.identify
        if self._identify[0] is not identify:
            self._identify = (identify, identify.encode())
        return self._identify[1]

    def _namespace(self, namespace: Any) -> NamespaceState:
        uuid = str(namespace.identity.uuid or "")
        known = self._namespaces.get(namespace.nsid)
        if known is None or known[0] is not namespace.identify or known[1].uuid != uuid:
            described = NamespaceState(nsid=namespace.nsid, identify=namespace.identify.encode(), uuid=uuid)
            known = self._namespaces[namespace.nsid] = (namespace.identify, described)
        return known[1]

    @staticmethod
    def _queue(queue: LoopQueue) -> QueueState:
        hot = queue.hot
        return QueueState(
            qid=hot.qid,
            offset=hot.memory.offset,
            entries=hot.entries,
            vector=queue.vector,
            interrupts=queue.interrupts,
            max_transfer=hot.max_transfer,
            shadow=hot.has_shadow_doorbells,
            worker=queue.worker,
            cmb=bool(hot.rings_in_cmb),
        )

    @staticmethod
    def _cmb(queues: CmbQueues | None) -> CmbState | None:
        return None if queues is None else CmbState(**attrs.asdict(queues.layout))
