"""The protocol between an owner and its workers: messages on a Unix socket of type
SOCK_SEQPACKET.

One message is one datagram, so that none is ever received in part, and descriptors arrive with
their message. Byte order is little endian:

    offset  bytes
    0       4      "NVSH"
    4       2      version of the protocol, 1
    6       2      reserved, 0
    8       4      id: the number of a request and of its answer. 0: a notice, which has no answer
    12      4      j: bytes of the body
    16      j      the body: JSON, an object. "kind" says what the message is
    16 + j  …      data of an admin command: its 64 bytes and sent data, or its returned data

The first 8 bytes are the same in every version. A side that gets an unknown version answers with
its own version and {"kind": "refused", "code": "version", …}, and disconnects.

Requests of a worker, and their answers' bodies:

    lease     {"queues", "command"} → a Grant, with the descriptors that it lists: a lease
    attach    {"lease", "token"} → {"life", "ready", "hold"}: another connection for the same lease
    map       {"lease", "token", "iova", "nbytes", "offset"} with 1 descriptor, of memory → {}
    unmap     {"lease", "token", "iova", "nbytes"} → {}. Both also on a separate connection
    create    {"qid", "entries", "cq", "sq", "interrupts", "life"} → {}: creates I/O CQ, SQ
    delete    {"qid"} → {}
    renew     {} → {}: all queues of the lease are deleted
    admin     {} and a command → {"dw0", "dw1"} and data; "status" if refused
    health    {} → {"lost"}: why the controller must be reset, or ""
    detach    {} → {}: the lease ends, the worker touches nothing any more
    join      {"lease", "token", "attempt"} → a Grant, as for lease: from a worker's successor,
              which then gets the worker's notices too. attempt: a number that the worker chose
    take      {"life"} → {"life", "hold", "announced"}: the lease is the successor's. "hold": the
              number of a hold that applies, or 0; "announced": the notices before this answer
    reclaim   {"lease", "token", "attempt"} → {"taken"}: from the worker; if false, that attempt
              can't take the lease any more
    list      {} → {"leases": […]}; revoke {"pid"} → {"revoked": n}. For the command line

Notices of a worker: stopped {"life"}: since then it has rung no doorbell of an earlier epoch; held
{"hold"}; usage {"in_flight", "commands"}: with the controller now, and completed in all, each
second in which that changed. Notices of an owner: stop {"life", "reason"}; ready {"life"}; event
{"dw0", "dw1"}; hold {"hold", "nsids"}, unhold {}; rescan {}; revoked {"text"}; failed {"text"};
closed {"text"}.

A refused request is answered with {"kind": "refused", "code", "text"}; see errors.LeaseError for
the codes.

Limits: MAX_MESSAGE bytes, MAX_FDS descriptors, MAX_PENDING requests at a time on a connection, and
MAX_BACKLOG messages that a peer doesn't read. A peer that exceeds them, or sends an invalid
message, is disconnected.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from typing import Any

import attrs

from nvme_async.errors import LeaseError

VERSION = 1
MAGIC = b"NVSH"
_HEADER = struct.Struct("<4sHHII")
MAX_BODY = 32 << 10
MAX_DATA = 64 << 10
COMMAND_BYTES = 64
MAX_MESSAGE = _HEADER.size + MAX_BODY + COMMAND_BYTES + MAX_DATA
MAX_FDS = 24
MAX_QUEUES = 16
MAX_PENDING = 64
MAX_BACKLOG = 256


@attrs.define(eq=False)
class Message:
    """One message. It owns its descriptors until take() or close().

    version: of the protocol; body and data are empty where it isn't VERSION.
    """

    kind: str
    id: int = 0
    body: dict[str, Any] = attrs.field(factory=dict)
    data: bytes = b""
    fds: list[int] = attrs.field(factory=list)
    version: int = VERSION

    def take(self, index: int = 0) -> int:
        """One of its descriptors, now owned by the caller. LeaseError if there is none."""
        if not self.fds:
            raise LeaseError(f"the message {self.kind!r} arrived without a descriptor", code="invalid")
        return self.fds.pop(index)

    def close(self) -> None:
        """Closes the remaining descriptors."""
        while self.fds:
            os.close(self.fds.pop())

    def number(self, name: str, low: int = 0, high: int = (1 << 64) - 1) -> int:
        """An integer of the body. LeaseError with code "invalid" if it is none, or not within
        its limits.
        """
        value = self.body.get(name)
        if type(value) is not int or not low <= value <= high:
            raise LeaseError(
                f"{self.kind}: {name} is {_short(value)}, not an integer from {low} to {high}", code="invalid"
            )
        return value

    def text(self, name: str, limit: int = 256) -> str:
        """A string of the body, truncated to `limit` characters. LeaseError if it is none."""
        value = self.body.get(name)
        if not isinstance(value, str):
            raise LeaseError(f"{self.kind}: {name} is {_short(value)}, not a string", code="invalid")
        return value[:limit]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def encode(kind: str, body: dict[str, Any] | None = None, *, id: int = 0, data: bytes = b"") -> bytes:
    """A message's bytes. LeaseError with code "invalid" when it is over the limits."""
    text = json.dumps({"kind": kind, **(body or {})}, separators=(",", ":")).encode()
    if len(text) > MAX_BODY or len(data) > COMMAND_BYTES + MAX_DATA:
        raise LeaseError(
            f"{kind}: a body of {len(text)} and data of {len(data)} bytes; the limits are {MAX_BODY} and "
            f"{COMMAND_BYTES + MAX_DATA}",
            code="invalid",
        )
    return _HEADER.pack(MAGIC, VERSION, 0, id, len(text)) + text + data


def decode(packet: bytes, fds: Sequence[int] = ()) -> Message:
    """The message in `packet`, with the descriptors. LeaseError with code "invalid" if it isn't
    one; then the descriptors are closed.
    """
    try:
        return _decode(packet, list(fds))
    except LeaseError:
        for fd in fds:
            os.close(fd)
        raise


def _decode(packet: bytes, fds: list[int]) -> Message:
    if len(packet) < _HEADER.size or packet[:4] != MAGIC:
        raise LeaseError(f"a packet of {len(packet)} bytes is not a message of this protocol", code="invalid")
    _, version, _, id, length = _HEADER.unpack_from(packet)
    if version != VERSION:
        return Message("", fds=fds, version=version)
    if length > min(MAX_BODY, len(packet) - _HEADER.size):
        raise LeaseError(f"a body of {length} bytes in a message of {len(packet)}", code="invalid")
    try:
        body = json.loads(packet[_HEADER.size : _HEADER.size + length])
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
        raise LeaseError("a body that is not a JSON object with a kind", code="invalid")
    return Message(body.pop("kind"), id, body, packet[_HEADER.size + length :], fds)


def refusal(message: Message) -> LeaseError:
    """The exception that a "refused" message stands for."""
    return LeaseError(str(message.body.get("text", "refused")), code=str(message.body.get("code", "")))


@attrs.frozen(kw_only=True)
class Grant:
    """The contents of a lease, from the answer to "lease".

    Attributes:
        lease, token: its number, and the secret that belongs to it.
        life: the epoch of its queues: the stop word must equal it for doorbells to be rung.
        slot: index of its stop word, 32 bits each, in the stop page.
        qids: of its I/O queue pairs. Each has the interrupt vector of the same number.
        window: first device address, and bytes, of the range for its memory.
        pool_bytes: that may be mapped at once. max_mappings: in how many pieces.
        entries: of a queue, at most. max_transfer: bytes of one command.
        uri, cap, vs, ids, all_command_sets: of the controller; ids as of DeviceIds. quirks: all of
            its names, "none", or "" from an owner of release 0.1.
        doorbells: (offset of the mapping in its file, bytes, offset of the first doorbell in the
            mapping).
        passes: the owner knows join, take and reclaim.
        descriptors: the labels of the message's descriptors, in order: "stop", "doorbells", "kick",
            "irq.N" for each qid.
    """

    lease: int
    token: str
    life: int
    slot: int
    qids: list[int]
    window: tuple[int, int]
    pool_bytes: int
    max_mappings: int
    entries: int
    max_transfer: int
    uri: str
    cap: int
    vs: int
    ids: list[int]
    quirks: str
    all_command_sets: bool
    doorbells: tuple[int, int, int]
    descriptors: list[str]
    passes: bool = False

    def secret(self) -> dict[str, Any]:
        """What names the lease in a request on another connection."""
        return {"lease": self.lease, "token": self.token}

    @classmethod
    def of(cls, message: Message) -> Grant:
        """From an owner's answer; unknown fields of newer owners are ignored. LeaseError if one
        is missing.
        """
        fields = {field.name for field in attrs.fields(cls)}
        try:
            return cls(**{name: value for name, value in message.body.items() if name in fields})
        except TypeError as error:
            raise LeaseError(f"the owner's answer is invalid: {error}", code="invalid") from None
