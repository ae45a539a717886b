"""The emulated controller as an NVMe/TCP target: its addresses and parameters."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import attrs

from nvme_async.errors import ConfigurationError

DEFAULT_PORT = 4420
NQN_PREFIX = "nqn.2024-01.io.nvme-async"


def _between(low: int, high: int, step: int = 1) -> Any:
    def check(_: object, attribute: attrs.Attribute[int], value: int) -> None:
        if not low <= value <= high or value % step:
            multiple = f", a multiple of {step}" if step > 1 else ""
            raise ConfigurationError(f"{attribute.name}={value}: must be {low} to {high}{multiple}")

    return check


def _nqn(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not value.startswith("nqn.") or not value.isprintable() or len(value.encode()) > 223:
        raise ConfigurationError(f"nqn={value!r}: must begin with nqn. and have 223 bytes at most (Base 2.0, 4.5)")


@attrs.frozen(kw_only=True)
class TcpConfig:
    """How an emulated controller serves NVMe/TCP (NVM Express TCP Transport 1.0).

    Attributes:
        nqn: of its subsystem. There is also the discovery subsystem.
        in_capsule: bytes of write data that a command capsule of an I/O queue may hold.
        max_h2c: most bytes of one H2CData PDU (MAXH2CDATA).
        r2t_bytes, c2h_bytes: maximum that one R2T requests, and that one C2HData carries; 0: all of
            a command's data.
        alignment: of data that hosts send, in bytes (CPDA), a multiple of 4 up to 128.
        header_digest, data_digest: agree to them if a host requests them.
        always_success: C2HData with SUCCESS, in place of a response, for every host; otherwise only
            if SQ flow control is off.
        referrals: [(address, port)] of other discovery services.
        tls_key: only TLS connections with this pre-shared key ("NVMeTLSkey-1:HH:BASE64:", or a file
            with it) are accepted, of any host. Needs Python 3.13.
    """

    nqn: str = attrs.field(default=f"{NQN_PREFIX}:emulated", validator=_nqn)
    in_capsule: int = attrs.field(default=8192, validator=_between(0, 1 << 20, 16))
    max_h2c: int = attrs.field(default=128 << 10, validator=_between(4096, 1 << 20, 4))
    r2t_bytes: int = attrs.field(default=0, validator=_between(0, 16 << 20, 4))
    c2h_bytes: int = attrs.field(default=0, validator=_between(0, 16 << 20))
    alignment: int = attrs.field(default=4, validator=_between(4, 128, 4))
    header_digest: bool = True
    data_digest: bool = True
    always_success: bool = False
    referrals: tuple[tuple[str, int], ...] = ()
    tls_key: str = attrs.field(default="", repr=False)


def parse_endpoint(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """("192.0.2.7", 4420) from "192.0.2.7:4420", "[::1]:4420" or an address alone."""
    host, port = text, str(default_port)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"{text!r} is not an address: the form is [IPv6]:PORT")
        port = rest[1:] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if not host or not all(part and part.replace("-", "a").isalnum() for part in host.split(".")):
            raise ConfigurationError(f"{text!r} is not an address: the form is ADDRESS:PORT or [IPv6]:PORT") from None
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{text!r}: the port must be a number from 0 to 65535")
    return host, int(port)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound, non-blocking socket; port 0 takes a free one. ConfigurationError if it isn't
    available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listening
