"""URIs of scheme tcp: one address of a subsystem, or several, which are paths to it."""

from __future__ import annotations

from nvme_async.driver.options import Options
from nvme_async.driver.tcp.address import parse_addresses
from nvme_async.driver.tcp.multipath import MultipathTransport
from nvme_async.driver.tcp.transport import TcpTransport
from nvme_async.driver.transport import Transport


def parse(rest: str) -> str:
    """The canonical form of what follows "tcp:"."""
    addresses = parse_addresses(rest)
    return ",".join(one.endpoint for one in addresses) + f"/{addresses[0].nqn}"


def location(rest: str) -> tuple[object, ...]:
    """The addresses in any order, and the subsystem."""
    addresses = parse_addresses(rest)
    return (frozenset(one.endpoint for one in addresses), addresses[0].nqn)


async def open_transport(uri: str, options: Options) -> Transport:
    """The connections are made by the first step of the bring-up."""
    addresses = parse_addresses(uri.partition(":")[2])
    if len(addresses) == 1:
        return TcpTransport(addresses[0], options)
    return MultipathTransport(addresses, options)
