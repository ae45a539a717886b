"""NVMe/TCP, host and target, end to end: I/O, digests, R2T, events, several hosts and loops,
refusals.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from array import array

import pytest
from driving import eventually

import nvme_async
from nvme_async.driver.tcp.handshake import SO_BUSY_POLL
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    ControllerError,
    ControllerGone,
    LbaOutOfRange,
    QueueShutdown,
)
from nvme_async.spec import commands
from nvme_async.spec.logs import CommandsSupported
from nvme_async.spec.opcodes import AdminOpcode, LogPage

NQN = "nqn.2024-01.io.example:test"


@pytest.fixture
def target():
    with EmulatedController("size=64MiB,namespaces=2") as emulator:
        emulator.port = emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        emulator.uri = f"tcp:127.0.0.1:{emulator.port}/{NQN}"
        yield emulator


async def exercise(controller, seed: int = 0) -> None:
    namespace = controller.namespaces[1]
    size = namespace.block_size
    for blocks in (1, 2, 3, 4, 8, 31, 32, 33, 256):
        data = os.urandom(blocks * size)
        await namespace.write(blocks * 10, data)
        assert await namespace.read(blocks * 10, blocks) == data
        buffer = bytearray(blocks * size + 3)
        view = memoryview(buffer)[3:]
        assert await namespace.readinto(blocks * 10, view) == len(view)
        assert view == data
        await namespace.compare(blocks * 10, data)
    await asyncio.gather(*(namespace.write(i * 16, bytes([i ^ seed]) * 16 * size) for i in range(100)))
    for i, data in enumerate(await asyncio.gather(*(namespace.read(i * 16, 16) for i in range(100)))):
        assert data == bytes([i ^ seed]) * 16 * size
    many = await namespace.read_many(array("Q", range(1600)))
    assert bytes(many.data[:: 16 * size]) == bytes(i ^ seed for i in range(100))
    await namespace.write_many(array("Q", range(2000, 2200)), b"w" * 200 * size)
    assert await namespace.read(2000, 200) == b"w" * 200 * size
    await namespace.flush()
    await namespace.write_zeroes(2000, 8)
    await namespace.deallocate([(2008, 8), (2020, 4)])
    assert await namespace.read(2000, 16) == bytes(16 * size)
    with pytest.raises(LbaOutOfRange):
        await namespace.read(namespace.blocks)


CONFIGURATIONS = {
    "plain": ("", {}),
    "digests": ("", {"hdr_digest": True, "data_digest": True}),
    "header digest alone": ("", {"hdr_digest": True}),
    "digests refused": (",header_digest=off,data_digest=off", {"hdr_digest": True, "data_digest": True}),
    "nothing in capsules, many small PDUs": (
        ",in_capsule=0,max_h2c=4096,r2t_bytes=8192,c2h_bytes=5000,alignment=128",
        {"hdr_digest": True, "data_digest": True},
    ),
    "always SUCCESS": (",always_success=on", {}),
    "poll": ("", {"mode": "poll"}),
    "interrupt": ("", {"mode": "interrupt"}),
    "short queue": ("", {"queue_entries": 3}),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
async def test_io_over_tcp(name):
    emulated, options = CONFIGURATIONS[name]
    async with nvme_async.open(f"emulated-tcp:size=64MiB{emulated}", **options) as controller:
        await exercise(controller)
        connection = controller.inspect()["io_queues"][0]["connection"]
        agreed = "refused" not in name
        assert connection["header_digest"] == (agreed and options.get("hdr_digest", False))
        assert connection["data_digest"] == (agreed and options.get("data_digest", False))
        assert connection["header_digest_errors"] == connection["data_digest_errors"] == 0


async def test_busy_poll_is_set_on_every_socket_or_said_to_be_refused(target, caplog):
    async with nvme_async.open(target.uri, busy_poll=7) as controller:
        await controller.namespaces[1].read(0)
        for queue in controller.transport.queues.all():
            refused = "the socket is not polled" in caplog.text
            assert refused or queue._socket.getsockopt(socket.SOL_SOCKET, SO_BUSY_POLL) == 7


async def test_reset_and_io_again():
    async with nvme_async.open("emulated-tcp:size=64MiB") as controller:
        await exercise(controller)
        await controller.reset("test")
        await exercise(controller, 0x55)
        assert controller.inspect()["association"]["reconnects"] == 1


async def test_two_hosts_connect_at_once_each_with_its_own_controller(target):
    async with nvme_async.open(target.uri) as one, nvme_async.open(target.uri) as two:
        assert one.identify.cntlid != two.identify.cntlid
        await one.namespaces[1].write(5, b"1" * 4096)
        assert await two.namespaces[1].read(5) == b"1" * 4096
        assert target.tcp_stats()["controllers"] == 2
    await eventually(lambda: target.tcp_stats()["controllers"] == target.tcp_stats()["open_connections"] == 0)


async def test_each_loop_has_its_own_connection(target):
    async with nvme_async.open(target.uri) as controller:
        namespace = controller.namespaces[1]
        failures = []

        def work(number: int) -> None:
            async def run() -> None:
                for i in range(20):
                    await namespace.write(1000 * number + i, bytes([number]) * 4096)
                    assert await namespace.read(1000 * number + i) == bytes([number]) * 4096

            try:
                asyncio.run(run())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        assert not failures
        assert target.tcp_stats()["connections"] >= 4


async def test_identify_describes_a_fabrics_controller(target):
    async with nvme_async.open(target.uri) as controller:
        identify = controller.identify
        assert identify.subnqn == NQN
        assert identify.ioccsz * 16 - 64 == 8192
        assert identify.icdoff == 0
        assert identify.cntlid == controller.transport.cntlid != 0
        assert controller.cap.mpsmax == 0


async def test_namespace_events_arrive(target):
    async with nvme_async.open(target.uri) as controller:
        events = []

        async def listen():
            async for event in controller.events():
                events.extend([(event.kind, event.nsid)])

        task = asyncio.ensure_future(listen())
        await asyncio.sleep(0.05)
        await asyncio.to_thread(target.faults.remove_namespace, 2)
        await eventually(lambda: ("namespace-removed", 2) in events)
        assert list(controller.namespaces) == [1]
        task.cancel()


async def test_faults_apply_to_commands_over_tcp(target):
    async with nvme_async.open(target.uri) as controller:
        target.faults.add(queue="io", opcode=2, count=1, fail=0x281)
        with pytest.raises(nvme_async.errors.UnrecoveredReadError):
            await controller.namespaces[1].read(0)
        await controller.namespaces[1].read(0)


async def test_a_lost_command_is_aborted_or_resent_over_a_new_association(target):
    async with nvme_async.open(target.uri, command_timeout=0.4, abort_timeout=0.3) as controller:
        target.faults.add(queue="io", opcode=2, count=1, discard=True)
        async with asyncio.timeout(30):
            await controller.namespaces[1].read(0)  # sent again over the next association
        assert controller.resets == 1


# -- refusals


async def test_no_listener_is_an_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ControllerGone, match=r"[Rr]efused"):
        await nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}")


async def test_a_wrong_subsystem_nqn_is_refused(target):
    with pytest.raises(ControllerError, match="SUBNQN"):
        await nvme_async.open(f"tcp:127.0.0.1:{target.port}/{NQN}-other")


async def test_a_discovery_controller_has_no_io_queues(target):
    with pytest.raises(ControllerError, match="discovery controller"):
        await nvme_async.open(f"tcp:127.0.0.1:{target.port}/nqn.2014-08.org.nvmexpress.discovery")


async def test_a_silent_target_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(nvme_async.errors.ControllerTimeout, match=r"no connection within 0\.2 s"):
            await nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}", connect_timeout=0.2)


@pytest.mark.parametrize(
    "uri",
    [
        "tcp:",
        "tcp:host",
        "tcp:host/",
        "tcp:host/nqn",
        "tcp:host:0/nqn.x",
        "tcp:host:99999/nqn.x",
        "tcp:ho st/nqn.x",
        "tcp:::1/nqn.x",
        "tcp:[::1/nqn.x",
        "tcp:[nonsense]:4420/nqn.x",
        "tcp:host/nqn." + "x" * 300,
    ],
)
async def test_invalid_uris_are_refused(uri):
    with pytest.raises(ConfigurationError):
        await nvme_async.open(uri)


async def test_keepalive_is_refused_by_name(target):
    with pytest.raises(ConfigurationError, match="keepalive"):
        await nvme_async.open(target.uri, keepalive=True, pool_pages=4096)


async def test_closing_ends_waiting_calls(target):
    controller = await nvme_async.open(target.uri, drain_timeout=0.1)
    target.faults.add(queue="io", opcode=2, discard=True)
    read = asyncio.ensure_future(_await(controller.namespaces[1].read(0)))
    await asyncio.sleep(0.05)
    await controller.close()
    with pytest.raises(QueueShutdown):
        await read


async def _await(awaitable):
    return await awaitable


async def test_keep_alive_keeps_an_idle_association(target):
    async with nvme_async.open(target.uri, keep_alive_tmo=1.5) as controller:
        begin = time.monotonic()
        await eventually(lambda: controller.inspect()["association"]["keep_alives"] >= 3)
        await asyncio.sleep(begin + 1.8 - time.monotonic())
        assert controller.resets == 0
        await controller.namespaces[1].read(0)


async def test_without_keep_alive_the_target_ends_the_association_and_the_host_makes_another(target):
    async with nvme_async.open(target.uri, keep_alive_tmo=0.5) as controller:
        controller.transport.keep_alive.stop()
        await eventually(lambda: target.tcp_stats()["keep_alive_timeouts"])
        async with asyncio.timeout(30):
            await controller.namespaces[1].read(0)
        assert controller.resets >= 1


async def test_queue_commands_of_memory_based_controllers_are_refused(target):
    async with nvme_async.open(target.uri) as controller:
        for opcode in (AdminOpcode.CREATE_IO_SQ, AdminOpcode.DELETE_IO_SQ, AdminOpcode.DOORBELL_BUFFER_CONFIG):
            sqe = bytes([opcode]) + bytes(63)
            with pytest.raises(CommandError) as caught:
                await controller.transport.queues.admin.hot.request(sqe, driver=True)
            assert caught.value.sc == 0x01


async def test_the_effects_log_lists_no_commands_of_memory_based_controllers_over_tcp(target):
    memory_based = {
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.DOORBELL_BUFFER_CONFIG,
    }
    effects = commands.get_log_page(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096)
    listed = []
    for uri in (target.uri, "emulated:size=1MiB"):
        async with nvme_async.open(uri) as controller:
            page = await controller.admin(effects)
            listed.append(CommandsSupported.decode(page.data).admin_opcodes)
    over_tcp, over_pcie = listed
    assert AdminOpcode.IDENTIFY in over_tcp
    assert over_pcie - over_tcp == memory_based


# -- the target against a host that violates the protocol ------------------------------------------


def icreq(**fields: int) -> bytes:
    values = {"pfv": 0, "hpda": 0, "dgst": 0, "maxr2t": 0, **fields}
    return struct.pack("<BBBBIHBBI", 0, 0, 128, 0, 128, *values.values()).ljust(128, b"\0")


@pytest.mark.parametrize(
    ("data", "fes"),
    [
        (icreq(pfv=7), 6),
        (icreq(hpda=40), 1),
        (struct.pack("<BBBBI", 4, 0, 72, 0, 72) + bytes(64), 2),  # a command before ICReq
        (struct.pack("<BBBBI", 0x77, 0, 24, 0, 24) + bytes(16), 1),
        (struct.pack("<BBBBI", 0, 0, 100, 0, 128) + bytes(120), 1),
        (icreq() + icreq(), 2),
        (icreq() + struct.pack("<BBBBI", 4, 0, 72, 72, 72 + 9000) + b"\x01\x40" + bytes(62), 5),  # beyond IOCCSZ
        (icreq() + struct.pack("<BBBBIHHIII", 6, 4, 24, 24, 24 + 64, 0, 0, 0, 64, 0) + bytes(64), 1),  # no such TTAG
    ],
)
async def test_the_target_ends_protocol_errors_with_a_term_request(target, data, fes):
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(data)
    answer = b""
    async with asyncio.timeout(30):
        while part := await reader.read(4096):
            answer += part
    answer = answer[128:] if answer[0] == 1 else answer
    kind, _, hlen, _, plen = struct.unpack_from("<BBBBI", answer)
    assert (kind, hlen, plen) == (3, 24, len(answer))
    assert struct.unpack_from("<H", answer, 8)[0] == fes
    writer.close()
    async with nvme_async.open(target.uri) as controller:  # it continues to serve
        await controller.namespaces[1].read(0)


async def test_a_connection_that_never_connects_is_dropped():
    with EmulatedController("size=1MiB", patience=0.6) as emulator:
        port = emulator.serve_tcp(("127.0.0.1", 0))[0][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(icreq())
        async with asyncio.timeout(30):
            assert len(await reader.readexactly(128)) == 128
            assert await reader.read(1) == b""
        writer.close()
        await eventually(lambda: not emulator.tcp_stats()["open_connections"])


async def test_ipv6():
    with EmulatedController("size=1MiB") as emulator:
        try:
            host, port = emulator.serve_tcp(("::1", 0), config=TcpConfig(nqn=NQN))[0]
        except ConfigurationError:
            pytest.skip("no IPv6 here")
        async with nvme_async.open(f"tcp:[{host}]:{port}/{NQN}") as controller:
            await controller.namespaces[1].read(0)
