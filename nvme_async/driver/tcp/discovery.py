"""Discovery over NVMe/TCP (Base 2.0, 3.1.2.3): one read of the log, following referrals, or a
controller that stays connected and reports changes of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Unpack

from nvme_async.driver.completions import error_from
from nvme_async.driver.options import DriverOptions, Options
from nvme_async.driver.tcp import handshake, pdu
from nvme_async.driver.tcp.address import DISCOVERY_NQN, DISCOVERY_PORT, MAX_PATHS, Address
from nvme_async.driver.tcp.handshake import Connection, Wishes
from nvme_async.driver.tcp.host import this_host
from nvme_async.errors import ConfigurationError, ControllerError, ControllerGone, ControllerTimeout, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.discovery import ENTRY_BYTES, LID, REFERRAL, DiscoveryEntry, decode_header
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.registers import Register

log: logging.Logger = logging.getLogger("nvme_async")

ENTRIES = 32
MAX_RECORDS = 4096
MAX_REFERRALS = 64
"""Maximum services that one discover() queries."""
_ATTEMPTS = 10
"""Maximum repetitions of reading a log that changes meanwhile."""
_LOG_CHANGED = 1 << 31
_CC_EN = 6 << 16 | 4 << 20 | 1


class DiscoveryController:
    """A connected discovery controller: `async with DiscoveryController(address, options) as it`.

    On one event loop. Raises as nvme_async.discover().
    """

    def __init__(self, address: Address, options: Options, *, persistent: bool = False) -> None:
        self.address = address
        self._options = options
        self._name = f"tcp:{address.endpoint}"
        self._kato = options.keep_alive_tmo if persistent else 0.0
        self._connection: Connection | None = None
        self._stream: pdu.Stream
        self._waiting: dict[int, tuple[asyncio.Future[tuple[int, int, bytes]], bytes, bytearray]] = {}
        self._last_cid = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> DiscoveryController:
        options = self._options
        host = this_host(options.hostnqn, options.hostid)
        wishes = Wishes.of(options, kato=self._kato)
        self._connection = await handshake.connect(
            self.address, host, wishes, qid=0, entries=ENTRIES, seconds=options.connect_timeout
        )
        try:
            self._stream = pdu.Stream(self._connection.sock, self._name)
            self._tasks.append(asyncio.create_task(self._read(), name=f"{self._name} receiver"))
            await self._enable()
            if self._kato:
                self._tasks.append(asyncio.create_task(self._keep_alive(), name=f"{self._name} Keep Alive"))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(NvmeError):
            await self._property_set(Register.CC, _CC_EN | 1 << 14)
        await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.sock.close()

    # -- commands ----------------------------------------------------------------------------------

    async def _call(self, sqe: bytes, nbytes: int = 0, *, seconds: float | None = None) -> tuple[int, int, bytes]:
        """(dw0, dw1, data) of one command. seconds: 0 for no limit."""
        assert self._connection is not None
        limit = self._options.connect_timeout if seconds is None else seconds
        while True:
            self._last_cid = self._last_cid % 0xFFFE + 1
            if self._last_cid not in self._waiting:
                break
        cid = self._last_cid
        sqe = sqe[:2] + struct.pack("<H", cid) + sqe[4:]
        future: asyncio.Future[tuple[int, int, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[cid] = future, sqe, bytearray(nbytes)
        try:
            async with asyncio.timeout(limit or None) as timer:
                await self._stream.send(pdu.command(sqe, b"", self._connection.limits, expects=nbytes))
                return await future
        except TimeoutError as error:
            if isinstance(error, NvmeError) or not timer.expired():
                raise
            raise ControllerTimeout(f"{self._name}: no answer within {limit:g} s") from None
        finally:
            self._waiting.pop(cid, None)

    async def _read(self) -> None:
        assert self._connection is not None
        limits = self._connection.limits
        try:
            while True:
                got = await self._stream.receive(header_digest=limits.header_digest, data_digest=limits.data_digest)
                if got.kind == pdu.C2H_DATA:
                    cid, _, offset, length = struct.unpack_from("<HHII", got.header, 8)
                    waiting = self._waiting.get(cid)
                    if waiting is None or offset + length > len(waiting[2]):
                        raise ControllerError(f"{self._name}: {length} bytes at {offset} for command id {cid:#06x}")
                    waiting[2][offset : offset + length] = got.data
                    if got.flags & pdu.SUCCESS:
                        self._answer(cid, 0, 0, 0)
                elif got.kind == pdu.RESPONSE:
                    dw0, dw1, _, _, cid, status = struct.unpack_from("<IIHHHH", got.header, 8)
                    self._answer(cid, dw0, dw1, status >> 1)
                else:
                    raise ControllerError(f"{self._name}: a PDU of type {got.kind:#x}")
        except NvmeError as error:
            for future, _, _ in self._waiting.values():
                if not future.done():
                    future.set_exception(error)

    def _answer(self, cid: int, dw0: int, dw1: int, status: int) -> None:
        waiting = self._waiting.get(cid)
        if waiting is None or waiting[0].done():
            return  # of a command that took too long
        future, sqe, data = waiting
        if status:
            future.set_exception(error_from(status, dw0, sqe, True, False))
        else:
            future.set_result((dw0, dw1, bytes(data)))

    async def _property_set(self, register: Register, value: int) -> None:
        await self._call(struct.pack("<BBHB35xB3xIQ8x", 0x7F, 0, 0, 0, 0, register, value))

    async def _enable(self) -> None:
        await self._property_set(Register.CC, _CC_EN)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.connect_timeout
        while True:
            dw0, _, _ = await self._call(struct.pack("<BBHB35xB3xI16x", 0x7F, 0, 0, 4, 0, Register.CSTS))
            if dw0 & 1:
                return
            if loop.time() > until:
                raise ControllerTimeout(f"{self._name}: CSTS.RDY stays 0 (CSTS {dw0:#x})")
            await asyncio.sleep(0.01)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._kato / 3)
            await self._call(commands.keep_alive().pack(), seconds=self._kato)

    # -- the log -----------------------------------------------------------------------------------

    async def _page(self, nbytes: int, offset: int) -> bytes:
        command = commands.get_log_page(LID, nbytes, offset=offset)
        return (await self._call(command.pack(), nbytes))[2]

    async def entries(self) -> list[DiscoveryEntry]:
        """The log as it is now, read again when it changes meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                genctr, numrec = decode_header(await self._page(ENTRY_BYTES, 0))
            except ValueError as error:
                raise ControllerError(f"{self._name}: {error}") from None
            if numrec > MAX_RECORDS:
                raise ControllerError(f"{self._name}: a discovery log of {numrec} entries, the limit is {MAX_RECORDS}")
            pages = [await self._page(ENTRY_BYTES, ENTRY_BYTES * (i + 1)) for i in range(numrec)]
            if decode_header(await self._page(ENTRY_BYTES, 0)) == (genctr, numrec):
                return [DiscoveryEntry.decode(page) for page in pages]
        raise ControllerError(f"{self._name}: the discovery log changed {_ATTEMPTS} times while it was read")

    async def changes(self) -> AsyncIterator[list[DiscoveryEntry]]:
        """The log, and again after each change, for as long as the controller is connected.
        persistent=True.
        """
        await self._call(commands.set_features(Feature.ASYNC_EVENT_CONFIGURATION, _LOG_CHANGED).pack())
        while True:
            yield await self.entries()
            # Reading the log has cleared the event; the next event means a later change.
            await self._call(commands.async_event_request().pack(), seconds=0)


def _service(uri: str) -> Address:
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "tcp":
        raise ConfigurationError(f"{uri!r}: discovery needs the form tcp:HOST[:PORT]")
    return Address.parse(rest, port=DISCOVERY_PORT, nqn=DISCOVERY_NQN)


async def discover(uri: str, *, referrals: bool = True, **options: Unpack[DriverOptions]) -> list[DiscoveryEntry]:
    """The log of the discovery service at `uri` ("tcp:192.0.2.7:8009"), and of those that it
    refers to.

    referrals: query those too, each once; one that does not answer is logged and left out.
    options: hostnqn, hostid, hdr_digest, data_digest, connect_timeout of nvme_async.Options. Raises
        ConfigurationError, ControllerGone if nothing answers, ControllerTimeout, CommandError,
        ControllerError for protocol violations.
    """
    chosen = Options.of(options)
    first = _service(uri)
    waiting = [first]
    asked: set[Address] = set()
    found: list[DiscoveryEntry] = []
    while waiting and len(asked) < MAX_REFERRALS:
        address = waiting.pop(0)
        if address in asked:
            continue
        asked.add(address)
        try:
            async with DiscoveryController(address, chosen) as controller:
                entries = await controller.entries()
        except NvmeError as error:
            if address is first:
                raise
            log.warning("tcp:%s, which %s refers to: %s", address.endpoint, uri, error)
            continue
        for entry in entries:
            if entry.subtype == REFERRAL and entry.trtype == 3 and entry.trsvcid.isdecimal():
                waiting.append(Address(entry.traddr, int(entry.trsvcid), entry.subnqn or DISCOVERY_NQN))
            if entry not in found:
                found.append(entry)
        if not referrals:
            break
    return found


def subsystem_uris(entries: Iterable[DiscoveryEntry]) -> list[str]:
    """One URI for each NVM subsystem over TCP in a discovery log, with all its addresses as paths,
    in the order of the log. Invalid addresses, and those over MAX_PATHS of a subsystem, are logged
    and left out.
    """
    found: dict[str, list[Address]] = {}
    for entry in entries:
        if entry.uri is None:
            continue
        try:
            address = Address.parse(entry.uri.partition(":")[2])
        except ConfigurationError as error:
            log.warning("an entry of the discovery log is left out: %s", error)
            continue
        addresses = found.setdefault(address.nqn, [])
        if address in addresses:
            continue
        if len(addresses) == MAX_PATHS:
            log.warning("%s: the path over %s is left out: the limit is %d", address.nqn, address.endpoint, MAX_PATHS)
            continue
        addresses.append(address)
    return [f"tcp:{','.join(one.endpoint for one in addresses)}/{nqn}" for nqn, addresses in found.items()]


async def discover_subsystems(uri: str, **options: Unpack[DriverOptions]) -> list[str]:
    """The URIs of all NVM subsystems that the discovery service at `uri` knows, for
    nvme_async.open(): one for each, with all its addresses as paths. Options and errors: as
    discover().
    """
    return subsystem_uris(await discover(uri, **options))


async def watch_discovery(uri: str, **options: Unpack[DriverOptions]) -> AsyncIterator[list[DiscoveryEntry]]:
    """The log of one discovery service, and again after each change, over one persistent
    connection. Ends with ControllerGone when that is lost.
    """
    async with DiscoveryController(_service(uri), Options.of(options), persistent=True) as controller:
        async for entries in controller.changes():
            yield entries
    raise ControllerGone(f"{uri}: the discovery controller is gone")
