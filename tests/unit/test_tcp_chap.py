"""DH-HMAC-CHAP: keys, groups and proofs against independent values, and the test's own
controller.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import zlib

import pytest

from nvme_async.driver.tcp import chap
from nvme_async.driver.tcp.chap import Secret
from nvme_async.errors import ConfigurationError, ControllerError

HOST, SUBSYSTEM = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555", "nqn.2024-01.io.example:t"


def encoded(key: bytes, hash_id: int = 0) -> str:
    return f"DHHC-1:{hash_id:02}:{base64.b64encode(key + struct.pack('<I', zlib.crc32(key))).decode()}:"


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("hash_id", [0, 1, 2, 3])
def test_secrets(size, hash_id):
    key = bytes(range(size))
    secret = Secret.parse(encoded(key, hash_id), "x")
    assert (secret.key, secret.hash) == (key, hash_id)
    assert key.hex() not in repr(secret)
    expected = key
    if hash_id:
        expected = hmac.new(key, HOST.encode() + b"NVMe-over-Fabrics", chap.HASHES[hash_id]).digest()
    assert secret.of(HOST) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DHHC-1:00",
        "DHHC-2:00:AAAA:",
        "DHHC-1:04:AAAA:",
        "DHHC-1:00:!!!:",
        "DHHC-1:00:AAAA:",
        "DHHC-1:00:" + "A" * 48 + ":",
    ],
)
def test_invalid_secrets_are_named_but_not_quoted(text):
    with pytest.raises(ConfigurationError, match="dhchap_secret") as caught:
        Secret.parse(text, "dhchap_secret")
    assert not text[10:] or text[10:] not in str(caught.value)


def test_groups_are_those_of_rfc_7919():
    """First and last 64 bits, apart from the ones bits, from appendix A, and safe primes."""
    ends = {2048: 0x886B423861285C97, 3072: 0x25E41D2B66C62E37, 4096: 0x5E655F6A}
    for bits in (2048, 3072, 4096, 6144, 8192):
        p = chap.prime(bits)
        assert p.bit_length() == bits
        assert p >> (bits - 64) == 0xFFFFFFFFFFFFFFFF
        assert (p >> (bits - 128)) & 0xFFFFFFFFFFFFFFFF == 0xADF85458A2BB4A9A
        assert p & 0xFFFFFFFFFFFFFFFF == 0xFFFFFFFFFFFFFFFF
        if bits in ends:
            width = 64 if bits < 4096 else 32
            assert (p >> 64) & ((1 << width) - 1) == ends[bits]
    assert pow(2, chap.prime(2048) - 1, chap.prime(2048)) == 1


class Controller:
    """The other side, written from the specification's figures, with switches for tests."""

    def __init__(self, secret: Secret, ctrl: Secret | None, hash_id: int, group: int, *, lie: bool = False) -> None:
        self.secret, self.ctrl, self.hash_id, self.group, self.lie = secret, ctrl, hash_id, group, lie
        self.next = b""
        self.done = False

    async def send(self, message: bytes) -> None:
        name = chap.HASHES[self.hash_id]
        size = hashlib.new(name).digest_size
        if message[:2] == b"\x00\x00":
            assert len(message) == 72
            self.tid = message[4:6]
            assert message[7] == 1
            assert message[8] == 1
            self.challenge = bytes(range(size))
            public = b""
            if self.group:
                bits = chap.GROUPS[self.group]
                self.p, self.private = chap.prime(bits), 0x1234567890ABCDEF
                public = pow(2, self.private, self.p).to_bytes(bits // 8, "big")
            head = b"\x01\x01\x00\x00" + self.tid + bytes([size, 0, self.hash_id, self.group])
            self.next = head + struct.pack("<HI", len(public), 77) + self.challenge + public
        elif message[:2] == b"\x01\x02":
            assert message[4:6] == self.tid
            assert message[6] == size
            challenge, theirs = self.challenge, message[16 + size : 16 + 2 * size]
            if self.group:
                public = int.from_bytes(message[16 + 2 * size :], "big")
                shared = pow(public, self.private, self.p).to_bytes(self.p.bit_length() // 8, "big")
                key = hashlib.new(name, shared).digest()
                challenge = hmac.new(key, challenge, name).digest()
                theirs = hmac.new(key, theirs, name).digest()
            text = (
                challenge
                + b"\x4d\x00\x00\x00"
                + self.tid
                + b"\x00HostHost"
                + HOST.encode()
                + b"\0"
                + SUBSYSTEM.encode()
            )
            if hmac.new(self.secret.of(HOST), text, name).digest() != message[16 : 16 + size]:
                self.next = b"\x00\xf1\x00\x00" + self.tid + b"\x01\x01" + bytes(8)
                return
            rvalid = message[8]
            seqnum = message[12:16]
            text = theirs + seqnum + self.tid + b"\x00Controller" + SUBSYSTEM.encode() + b"\0" + HOST.encode()
            proof = hmac.new(self.ctrl.of(SUBSYSTEM), text, name).digest() if rvalid and self.ctrl else bytes(size)
            if self.lie:
                proof = bytes(size)
            self.next = (
                b"\x01\x03\x00\x00" + self.tid + bytes([size, 0, rvalid]) + bytes(7) + (proof if rvalid else b"")
            )
            self.done = not rvalid
        else:
            self.done = message[:2] == b"\x01\x04"
            assert len(message) == 16 or message[1] == 0xF0

    async def receive(self, nbytes: int) -> bytes:
        assert len(self.next) <= nbytes
        return self.next.ljust(nbytes, b"\0")


async def run(controller: Controller, secret: Secret, ctrl: Secret | None) -> None:
    await chap.authenticate(
        controller.send,
        controller.receive,
        secret=secret,
        ctrl_secret=ctrl,
        hostnqn=HOST,
        subnqn=SUBSYSTEM,
        name="tcp:test",
    )


ONE = Secret.parse(encoded(bytes(range(32)), 1), "one")
TWO = Secret.parse(encoded(bytes(range(48)), 0), "two")


@pytest.mark.parametrize("hash_id", [1, 2, 3])
@pytest.mark.parametrize("group", [0, 1, 2, 5])
@pytest.mark.parametrize("both", [False, True])
async def test_both_sides_agree(hash_id, group, both):
    controller = Controller(ONE, TWO, hash_id, group)
    await run(controller, ONE, TWO if both else None)
    assert controller.done


async def test_a_wrong_secret_is_refused():
    with pytest.raises(ControllerError, match="refused: authentication failed"):
        await run(Controller(ONE, None, 1, 1), TWO, None)


async def test_a_controller_with_a_wrong_secret_is_refused():
    with pytest.raises(ControllerError, match="dhchap_ctrl_secret"):
        await run(Controller(ONE, TWO, 1, 0, lie=True), ONE, TWO)
    with pytest.raises(ControllerError, match="dhchap_ctrl_secret"):
        await run(Controller(ONE, ONE, 1, 1), ONE, TWO)
