"""Faults of an emulated controller, and its observations, for tests of drivers.

    rule = controller.faults.add(opcode=0x02, queue="io", skip=9, count=1, fail=0x281, dnr=True)
    …the tenth read fails with an unrecovered read error…
    rule.wait(10)
    rule.remove()

A rule matches commands as the controller fetches them; the first rule with hits left acts. With no
action it only counts.
"""

from __future__ import annotations

import math
from typing import Any

import attrs

from nvme_async.emulator.config import Medium
from nvme_async.emulator.parsing import parse_size
from nvme_async.errors import ConfigurationError
from nvme_async.native import _emulator
from nvme_async.spec.opcodes import NvmOpcode

FOREVER = math.inf
_FOREVER_NS = (1 << 64) - 1


_WITHOUT_PAYLOAD = frozenset(
    (NvmOpcode.FLUSH, NvmOpcode.WRITE_UNCORRECTABLE, NvmOpcode.WRITE_ZEROES, NvmOpcode.VERIFY, NvmOpcode.COMPARE)
)


def _nanoseconds(seconds: float) -> int:
    if not seconds >= 0:
        raise ConfigurationError(f"a delay of {seconds} s: must be 0 or more")
    return _FOREVER_NS if math.isinf(seconds) else int(seconds * 1e9)


def _masked(pairs: dict[int, bytes], size: int) -> tuple[bytes, bytes]:
    """Bytes by offset, as (value, mask) of `size` bytes."""
    value, mask = bytearray(size), bytearray(size)
    for offset, data in pairs.items():
        if offset < 0 or offset + len(data) > size:
            raise ConfigurationError(f"{len(data)} bytes at {offset}: the limit is {size}")
        value[offset : offset + len(data)] = data
        mask[offset : offset + len(data)] = b"\xff" * len(data)
    return bytes(value), bytes(mask)


@attrs.frozen
class DmaRange:
    """Client memory: write says that the controller writes it."""

    iova: int
    nbytes: int
    write: bool


@attrs.frozen
class Outstanding:
    """A command that the controller holds: it may still access `ranges`, and will post to the
        completion
    queue.

    executed: only its completion is still due. deadline: CLOCK_MONOTONIC seconds at which it
        continues by
    itself.
    """

    qid: int
    cid: int
    opcode: int
    executed: bool
    deadline: float
    command: bytes
    ranges: tuple[DmaRange, ...]


@attrs.frozen
class Doorbell:
    """A change of a doorbell as the controller saw it; time is CLOCK_MONOTONIC seconds."""

    sequence: int
    time: float
    qid: int
    is_cq: bool
    old: int
    new: int


@attrs.frozen
class Rule:
    """A fault in force. Its methods raise FileNotFoundError once it has been removed."""

    id: int
    _faults: _emulator.Faults

    @property
    def hits(self) -> int:
        """Commands that matched so far, including skipped ones."""
        return self._faults.hits(self.id)[0]

    @property
    def last_command(self) -> bytes:
        """The 64 bytes of the latest command that matched; zeroes before the first."""
        return self._faults.hits(self.id)[1]

    def wait(self, hits: int = 1, timeout: float = 5.0) -> None:
        """Waits until `hits` commands have matched; TimeoutError after `timeout` seconds. Blocks
        the calling thread.
        """
        self._faults.wait(self.id, hits, timeout)

    def remove(self) -> None:
        """Ends the fault. Commands that it holds stay held: see Faults.release()."""
        self._faults.remove(self.id)


class Faults:
    """Every method may be called from any thread. Operations of the reactor are limited to 5 s
    (TimeoutError).
    """

    def __init__(self, controller: _emulator.Controller) -> None:
        self._faults = _emulator.Faults(controller)

    def add(
        self,
        *,
        queue: str = "any",
        qid: int = -1,
        opcode: int | None = None,
        nsid: int | None = None,
        cid: int | None = None,
        cdw10: int | None = None,
        match: dict[int, bytes] | None = None,
        skip: int = 0,
        count: int = 0,
        delay: float | None = None,
        delay_post: float | None = None,
        drop: bool = False,
        discard: bool = False,
        fail: int | None = None,
        dnr: bool = False,
        crd: int = 0,
        sqe: dict[int, bytes] | None = None,
        cqe: dict[int, bytes] | None = None,
        wrong_phase: bool = False,
        duplicate: bool = False,
        reorder: int | None = None,
        payload: bytes | None = None,
        lose_interrupt: bool = False,
        spurious_interrupt: bool = False,
        fatal: bool = False,
        remove: bool = False,
    ) -> Rule:
        """Adds a rule, up to 64 of them.

        Which commands: queue "any", "admin" or "io"; qid of one submission queue, -1 for all;
            opcode, nsid,
        cid, cdw10; match: further bytes of the command by offset. skip: how many to let pass first;
        count: how many to act on, 0 for all.

        Actions, which can be combined if that makes sense. delay: execute that many seconds later
            (FOREVER: until
        release()). delay_post: execute at once, complete later. drop: execute, never complete.
            discard:
        neither. fail: complete with this status (sct << 8 | sc) and don't execute; dnr adds Do Not
            Retry, crd the Command Retry Delay 1 to 3 (see the option retry_delays) if the host has
            enabled it.
        sqe, cqe: bytes by offset that replace those of the command before, of the completion after
            execution
        (its status without the phase bit). wrong_phase. duplicate: post twice. reorder: post after
        that many
        later ones. payload: the first bytes of the data: for the host on reads, on the medium on
        writes, without changing the host's own memory; a command without data cannot have one.
        lose_interrupt,
            spurious_interrupt.
        fatal: CSTS.CFS instead of execution. remove: surprise removal instead.
        """
        fields: dict[int, bytes] = dict(match or {})
        for offset, width, number in ((0, 1, opcode), (2, 2, cid), (4, 4, nsid), (40, 4, cdw10)):
            if number is not None:
                fields[offset] = number.to_bytes(width, "little")
        value, mask = _masked(fields, 64)
        if delay is not None and delay_post is not None:
            raise ConfigurationError("delay and delay_post exclude each other")
        if payload is not None and len(payload) > _emulator.FAULT_PAYLOAD_MAX:
            raise ConfigurationError(f"a payload of {len(payload)} bytes: at most {_emulator.FAULT_PAYLOAD_MAX}")
        if payload is not None and queue == "io" and opcode in _WITHOUT_PAYLOAD:
            raise ConfigurationError(f"a payload for opcode {opcode:#04x}: its data can't be replaced")
        chosen = {
            "delay": delay is not None,
            "delay_post": delay_post is not None,
            "drop": drop,
            "discard": discard,
            "fail": fail is not None,
            "sqe": sqe is not None,
            "cqe": cqe is not None,
            "wrong_phase": wrong_phase,
            "duplicate": duplicate,
            "reorder": reorder is not None,
            "payload": payload is not None,
            "lose_interrupt": lose_interrupt,
            "spurious_interrupt": spurious_interrupt,
            "fatal": fatal,
            "remove": remove,
        }
        if not 0 <= crd <= 3:
            raise ConfigurationError(f"crd={crd}: must be 0 to 3")
        if queue not in ("any", "admin", "io"):
            raise ConfigurationError(f"queue={queue!r}: must be any, admin or io")
        rule = self._faults.add(
            queue,
            qid,
            value,
            mask,
            skip,
            count,
            sum(_emulator.FAULT_ACTIONS[name] for name, wanted in chosen.items() if wanted),
            _nanoseconds(delay if delay is not None else delay_post or 0.0),
            reorder or 0,
            (fail or 0) | crd << 11 | dnr << 14,
            *_masked(sqe or {}, 64),
            *_masked(cqe or {}, 16),
            payload or b"",
        )
        return Rule(rule, self._faults)

    def clear(self) -> None:
        """Removes every rule. Held commands stay held."""
        self._faults.clear()

    def switch(self, on: bool) -> None:
        """One switch for all rules: while it is off, they stay and neither act nor count hits. Held
        commands stay held. On at first.
        """
        self._faults.switch(on)

    def release(self) -> None:
        """Held commands continue at once, as if their delay were over."""
        self._faults.release()

    def enable_delay(self, ready: float = 0.0, disabled: float = 0.0) -> None:
        """CSTS.RDY follows CC.EN that many seconds later: `ready` after 1, `disabled` after 0.
            FOREVER:
        never.
        """
        self._faults.enable_delay(_nanoseconds(ready), _nanoseconds(disabled))

    def mqes(self, mqes: int = -1) -> None:
        """The value that CAP.MQES reads and enforces from now on; -1: as configured."""
        self._faults.mqes(mqes)

    def fatal(self) -> None:
        """CSTS.CFS, now."""
        self._faults.fatal()

    def remove_device(self, removed: bool = True) -> None:
        """Surprise removal: registers read all ones and nothing is processed. False: it is back."""
        self._faults.removed(removed)

    def interrupt(self, vector: int) -> None:
        """A spurious interrupt."""
        self._faults.interrupt(vector)

    def temperature(self, kelvin: int) -> None:
        """The composite temperature in the SMART log; may cause its event."""
        self._faults.temperature(kelvin)

    def power_loss(self, seed: int | None = None) -> None:
        """Power loss: a surprise removal, and data that was not on the medium is lost: the
        content of volatile write caches (`write_cache=on`), and every write that was not
        executed.

        seed: then each logical block is lost or kept separately, in a cache as well as in a write
            in progress (one that a rule delays). A block is never torn (AWUPF 0); the same seed has
            the same outcome.

        remove_device(False) brings the controller back.
        """
        if seed is not None and not 0 <= seed < 1 << 64:
            raise ConfigurationError(f"a seed of {seed}: must be from 0 to 2**64 - 1")
        self._faults.power_loss(seed is not None, seed or 0)

    def use_host_memory(self) -> None:
        """The controller checks and writes every page of its Host Memory Buffer; it does so with
        one page at each I/O command, too. counters() has the results: host_memory_pages (now),
        host_memory_writes, host_memory_damaged (pages that something else had written).
        """
        self._faults.use_host_memory()

    def sanitize_fails(self) -> None:
        """The next sanitize operation fails."""
        self._faults.sanitize_fails()

    def zone_state(self, nsid: int, zone: int, state: int) -> None:
        """A zone (by number) becomes read only (Dh), full (Eh) or offline (Fh), with its event."""
        self._faults.zone_state(nsid, zone, state)

    def ana_state(self, group: int, state: int) -> None:
        """Sets the state of an ANA group: 1 optimized, 2 non-optimized, 3 inaccessible, 4
        persistent loss, 15 change.
        """
        self._faults.ana_state(group, state)

    def add_namespace(
        self,
        nsid: int,
        size: int | str,
        *,
        block: int = 4096,
        medium: str = "ram",
        path: str = "",
        metadata: int = 0,
        extended: bool = False,
        pi: int = 0,
        guard: int = 16,
        notice: bool = True,
    ) -> None:
        """A new namespace. notice: the host is notified (Changed Namespace List, asynchronous
        event).

        Block size, metadata and guard must be one of the controller's LBA formats.
        """
        what = Medium(medium, parse_size(size), block, path, metadata=metadata, extended=extended, pi=pi, guard=guard)
        self._faults.namespace_add(nsid, what, notice)

    def remove_namespace(self, nsid: int, *, notice: bool = True) -> None:
        self._faults.namespace_remove(nsid, notice)

    def resize_namespace(self, nsid: int, size: int | str, *, notice: bool = True) -> None:
        self._faults.namespace_resize(nsid, parse_size(size), notice)

    def change_identity(
        self,
        nsid: int,
        *,
        nguid: bytes | None = None,
        eui64: bytes | None = None,
        uuid: bytes | None = None,
        notice: bool = True,
    ) -> None:
        """Changes a namespace's identifiers, as if another disk had its nsid. None: unchanged;
        zeroes: none.
        """
        for name, value, size in (("nguid", nguid, 16), ("eui64", eui64, 8), ("uuid", uuid, 16)):
            if value is not None and len(value) != size:
                raise ConfigurationError(f"{name} of {len(value)} bytes: must have {size}")
        self._faults.namespace_identity(nsid, nguid, eui64, uuid, notice)

    def outstanding(self) -> list[Outstanding]:
        """The commands that the controller holds, with the memory that it may still access for
        them.
        """
        return [
            Outstanding(
                qid,
                cid,
                opcode,
                executed,
                FOREVER if deadline == _FOREVER_NS else deadline / 1e9,
                command,
                tuple(DmaRange(*one) for one in ranges),
            )
            for qid, cid, opcode, executed, deadline, command, ranges in self._faults.outstanding()
        ]

    def trace(self, on: bool = True) -> None:
        """Records doorbells from now on, the last 4096."""
        self._faults.trace(on)

    def doorbells(self, start: int = 0) -> list[Doorbell]:
        """Recorded doorbells with a sequence of `start` or more, oldest first."""
        return [
            Doorbell(sequence, time / 1e9, qid, is_cq, old, new)
            for sequence, time, qid, is_cq, old, new in self._faults.doorbells(start)
        ]

    def counters(self) -> dict[str, Any]:
        """Counts since the controller was made: enables, resets, doorbells, interrupts, errors,
        bytes, …

        "admin" and "io" are the executed commands by opcode.
        """
        return self._faults.counters()

    @property
    def csts(self) -> int:
        """The current CSTS, without the side effects of a register read."""
        return self._faults.csts()
