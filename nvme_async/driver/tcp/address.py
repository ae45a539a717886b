"""The address of an NVMe/TCP controller: tcp:HOST[:PORT]/SUBSYSTEM-NQN; or several of one
subsystem, separated by commas.
"""

from __future__ import annotations

import ipaddress
import re
import socket

import attrs

from nvme_async.errors import ConfigurationError

DEFAULT_PORT = 4420
DISCOVERY_PORT = 8009
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
MAX_NQN = 223
MAX_PATHS = 32
"""Addresses of one URI."""


def check_nqn(nqn: str) -> str:
    """`nqn`, or ConfigurationError: "nqn." and 223 bytes at most (Base 2.0, 4.5)."""
    if not nqn.startswith("nqn.") or not nqn.isprintable() or len(nqn.encode()) > MAX_NQN:
        raise ConfigurationError(
            f"{nqn!r} is not an NVMe Qualified Name: it must begin with nqn. and have at most {MAX_NQN} bytes"
        )
    return nqn


@attrs.frozen
class Address:
    """Attributes:
    host: a name in lower case, or an IPv4 or IPv6 address without brackets, in the usual form.
    port: of TCP.
    nqn: of the subsystem.
    """

    host: str
    port: int
    nqn: str

    @property
    def endpoint(self) -> str:
        """HOST:PORT, as in a URI."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.nqn}"

    @classmethod
    def parse(cls, text: str, *, port: int = DEFAULT_PORT, nqn: str | None = None) -> Address:
        """From what follows "tcp:". port, nqn: defaults if the text has none.
        ConfigurationError.
        """
        endpoint, slash, name = text.partition("/")
        if not slash and nqn is None:
            raise ConfigurationError(
                f"tcp:{text}: the form is HOST[:PORT]/NQN, and the NQN of the subsystem is missing"
            )
        host, number = _split(endpoint, text)
        if number is not None:
            if not number.isdecimal() or not 1 <= int(number) <= 65535:
                raise ConfigurationError(f"tcp:{text}: port {number!r} is not 1 to 65535")
            port = int(number)
        return cls(host, port, check_nqn(name if slash else nqn or ""))


def parse_addresses(text: str) -> list[Address]:
    """The addresses of one subsystem, from HOST[:PORT][,HOST[:PORT]…]/NQN. ConfigurationError."""
    endpoints, slash, nqn = text.partition("/")
    if not slash:
        return [Address.parse(text)]
    addresses = [Address.parse(f"{endpoint}/{nqn}") for endpoint in endpoints.split(",")]
    if len(addresses) > MAX_PATHS:
        raise ConfigurationError(f"tcp:{text}: {len(addresses)} addresses, the limit is {MAX_PATHS}")
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ConfigurationError(f"tcp:{text}: {address.endpoint} is there twice")
    return addresses


def _split(endpoint: str, text: str) -> tuple[str, str | None]:
    number: str | None = None
    if endpoint.startswith("["):
        host, bracket, rest = endpoint[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"tcp:{text}: an IPv6 address is written [ADDRESS]:PORT")
        number = rest[1:] if rest else None
        try:
            found = ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigurationError(f"tcp:{text}: {host!r} is not an IPv6 address") from None
        return str(found.ipv4_mapped or found), number
    if endpoint.count(":") > 1:
        raise ConfigurationError(f"tcp:{text}: an IPv6 address is written [ADDRESS]:PORT")
    host, colon, rest = endpoint.partition(":")
    if not host or not all(part and part.replace("-", "a").replace("_", "a").isalnum() for part in host.split(".")):
        raise ConfigurationError(f"tcp:{text}: {host!r} is not a host name or address")
    return _usual(host, text), rest if colon else None


def _usual(host: str, text: str) -> str:
    """Names don't depend on case; getaddrinfo() also takes IPv4 addresses such as 127.1."""
    if re.fullmatch(r"[0-9.]+", host) is None:
        return host.lower()
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        raise ConfigurationError(f"tcp:{text}: {host!r} is not an IPv4 address") from None
