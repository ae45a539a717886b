"""DH-HMAC-CHAP (Base 2.0, 8.13.5): this host proves a secret to the controller, and with
dhchap_ctrl_secret the controller proves one to this host, on each connection right after
Connect.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import secrets
import struct
import zlib
from collections.abc import Awaitable, Callable

import attrs

from nvme_async.errors import ConfigurationError, ControllerError

_COMMON, _DHCHAP = 0x00, 0x01
_NEGOTIATE, _CHALLENGE, _REPLY, _SUCCESS1, _SUCCESS2, _FAILURE1, _FAILURE2 = 0x00, 0x01, 0x02, 0x03, 0x04, 0xF1, 0xF0
HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_LENGTHS = {1: 32, 2: 48, 3: 64}
GROUPS = {0: 0, 1: 2048, 2: 3072, 3: 4096, 4: 6144, 5: 8192}
"""Bits of the FFDHE groups by identifier; 0: without Diffie-Hellman."""
_X = {2048: 560316, 3072: 2625351, 4096: 5736041, 6144: 15705020, 8192: 10965728}
EXPONENT_BITS = 512
"""Bytes of our Diffie-Hellman exponent: more than RFC 7919 (5.2) requires for the largest
group.
"""
MOST = 4096
"""Bytes of one message from the controller."""
_REASONS = {
    1: "authentication failed",
    2: "authentication protocol unusable",
    3: "secure channel concatenation mismatch",
    4: "hash function unusable",
    5: "DH group unusable",
    6: "invalid payload",
    7: "invalid message",
}


@functools.cache
def prime(bits: int) -> int:
    """The modulus of the ffdhe group of so many bits, by the formula of RFC 7919, appendix A."""
    scale = bits + 64
    e, term = 0, 1 << scale
    k = 1
    while term:
        e += term
        term //= k
        k += 1
    floor = (e >> (scale - (bits - 130))) if bits >= 130 else 0
    return (1 << bits) - (1 << (bits - 64)) + ((floor + _X[bits]) << 64) - 1


@attrs.frozen
class Secret:
    """Attributes:
    key: as stored. hash: the hash that transforms it, 0 = none.
    """

    key: bytes = attrs.field(repr=False)
    hash: int

    @classmethod
    def parse(cls, text: str, name: str) -> Secret:
        """From "DHHC-1:HH:BASE64:", the form of `nvme gen-dhchap-key`. ConfigurationError; it
        never quotes the key.
        """
        parts = text.strip().split(":")
        if len(parts) != 4 or parts[0] != "DHHC-1" or parts[3] or parts[1] not in ("00", "01", "02", "03"):
            raise ConfigurationError(f"{name} is not of the form DHHC-1:HH:BASE64: (nvme gen-dhchap-key makes one)")
        try:
            raw = base64.b64decode(parts[2], validate=True)
        except ValueError:
            raise ConfigurationError(f"{name}: the key is not base64") from None
        key, check = raw[:-4], raw[-4:]
        if len(key) not in (32, 48, 64):
            raise ConfigurationError(f"{name}: a key of {len(key)} bytes, must have 32, 48 or 64")
        if struct.pack("<I", zlib.crc32(key)) != check:
            raise ConfigurationError(f"{name}: the CRC of the key is wrong")
        return cls(key, int(parts[1]))

    def of(self, nqn: str) -> bytes:
        """The key, transformed for its user."""
        if not self.hash:
            return self.key
        return hmac.digest(self.key, nqn.encode() + b"NVMe-over-Fabrics", HASHES[self.hash])


def response(
    key: bytes, hash_name: str, challenge: bytes, seqnum: int, tid: int, role: bytes, first: str, second: str
) -> bytes:
    """The proof of the key (8.13.5.4). role: b"HostHost" or b"Controller"."""
    message = challenge + struct.pack("<IHB", seqnum, tid, 0) + role + first.encode() + b"\0" + second.encode()
    return hmac.digest(key, message, hash_name)


def augmented(challenge: bytes, shared: bytes, hash_name: str) -> bytes:
    """The challenge, with the shared secret of Diffie-Hellman in it."""
    return hmac.digest(hashlib.new(hash_name, shared).digest(), challenge, hash_name)


Send = Callable[[bytes], Awaitable[None]]
Receive = Callable[[int], Awaitable[bytes]]


def _body(message: bytes, kind: int, tid: int, name: str, least: int) -> bytes:
    """`message`, if it is the expected one."""
    if len(message) >= 8 and message[1] == _FAILURE1:
        reason = _REASONS.get(message[7], f"reason {message[7]:#x}")
        raise ControllerError(f"{name}: authentication was refused: {reason}")
    if len(message) < least or message[0] != _DHCHAP or message[1] != kind:
        raise ControllerError(f"{name}: authentication: message {message[:2].hex()} instead of {kind:#x}")
    if struct.unpack_from("<H", message, 4)[0] != tid:
        raise ControllerError(f"{name}: authentication: the message belongs to another transaction")
    return message


async def authenticate(
    send: Send, receive: Receive, *, secret: Secret, ctrl_secret: Secret | None, hostnqn: str, subnqn: str, name: str
) -> None:
    """One transaction. Raises ControllerError if either side rejects it."""
    tid = secrets.randbelow(1 << 16)
    hashes, groups = bytes([3, 2, 1]), bytes([0, 1, 2, 3, 4, 5])
    descriptor = bytes([1, 0, len(hashes), len(groups)]) + hashes.ljust(30, b"\0") + groups.ljust(30, b"\0")
    await send(struct.pack("<BBHHBB", _COMMON, _NEGOTIATE, 0, tid, 0, 1) + descriptor)

    challenge = _body(await receive(MOST), _CHALLENGE, tid, name, 16)
    length, _, hash_id, group_id, dh_bytes, seqnum = struct.unpack_from("<BBBBHI", challenge, 6)
    bits = GROUPS.get(group_id)
    if hash_id not in HASHES or length != _LENGTHS[hash_id] or bits is None or len(challenge) < 16 + length + dh_bytes:
        raise ControllerError(
            f"{name}: authentication: hash {hash_id}, length {length}, DH group {group_id}, {dh_bytes} bytes"
        )
    hash_name = HASHES[hash_id]
    value = challenge[16 : 16 + length]
    public, shared = b"", b""
    if bits:
        theirs = int.from_bytes(challenge[16 + length : 16 + length + dh_bytes])
        p = prime(bits)
        if not 1 < theirs < p - 1:
            raise ControllerError(f"{name}: authentication: the DH value is invalid")
        exponent = secrets.randbits(EXPONENT_BITS) | 1 << (EXPONENT_BITS - 1)
        public = pow(2, exponent, p).to_bytes(bits // 8)
        shared = pow(theirs, exponent, p).to_bytes(bits // 8)
        value = augmented(value, shared, hash_name)
    proof = response(secret.of(hostnqn), hash_name, value, seqnum, tid, b"HostHost", hostnqn, subnqn)
    own = secrets.token_bytes(length) if ctrl_secret is not None else bytes(length)
    own_seqnum = secrets.randbelow((1 << 32) - 1) + 1 if ctrl_secret is not None else 0
    reply = struct.pack(
        "<BBHHBBBBHI", _DHCHAP, _REPLY, 0, tid, length, 0, ctrl_secret is not None, 0, len(public), own_seqnum
    )
    await send(reply + proof + own + public)

    success = _body(await receive(MOST), _SUCCESS1, tid, name, 16)
    if ctrl_secret is None:
        return
    expected = response(
        ctrl_secret.of(subnqn),
        hash_name,
        augmented(own, shared, hash_name) if bits else own,
        own_seqnum,
        tid,
        b"Controller",
        subnqn,
        hostnqn,
    )
    if success[6] != length or not success[8] & 1 or not hmac.compare_digest(success[16 : 16 + length], expected):
        await send(struct.pack("<BBHHBB", _COMMON, _FAILURE2, 0, tid, 1, 1))
        raise ControllerError(f"{name}: the controller did not prove that it knows dhchap_ctrl_secret")
    await send(struct.pack("<BBHH10x", _DHCHAP, _SUCCESS2, 0, tid))
