"""From a TCP connection to a queue of an association: ICReq and ICResp, then Connect (Base 2.0,
6.3).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import struct

import attrs

from nvme_async.driver.options import Options
from nvme_async.driver.tcp import chap, pdu
from nvme_async.driver.tcp.address import Address
from nvme_async.driver.tcp.chap import Secret
from nvme_async.driver.tcp.host import Host
from nvme_async.driver.tcp.pdu import Limits, Stream
from nvme_async.driver.tcp.tls import TlsWishes, secure
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    ControllerError,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
)

log: logging.Logger = logging.getLogger("nvme_async")
SO_BUSY_POLL = 46  # asm-generic/socket.h
ADMIN_IN_CAPSULE = 8192
"""Bytes that an admin command capsule may carry (TCP Transport 1.0, 3.3.1.2)."""
ANY_CONTROLLER = 0xFFFF
FABRICS = 0x7F
_CONNECT = 0x01
_AUTH_SEND, _AUTH_RECEIVE = 0x05, 0x06
_CHAP = 0xE9
_AUTHENTICATION, _SECURE_CHANNEL = 1 << 1, 1 << 2
_NO_FLOW_CONTROL = 1 << 2
INVALID_PARAMETERS = (1, 0x82)
_STATUS = {
    (0, 0x0C): "Command Sequence Error",
    (1, 0x80): "Connect Incompatible Format",
    (1, 0x81): "Connect Controller Busy",
    (1, 0x82): "Connect Invalid Parameters",
    (1, 0x83): "Connect Restart Discovery",
    (1, 0x84): "Connect Invalid Host",
}
_PARAMETERS = {16: "CNTLID", 256: "SUBNQN", 512: "HOSTNQN", 0: "HOSTID"}


@attrs.frozen
class Wishes:
    """Attributes:
    kato: Keep Alive Timeout in milliseconds; 0: none.
    secret, ctrl_secret: of DH-HMAC-CHAP, this host's and the controller's.
    busy_poll: microseconds of SO_BUSY_POLL; 0: not set.
    host_traddr, host_iface: where connections are made from; empty: as the system routes them.
    tls: None: a plain connection.
    """

    header_digest: bool = False
    data_digest: bool = False
    kato: int = 0
    secret: Secret | None = None
    ctrl_secret: Secret | None = None
    busy_poll: int = 0
    tls: TlsWishes | None = None
    host_traddr: str = ""
    host_iface: str = ""

    @classmethod
    def of(cls, options: Options, *, kato: float) -> Wishes:
        """From the options. kato: in seconds. ConfigurationError for an invalid secret or key."""
        if options.dhchap_ctrl_secret and not options.dhchap_secret:
            raise ConfigurationError("dhchap_ctrl_secret needs dhchap_secret: the host authenticates first")
        return cls(
            options.hdr_digest,
            options.data_digest,
            int(kato * 1000),
            Secret.parse(options.dhchap_secret, "dhchap_secret") if options.dhchap_secret else None,
            Secret.parse(options.dhchap_ctrl_secret, "dhchap_ctrl_secret") if options.dhchap_ctrl_secret else None,
            options.busy_poll,
            TlsWishes.of(options),
            options.host_traddr,
            options.host_iface,
        )


@attrs.frozen
class Connection:
    """A queue of an association. The holder must close the socket.

    Attributes:
        cntlid: of the controller.
    """

    sock: socket.socket
    limits: Limits
    cntlid: int


def _busy_poll(sock: socket.socket, microseconds: int) -> None:
    """SO_BUSY_POLL, which Python's socket module doesn't name. More than the system's value takes
    CAP_NET_ADMIN: then the connection goes on without.
    """
    if not microseconds:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, microseconds)
    except OSError as error:
        log.warning("busy_poll=%d: %s; the socket is not polled", microseconds, error.strerror or error)


def _leave_from(sock: socket.socket, wishes: Wishes) -> None:
    """OSError if this host has no such interface or address."""
    if wishes.host_iface:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, wishes.host_iface.encode() + b"\0")
    if wishes.host_traddr:
        sock.bind((wishes.host_traddr, 0))


async def _dial(address: Address, wishes: Wishes) -> socket.socket:
    """A connected, non-blocking socket; the first address of the name that answers."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ControllerGone(f"tcp:{address}: {error.strerror or error}") from None
    failure: OSError | None = None
    if wishes.host_traddr:
        wanted = socket.AF_INET6 if ":" in wishes.host_traddr else socket.AF_INET
        found = [one for one in found if one[0] == wanted]
    for family, kind, protocol, _, where in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _busy_poll(sock, wishes.busy_poll)
            _leave_from(sock, wishes)
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    reason = "no address" if failure is None else os.strerror(failure.errno) if failure.errno else str(failure)
    origin = " and ".join(one for one in (wishes.host_traddr, wishes.host_iface) if one)
    raise ControllerGone(f"tcp:{address}: {reason}{f' (from {origin})' if origin else ''}")


async def connect(
    address: Address,
    host: Host,
    wishes: Wishes,
    *,
    qid: int,
    entries: int,
    seconds: float,
    cntlid: int = ANY_CONTROLLER,
    in_capsule: int = ADMIN_IN_CAPSULE,
) -> Connection:
    """Makes queue `qid` of `entries` entries. On failure nothing stays open.

    seconds: for all of it. in_capsule: of that queue, in bytes.
    cntlid: of the association, for I/O queues.
    Raises ControllerGone if nothing answers, ControllerTimeout, CommandError for a refused Connect,
    ControllerError for protocol violations.
    """
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(seconds) as timer:
            sock = await _dial(address, wishes)
            if wishes.tls is not None:
                plain, sock = sock, None
                sock = await secure(
                    plain, wishes.tls, hostnqn=host.nqn, subnqn=address.nqn, name=f"tcp:{address}", seconds=seconds
                )
            return await _handshake(sock, address, host, wishes, qid, entries, cntlid, in_capsule)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, TimeoutError) and not isinstance(error, NvmeError) and timer.expired():
            raise ControllerTimeout(f"tcp:{address}: no connection within {seconds:g} s") from None
        raise


async def _handshake(
    sock: socket.socket,
    address: Address,
    host: Host,
    wishes: Wishes,
    qid: int,
    entries: int,
    cntlid: int,
    in_capsule: int,
) -> Connection:
    stream = Stream(sock, f"tcp:{address}")
    await stream.send(pdu.icreq(header_digest=wishes.header_digest, data_digest=wishes.data_digest))
    answer = await stream.receive()
    if answer.kind != pdu.ICRESP:
        raise ControllerError(f"{stream.name}: a PDU of type {answer.kind:#x} instead of ICResp")
    pfv, cpda, dgst, max_h2c = struct.unpack_from("<HBBI", answer.header, 8)
    asked = wishes.header_digest | wishes.data_digest << 1
    if pfv != 0 or cpda > 31 or dgst & ~asked or max_h2c < 4096:
        raise ControllerError(
            f"{stream.name}: ICResp with PFV {pfv}, CPDA {cpda}, DGST {dgst:#x} (asked for {asked:#x}), "
            f"MAXH2CDATA {max_h2c}"
        )
    limits = Limits(in_capsule, max_h2c, (cpda + 1) * 4, bool(dgst & 1), bool(dgst & 2))
    # Connect data is sent in the capsule, as on the admin queue: Linux's target waits forever for
    # data that fit into the capsule but aren't in it.
    sqe = struct.pack("<BBHB35x", FABRICS, 0, 0, _CONNECT) + struct.pack(
        "<HHHBxI12x", 0, qid, entries - 1, _NO_FLOW_CONTROL, 0 if qid else wishes.kato
    )
    data = host.hostid + struct.pack("<H238x", cntlid) + _name(address.nqn) + _name(host.nqn) + bytes(256)
    await stream.send(pdu.command(sqe, data, limits))
    response = await stream.receive(header_digest=limits.header_digest)
    if response.kind != pdu.RESPONSE:
        raise ControllerError(f"{stream.name}: a PDU of type {response.kind:#x} instead of the Connect response")
    dw0, _, _, _, cid, status = struct.unpack_from("<IIHHHH", response.header, 8)
    if cid != 0:
        raise ControllerError(f"{stream.name}: a response for command id {cid:#06x}, but Connect has 0")
    if status >> 1:
        raise _refusal(status >> 1, dw0, stream.name)
    await _authenticate(stream, limits, dw0 >> 16, address, host, wishes)
    return Connection(sock, limits, dw0 & 0xFFFF)


async def _authenticate(
    stream: Stream, limits: Limits, asked: int, address: Address, host: Host, wishes: Wishes
) -> None:
    """The authentication that AUTHREQ of the Connect response requires (Base 2.0, 6.3), and that
    this host requires.
    """
    if wishes.secret is None:
        if asked:
            raise ControllerError(
                f"{stream.name}: the controller requires authentication: the option dhchap_secret is missing"
            )
        return
    if asked & _SECURE_CHANNEL:
        raise ControllerError(
            f"{stream.name}: the controller requires secure channel concatenation, which is not supported: "
            "TLS needs a key of its own (tls_key)"
        )
    if not asked & _AUTHENTICATION:
        if wishes.ctrl_secret is not None:
            raise ControllerError(
                f"{stream.name}: the controller does not authenticate, although dhchap_ctrl_secret is set"
            )
        return
    numbers = itertools.count(1)

    async def exchange(kind: int, data: bytes, expects: int) -> bytes:
        cid = next(numbers)
        sqe = struct.pack("<BBHB36xBBBI16x", FABRICS, 0, cid, kind, 1, 1, _CHAP, len(data) or expects)
        await stream.send(pdu.command(sqe, data, limits, expects=expects))
        got = bytearray()
        while True:
            answer = await stream.receive(header_digest=limits.header_digest, data_digest=limits.data_digest)
            if answer.kind == pdu.C2H_DATA:
                got += answer.data
                if answer.flags & pdu.SUCCESS:
                    return bytes(got)
            elif answer.kind == pdu.RESPONSE:
                _, _, _, _, answered, status = struct.unpack_from("<IIHHHH", answer.header, 8)
                if answered != cid or status >> 1:
                    raise ControllerError(
                        f"{stream.name}: an authentication command was refused (status {status >> 1:#x})"
                    )
                return bytes(got)
            else:
                raise ControllerError(f"{stream.name}: a PDU of type {answer.kind:#x} during authentication")

    async def send(message: bytes) -> None:
        await exchange(_AUTH_SEND, message, 0)

    async def receive(nbytes: int) -> bytes:
        return await exchange(_AUTH_RECEIVE, b"", nbytes)

    await chap.authenticate(
        send,
        receive,
        secret=wishes.secret,
        ctrl_secret=wishes.ctrl_secret,
        hostnqn=host.nqn,
        subnqn=address.nqn,
        name=stream.name,
    )


def _name(nqn: str) -> bytes:
    return nqn.encode().ljust(256, b"\0")


def _refusal(status: int, dw0: int, name: str) -> CommandError:
    """Connect has its own status codes: 82h means Namespace is Write Protected for other
    commands.
    """
    sct, sc = status >> 8 & 7, status & 0xFF
    text = _STATUS.get((sct, sc), "refused")
    if (sct, sc) == INVALID_PARAMETERS:
        offset, in_data = dw0 & 0xFFFF, dw0 >> 16 & 1
        text += f" ({_PARAMETERS.get(offset, f'offset {offset}')})" if in_data else f" (command byte {offset})"
    return CommandError(
        sct, sc, dnr=bool(status >> 14 & 1), opcode=FABRICS, admin=True, dw0=dw0, text=text, command=f"{name}: Connect"
    )
