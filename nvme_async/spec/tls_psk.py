"""Pre-shared keys of NVMe/TCP over TLS 1.3 (TCP Transport 1.1, 3.6.1): the interchange format, and
the identity and key for TLS that follow from such a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
import zlib

import attrs

from nvme_async.errors import ConfigurationError

FORM = "NVMeTLSkey-1:HH:BASE64:"
HASHES = {1: "sha256", 2: "sha384"}
"""By HH of the interchange format and of the PSK identity."""
LENGTHS = {"sha256": 32, "sha384": 48}
CIPHERS = {"sha256": "TLS_AES_128_GCM_SHA256", "sha384": "TLS_AES_256_GCM_SHA384"}
VERSIONS = (0, 1)
"""Of the PSK identity: 0 of TCP Transport 1.0, 1 with a digest of the key."""
_SEED = "NVMe-over-Fabrics"


def hkdf_extract(key: bytes, digest: str) -> bytes:
    """HKDF-Extract of RFC 5869 (2.2) with a salt of zeroes."""
    return hmac.digest(bytes(hashlib.new(digest).digest_size), key, digest)


def hkdf_expand_label(key: bytes, label: str, context: bytes, nbytes: int, digest: str) -> bytes:
    """HKDF-Expand-Label of RFC 8446 (7.1). ConfigurationError for a context over 255 bytes."""
    if len(context) > 255:
        raise ConfigurationError(f"the context of {label} has {len(context)} bytes, the limit is 255 (RFC 8446, 7.1)")
    name = b"tls13 " + label.encode()
    info = struct.pack(">HB", nbytes, len(name)) + name + bytes((len(context),)) + context
    out = block = b""
    for number in range(1, -(-nbytes // hashlib.new(digest).digest_size) + 1):
        block = hmac.digest(key, block + info + bytes((number,)), digest)
        out += block
    return out[:nbytes]


@attrs.frozen
class TlsPsk:
    """What a host offers in the TLS handshake.

    Attributes:
        identity: of the PSK. key: the TLS PSK. digest: hash of the cipher suite.
    """

    identity: str
    key: bytes = attrs.field(repr=False)
    digest: str


@attrs.frozen
class InterchangeKey:
    """A configured PSK.

    Attributes:
        hash_id: HH: the hash that makes the retained PSK; 0: the configured PSK is the retained
            one.
    """

    configured: bytes = attrs.field(repr=False)
    hash_id: int

    @classmethod
    def parse(cls, text: str, name: str) -> InterchangeKey:
        """From the interchange format (TCP Transport 1.1, 3.6.1.5). ConfigurationError; it doesn't
        repeat the key. name: of the option.
        """
        parts = text.strip().split(":")
        if len(parts) != 4 or parts[0] != "NVMeTLSkey-1" or parts[3]:
            raise ConfigurationError(f"{name} is not of the form {FORM} (gen-tls-key makes one)")
        if parts[1] not in ("00", "01", "02"):
            raise ConfigurationError(f"{name}: hash {parts[1]!r} must be 00, 01 (SHA-256) or 02 (SHA-384)")
        try:
            data = base64.b64decode(parts[2], validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(f"{name}: the part after {parts[0]}:{parts[1]}: is not Base64") from None
        key, crc = data[:-4], data[-4:]
        hash_id = int(parts[1])
        allowed = (LENGTHS[HASHES[hash_id]],) if hash_id else tuple(LENGTHS.values())
        if len(key) not in allowed:
            raise ConfigurationError(
                f"{name}: a key of {max(0, len(key))} bytes, hash {parts[1]} needs {' or '.join(map(str, allowed))}"
            )
        if crc != struct.pack("<I", zlib.crc32(key)):
            raise ConfigurationError(f"{name}: the CRC-32 does not match, the key was mistyped or damaged")
        return cls(key, hash_id)

    def text(self) -> str:
        """In the interchange format."""
        data = self.configured + struct.pack("<I", zlib.crc32(self.configured))
        return f"NVMeTLSkey-1:{self.hash_id:02}:{base64.b64encode(data).decode()}:"

    @property
    def digest(self) -> str:
        """The hash of the cipher suite that this key is for. Without a hash in the key its length
        decides.
        """
        return "sha256" if len(self.configured) == LENGTHS["sha256"] else "sha384"

    def retained(self, hostnqn: str) -> bytes:
        """The retained PSK (TCP Transport 1.1, 3.6.1.3)."""
        if not self.hash_id:
            return self.configured
        prk = hkdf_extract(self.configured, self.digest)
        return hkdf_expand_label(prk, "HostNQN", hostnqn.encode(), len(self.configured), self.digest)

    def tls_psk(self, hostnqn: str, subnqn: str, version: int) -> TlsPsk:
        """PSK identity and TLS PSK (TCP Transport 1.1, 3.6.1.4). version: of the identity, 0 or
        1. ConfigurationError if the names are too long for it.
        """
        retained = self.retained(hostnqn)
        hash_id = 1 if self.digest == "sha256" else 2
        identity = f"NVMe{version}R{hash_id:02} {hostnqn} {subnqn}"
        context = identity
        if version:
            message = f"{hostnqn} {subnqn} {_SEED}".encode()
            psk_digest = base64.b64encode(hmac.digest(retained, message, self.digest)).decode()
            identity += f" {psk_digest}"
            context = f"{hash_id:02} {psk_digest}"
        prk = hkdf_extract(retained, self.digest)
        key = hkdf_expand_label(prk, "nvme-tls-psk", context.encode(), LENGTHS[self.digest], self.digest)
        return TlsPsk(identity, key, self.digest)
