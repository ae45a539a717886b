"""NVMe/TCP over TLS 1.3 with a pre-shared key (TCP Transport 1.1, 3.6.1), for the host.

The handshake and the records are those of Python's ssl module. Its callbacks for pre-shared keys
exist since Python 3.13, and bind a key to SHA-256: keys for SHA-384 cannot be used.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import attrs

from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError, ControllerError, ControllerGone, ControllerTimeout
from nvme_async.runtime import tls_relay
from nvme_async.spec.tls_psk import CIPHERS, FORM, VERSIONS, InterchangeKey, TlsPsk

LONGEST_IDENTITY = 255
"""Bytes of a PSK identity that OpenSSL's callback can return."""
_PREFIX = "NVMeTLSkey-"


def require() -> None:
    """ConfigurationError where Python's ssl module has no pre-shared keys."""
    if not getattr(ssl, "HAS_PSK", False):
        raise ConfigurationError(
            "NVMe/TCP over TLS needs Python 3.13 or newer, whose ssl module has pre-shared keys "
            "(ssl.HAS_PSK). Without it, an encrypted tunnel (WireGuard, IPsec) protects the data, and "
            "dhchap_secret authenticates host and controller"
        )


def configured(text: str, name: str = "tls_key") -> InterchangeKey:
    """The key in `text`: in the interchange format, or the path of a file with one as its last
    word, alone or behind its identity. ConfigurationError, also for a key that OpenSSL's callback
    cannot use. name: of the option.
    """
    if not text.startswith(_PREFIX):
        try:
            content = Path(text).read_text(encoding="ascii").split()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ConfigurationError(
                f"{name} is neither a key of the form {FORM} nor a file that can be read: {reason}"
            ) from None
        text = content[-1] if content else ""
    key = InterchangeKey.parse(text, name)
    if key.digest != "sha256":
        raise ConfigurationError(
            f"{name} is a key of {len(key.configured)} bytes, for SHA-384: Python's ssl module binds a pre-shared key "
            "to SHA-256. A key of 32 bytes is needed (gen-tls-key --hmac 1)"
        )
    return key


@attrs.frozen
class TlsWishes:
    """Attributes:
    version: of the PSK identity.
    """

    key: InterchangeKey
    version: int

    @classmethod
    def of(cls, options: Options) -> TlsWishes | None:
        """None without TLS. ConfigurationError."""
        if not options.tls:
            if options.tls_key:
                raise ConfigurationError("tls_key needs tls=True: without it, the connection is not encrypted")
            return None
        require()
        if not options.tls_key:
            raise ConfigurationError(f"tls=True needs tls_key, a key of the form {FORM} or a file with one")
        return cls(configured(options.tls_key), options.tls_identity)

    def psk(self, hostnqn: str, subnqn: str) -> TlsPsk:
        """ConfigurationError if the names are too long."""
        psk = self.key.tls_psk(hostnqn, subnqn, self.version)
        length = len(psk.identity.encode())
        if length > LONGEST_IDENTITY:
            raise ConfigurationError(
                f"the PSK identity of {hostnqn} and {subnqn} has {length} bytes, the limit of OpenSSL's callback is "
                f"{LONGEST_IDENTITY}: shorter names are needed"
            )
        return psk


def client_context(psk: TlsPsk) -> ssl.SSLContext:
    """TLS 1.3 with this key alone: a certificate is never accepted, as none is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    if hasattr(context, "set_ciphersuites"):  # Python 3.15
        # SPDK's target takes the first suite that is offered, even one with another hash.
        context.set_ciphersuites(CIPHERS[psk.digest])
    context.set_psk_client_callback(lambda _hint: (psk.identity, psk.key))  # type: ignore[attr-defined,unused-ignore]
    return context


def _check(connection: ssl.SSLSocket) -> None:
    if not connection.session_reused:
        raise ssl.SSLError("the controller did not use the pre-shared key")


async def secure(
    sock: socket.socket, wishes: TlsWishes, *, hostnqn: str, subnqn: str, name: str, seconds: float
) -> socket.socket:
    """The plain end of a TLS connection over `sock`, which is taken, also on failure.

    ControllerGone if the connection ends in the handshake, ControllerTimeout, ControllerError.
    """
    try:
        context = client_context(wishes.psk(hostnqn, subnqn))
    except BaseException:
        sock.close()
        raise
    plain = tls_relay.relay(sock, context, name=name, seconds=seconds, check=_check)
    try:
        await asyncio.wrap_future(plain.established)
    except BaseException as error:
        plain.close()
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise ControllerError(
                f"{name}: the TLS handshake failed ({reason}): are tls_key, hostnqn, NQN and tls_identity "
                f"({wishes.version}, the other one is {VERSIONS[not wishes.version]}) those of the controller?"
            ) from error
        if isinstance(error, TimeoutError):
            raise ControllerTimeout(f"{name}: {error}") from None
        if isinstance(error, OSError):
            raise ControllerGone(f"{name}: the TLS handshake: {error.strerror or error}") from None
        raise
    return plain
