"""A namespace served over NBD: data, errors, limits, hostile clients, resets, formats, kills."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from driving import eventually, faults, within
from nbd_client import FLUSH, FUA, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES, NbdClient, NbdError, Refused

import nvme_async
import nvme_async.management
from nvme_async.errors import ConfigurationError
from nvme_async.export import NbdServer

KIB = 1024


@asynccontextmanager
async def served(
    tmp_path: Path, uri: str = "emulated:size=16MiB,block=512", **options: object
) -> AsyncIterator[tuple[nvme_async.Controller, NbdServer, str]]:
    path = str(tmp_path / "disk.nbd")
    async with nvme_async.open(uri) as controller:
        async with NbdServer(controller.namespaces[1], path, **options) as server:  # type: ignore[arg-type]
            yield controller, server, path
        assert not os.path.exists(path)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
async def test_data_written_by_a_client_is_on_the_namespace_and_read_back(
    tmp_path: Path, structured: bool, threads: int
) -> None:
    async with served(tmp_path, threads=threads, depth=8) as (controller, server, path):
        client = await NbdClient.connect(path, structured=structured)
        assert client.nbytes == 16 << 20
        assert client.sizes == (512, 4096, 8 * 128 * KIB)
        image = random.Random(1).randbytes(1 << 20)
        await client.write(512, image)
        await client.send(FLUSH)
        assert await controller.namespaces[1].read(1, 2048) == image
        assert await client.read(512, 1 << 20) == image
        assert await client.read(1024, 512) == image[512:1024]
        await client.close()
        again = await NbdClient.connect(path)
        assert await again.read(0, 1024) == bytes(512) + image[:512]
        await again.close()
        assert server.inspect()["served"] == 2


async def test_a_command_that_fails_for_now_is_sent_again_after_its_delay(tmp_path: Path) -> None:
    uri = "emulated:size=16MiB,block=512,retry_delays=100ms"
    async with served(tmp_path, uri) as (controller, _, path):
        client = await NbdClient.connect(path)
        clock = asyncio.get_running_loop().time
        for opcode, operation in ((1, lambda: client.write(0, b"x" * 512)), (2, lambda: client.read(0, 512))):
            rule = faults(controller).add(queue="io", opcode=opcode, count=2, fail=0x21, crd=1)
            before = clock()
            result = await operation()
            assert clock() - before >= 0.198
            assert rule.hits == 3
        assert result == b"x" * 512
        rule = faults(controller).add(queue="io", opcode=2, fail=0x21, crd=1)
        with pytest.raises(NbdError):
            await client.read(0, 512)
        assert rule.hits == 4  # retries=3
        await client.close()


async def test_concurrent_requests_of_several_clients(tmp_path: Path) -> None:
    async with served(tmp_path, threads=2, depth=4) as (_controller, _, path):
        clients = [await NbdClient.connect(path, structured=number % 2 == 0) for number in range(3)]
        blocks = [bytes([number]) * (1 + number % 5) * 4096 for number in range(96)]
        place = [number * 32 * KIB for number in range(96)]
        await asyncio.gather(*(clients[n % 3].write(place[n], blocks[n], FUA * (n % 2)) for n in range(96)))
        read = await asyncio.gather(*(clients[(n + 1) % 3].read(place[n], len(blocks[n])) for n in range(96)))
        assert read == blocks
        for client in clients:
            await client.close()


async def test_zeroes_trim_and_flush_reach_the_controller(tmp_path: Path) -> None:
    async with served(tmp_path) as (_controller, server, path):
        client = await NbdClient.connect(path)
        await client.write(0, b"\xff" * 64 * KIB)
        await client.send(WRITE_ZEROES, 4096, 8192, flags=NO_HOLE | FUA)
        await client.send(TRIM, 16384, 4096, flags=FUA)
        expected = b"\xff" * 4096 + bytes(8192) + b"\xff" * 4096 + bytes(4096) + b"\xff" * (64 - 20) * KIB
        assert await client.read(0, 64 * KIB) == expected
        [counters] = server.inspect()["connections"]
        assert (counters["trims"], counters["zeroes"], counters["flushes"]) == (1, 1, 1)
        await client.close()


@pytest.mark.parametrize("structured", [True, False])
async def test_requests_out_of_range_or_unaligned_are_refused_and_the_next_is_served(
    tmp_path: Path, structured: bool
) -> None:
    async with served(tmp_path, depth=4) as (_, _, path):
        client = await NbdClient.connect(path, structured=structured)
        end, most = client.nbytes, client.sizes[2]
        for number, arguments in [
            (22, (READ, end - 512, 1024)),
            (22, (READ, 2**64 - 512, 512)),
            (22, (READ, 1, 512)),
            (22, (READ, 0, 100)),
            (22, (READ, 0, 0)),
            (22, (READ, 0, most + 512)),
            (28, (WRITE, end - 512, 1024, bytes(1024))),
            (22, (WRITE, 0, most + 512, bytes(most + 512))),
            (22, (WRITE, 1, 512, bytes(512))),
            (22, (TRIM, end, 512)),
            (22, (77, 0, 512)),
        ]:
            with pytest.raises(NbdError) as caught:
                await client.send(*arguments)
            assert caught.value.number == number, arguments
        with pytest.raises(NbdError):
            await client.send(READ, 0, 512, flags=1 << 9)
        assert await client.read(0, 512) == bytes(512)
        await client.close()


async def test_errors_of_the_controller_reach_the_client_and_nothing_stale_does(tmp_path: Path) -> None:
    async with served(tmp_path, depth=4) as (controller, _, path):
        client = await NbdClient.connect(path)
        await client.write(0, b"secret" * 2048 + bytes(4096))
        faults(controller).add(queue="io", opcode=0x02, fail=0x281)
        with pytest.raises(NbdError) as caught:
            await client.read(0, 16384)
        assert caught.value.number == 5
        faults(controller).clear()
        assert await client.read(1 << 20, 16384) == bytes(16384)
        await client.close()


async def test_a_read_only_export_refuses_writes(tmp_path: Path) -> None:
    async with served(tmp_path, read_only=True) as (_, _, path):
        client = await NbdClient.connect(path)
        assert client.flags & 2
        for request in [(WRITE, 0, 512, bytes(512)), (TRIM, 0, 512), (WRITE_ZEROES, 0, 512)]:
            with pytest.raises(NbdError) as caught:
                await client.send(*request)
            assert caught.value.number == 1
        assert await client.read(0, 512) == bytes(512)
        await client.close()


async def test_clients_that_break_the_protocol_or_vanish_take_nothing_with_them(tmp_path: Path) -> None:
    async with served(tmp_path, depth=4) as (_controller, server, path):
        rng = random.Random(7)
        for kind in range(24):
            client = await NbdClient.connect(path)
            if kind % 4 == 0:
                client.writer.write(rng.randbytes(28))
            elif kind % 4 == 1:  # in the middle of its data
                client.writer.write(
                    struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 8192) + bytes(rng.randrange(8192))
                )
            elif kind % 4 == 2:  # with requests out
                for _ in range(6):
                    client.send(READ, 0, 512 * KIB)
            await client.close(politely=False)
        for _ in range(12):  # and in the handshake
            _reader, writer = await asyncio.open_unix_connection(path)
            writer.write(rng.randbytes(40))
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        client = await NbdClient.connect(path)
        await client.write(0, b"x" * 4096)
        assert await client.read(0, 4096) == b"x" * 4096
        await client.close()
        await eventually(lambda: not server.inspect()["connections"])
        with pytest.raises(Refused):
            await NbdClient.connect(path, name="another")


async def test_requests_survive_a_reset_of_the_controller(tmp_path: Path) -> None:
    async with served(tmp_path) as (controller, _, path):
        client = await NbdClient.connect(path)
        rule = faults(controller).add(queue="io", opcode=0x01, count=2, drop=True)
        writes = [client.send(WRITE, number * 4096, 4096, bytes([number]) * 4096) for number in range(8)]
        await client.writer.drain()
        await eventually(lambda: rule.hits >= 2)
        await controller.reset()
        await within(20, asyncio.gather(*writes))
        for number in range(8):
            assert await client.read(number * 4096, 4096) == bytes([number]) * 4096
        await client.close()


async def test_a_format_ends_the_connections_and_the_next_server_has_the_new_size(tmp_path: Path) -> None:
    async with served(tmp_path, "emulated:size=16MiB,block=512") as (controller, _, path):
        client = await NbdClient.connect(path)
        await client.write(0, b"a" * 4096)
        await nvme_async.management.format_namespace(controller, 1, block_size=4096)
        with pytest.raises(ConnectionError):
            await within(10, client.send(READ, 0, 512))
        await client.close(politely=False)


async def test_a_client_that_reads_no_answers_costs_no_processor_time(tmp_path: Path) -> None:
    async with served(tmp_path, depth=4) as (_, server, path):
        client = await NbdClient.connect(path)
        assert client._receiver is not None
        client._receiver.cancel()
        for _ in range(64):
            client.send(READ, 0, 512 * KIB)
        await asyncio.sleep(0.2)
        [before] = server.inspect()["connections"]
        await asyncio.sleep(0.3)
        [after] = server.inspect()["connections"]
        assert after["times_blocked"] - before["times_blocked"] < 50
        client.writer.transport.abort()


async def test_bad_arguments_and_a_socket_in_use_are_named(tmp_path: Path) -> None:
    async with served(tmp_path) as (controller, _, path):
        namespace = controller.namespaces[1]
        with pytest.raises(ConfigurationError, match="depth is 0, must be 1 to 1024"):
            NbdServer(namespace, path, depth=0)
        with pytest.raises(ConfigurationError, match="threads is 65"):
            NbdServer(namespace, path, threads=65)
        with pytest.raises(ConfigurationError, match="is in use: another process listens on it"):
            await NbdServer(namespace, path).start()
        assert os.path.exists(path)


async def test_a_sleeping_controller_gets_each_request(tmp_path: Path) -> None:
    """Without its kick each would wait for the watchdog, which takes more than a second."""
    async with served(tmp_path) as (_, _, path):
        client = await NbdClient.connect(path)
        async with asyncio.timeout(15):
            for number in range(20):
                await client.write(number * 4096, bytes([number]) * 4096)
                await asyncio.sleep(0.002)
        await client.close()


async def test_a_socket_stays_open_until_its_thread_has_let_go_of_it(tmp_path: Path) -> None:
    """Otherwise the thread would receive from, and send to, another file with the same number."""
    async with served(tmp_path, threads=1) as (_, server, path):
        client = await NbdClient.connect(path)
        await client.write(0, b"x" * 4096)
        [worker] = server._workers
        busy = threading.Event()
        worker.loop.call_soon_threadsafe(busy.wait, 60)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0.1)
        assert client._receiver is not None
        assert not client._receiver.done()
        busy.set()
        await closing
        await within(5, client._receiver)
        await client.close(politely=False)
