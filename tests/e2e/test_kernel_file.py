"""file: end to end, through io_uring and through threads: I/O against what the file has, sizes,
ends, refusals, release.
"""

from __future__ import annotations

import array
import asyncio
import os
import resource
import subprocess
import threading

import pytest
from driving import eventually, may_lock_much

import nvme_async
from nvme_async.driver.kernel.engine import why_no_ring
from nvme_async.errors import (
    CapacityExceeded,
    CompareFailure,
    ConfigurationError,
    ControllerGone,
    InvalidOpcode,
    LbaOutOfRange,
    NamespaceWriteProtected,
)
from nvme_async.spec import commands
from nvme_async.spec.commands import Command

SIZE = 2 << 20
ENGINES = ("io_uring", "threads")


@pytest.fixture(params=ENGINES)
def engine(request):
    """What `engine` is to be; "auto" where there may be fewer rings than a test has loops."""
    if request.param == "io_uring" and (reason := why_no_ring()):
        pytest.skip(reason)
    return request.param if request.param == "threads" or may_lock_much() else "auto"


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("direct", ["auto", "never"])
async def test_what_is_written_is_in_the_file_and_what_is_there_is_read(disk, engine, direct):
    async with nvme_async.open(f"file:{disk}", engine=engine, direct=direct) as controller:
        namespace = controller.namespaces[1]
        size = namespace.block_size
        assert namespace.nbytes == SIZE
        for blocks in (1, 2, 3, 31, 240):
            data = os.urandom(blocks * size)
            await namespace.write(blocks, data)
            assert disk.read_bytes()[blocks * size : 2 * blocks * size] == data
            assert await namespace.read(blocks, blocks) == data
            buffer = bytearray(blocks * size + 3)
            view = memoryview(buffer)[3:]  # no alignment that direct I/O would take
            assert await namespace.readinto(blocks, view) == len(view)
            assert view == data
            await namespace.compare(blocks, data)
        await namespace.write(0, b"\x05" * size, fua=True)
        await namespace.flush()
        with pytest.raises(CompareFailure):
            await namespace.compare(0, b"\x06" * size)
        await namespace.submit(commands.verify(1, 0, 8))
        await asyncio.gather(*(namespace.write(i * 2, bytes([i]) * 2 * size) for i in range(100)))
        for i, data in enumerate(await asyncio.gather(*(namespace.read(i * 2, 2) for i in range(100)))):
            assert data == bytes([i]) * 2 * size
        state = controller.inspect()
        assert engine == "auto" or state["engine"].startswith(engine)
        assert state["io_queues"][0]["kernel"]["in_kernel"] == 0


async def test_many_blocks_go_through_one_batch(disk, engine):
    async with nvme_async.open(f"file:{disk}", engine=engine, queue_entries=33) as controller:
        namespace = controller.namespaces[1]
        size = namespace.block_size
        data = os.urandom(170 * size)
        lbas = array.array("Q", [i * 3 for i in range(170)])
        await namespace.write_many(lbas, data)
        many = await namespace.read_many(lbas)
        assert bytes(many.data) == data
        enters = controller.inspect()["io_queues"][0]["kernel"]["enters"]
        assert enters < 340, "a system call for each command"


async def test_memory_of_the_librarys_is_registered_with_the_ring(disk, engine):
    async with nvme_async.open(f"file:{disk}", engine=engine, pool_bytes=1 << 20, hugepages="never") as controller:
        namespace = controller.namespaces[1]
        buffer = controller.alloc(8 * namespace.block_size)
        own = bytearray(4 * namespace.block_size + 4096)
        with controller.register(own) as registration:
            assert registration.zero_copy
            await asyncio.sleep(0)
            buffer[:] = data = os.urandom(buffer.nbytes)
            await namespace.write(5, buffer)
            await namespace.readinto(5, memoryview(own)[: 4 * namespace.block_size])
            assert own[: 4 * namespace.block_size] == data[: 4 * namespace.block_size]
            buffer[:] = bytes(buffer.nbytes)
            await namespace.readinto(5, buffer)
            assert bytes(buffer) == data
            with pytest.raises(ConfigurationError, match="already registered"):
                controller.register(own)
        own.clear()
        link = controller.inspect()["io_queues"][0]["kernel"]
        if link["registered"] == 2:  # not where memory may not be locked
            assert link["fixed_buffers"] >= 2
        await asyncio.gather(*(namespace.readinto(i, buffer) for i in range(20)))


async def test_zeroes_and_holes(disk, engine):
    disk.write_bytes(b"x" * SIZE)
    async with nvme_async.open(f"file:{disk}", engine=engine, block_size=4096) as controller:
        namespace = controller.namespaces[1]
        await namespace.write_zeroes(4, 8)
        await namespace.deallocate([(100, 16), (200, 1)])
        data = disk.read_bytes()
        assert data.count(b"x"[0]) == SIZE - 25 * 4096
        assert len(data) == SIZE
        assert await namespace.read(3, 10) == b"x" * 4096 + bytes(8 * 4096) + b"x" * 4096


async def test_nothing_is_read_or_written_beyond_the_namespace(disk, engine):
    async with nvme_async.open(f"file:{disk}", engine=engine) as controller:
        namespace = controller.namespaces[1]
        with pytest.raises(LbaOutOfRange):
            await namespace.read(namespace.blocks)
        last = namespace.blocks - 1
        command = Command(opcode=1, nsid=1, cdw10=last, cdw12=1, data_length=2 * namespace.block_size)
        with pytest.raises(LbaOutOfRange):
            await namespace.submit(command, bytes(2 * namespace.block_size))
        for opcode in (0x08, 0x0C):
            with pytest.raises(LbaOutOfRange):
                await namespace.submit(Command(opcode=opcode, nsid=1, cdw10=last, cdw12=1, data_length=0))
    assert disk.stat().st_size == SIZE


async def test_a_file_that_has_become_shorter_ends_where_it_ends(disk, engine):
    async with nvme_async.open(f"file:{disk}", engine=engine, block_size=4096) as controller:
        namespace = controller.namespaces[1]
        os.truncate(disk, 10 * 4096 + 100)
        buffer = bytearray(b"\xee" * 8 * 4096)
        for lba in (8, 20):
            with pytest.raises(LbaOutOfRange):
                await namespace.readinto(lba, buffer)
        assert len(await namespace.read(0, 8)) == 8 * 4096
        await controller.rescan()
        assert namespace.blocks == 10
        os.truncate(disk, SIZE)
        await controller.rescan()
        assert namespace.blocks == SIZE // 4096
        await namespace.write(20, b"y" * 4096)
        assert disk.read_bytes()[20 * 4096 : 21 * 4096] == b"y" * 4096


async def test_the_file_systems_refusals_are_named(disk, engine):
    with disk.open("r+b") as sparse:
        sparse.truncate(4096)
        sparse.truncate(SIZE)
    async with nvme_async.open(f"file:{disk}", engine=engine, block_size=4096) as controller:
        namespace = controller.namespaces[1]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
        try:
            with pytest.raises(LbaOutOfRange, match="File too large"):
                await namespace.write(100, b"z" * 4096)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await namespace.write(100, b"z" * 4096)
        assert await namespace.read(100, 1) == b"z" * 4096


@pytest.fixture
def small_file_system(tmp_path):
    """A tmpfs of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_full_file_system_is_capacity_exceeded(small_file_system, engine):
    path = small_file_system / "disk"
    path.touch()
    os.truncate(path, 1 << 20)
    async with nvme_async.open(f"file:{path}", engine=engine, block_size=4096) as controller:
        namespace = controller.namespaces[1]
        results = await asyncio.gather(*(namespace.write(i, b"f" * 4096) for i in range(128)), return_exceptions=True)
        failed = [lba for lba, result in enumerate(results) if result is not None]
        assert failed
        assert all(isinstance(results[lba], CapacityExceeded) for lba in failed)
        assert "No space left" in str(results[failed[0]])
        for lba in set(range(128)) - set(failed):
            assert await namespace.read(lba, 1) == b"f" * 4096


async def test_what_may_only_be_read_says_why_it_is_not_written(disk, engine):
    async with nvme_async.open(f"file:{disk}", engine=engine, read_only=True) as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0, 1)
        for attempt in (namespace.write(0, bytes(namespace.block_size)), namespace.write_zeroes(0, 1)):
            with pytest.raises(NamespaceWriteProtected, match="the option read_only is set"):
                await attempt
        assert controller.inspect()["nodes"][1]["read_only"] == "the option read_only is set"


async def test_a_file_is_no_controller(disk):
    async with nvme_async.open(f"file:{disk}") as controller:
        assert controller.identify.mn.strip() == "file disk"
        with pytest.raises(InvalidOpcode, match="not an NVMe controller"):
            await controller.admin(commands.get_log_page(2, 512))
        assert not controller.degraded.reasons
    with pytest.raises(ConfigurationError, match="the kernel keeps this drive"):
        await nvme_async.open(f"file:{disk}", keepalive=True)


async def test_the_same_file_is_the_same_disk_and_another_is_not(disk, tmp_path):
    identities = []
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    for path in (disk, disk, other):
        async with nvme_async.open(f"file:{path}") as controller:
            identities.append((controller.identity, controller.namespaces[1].identity))
    assert identities[0] == identities[1]
    assert identities[0][1] != identities[2][1]


@pytest.mark.parametrize("mode", ["interrupt", "poll", "adaptive"])
async def test_every_mode_and_several_loops(disk, engine, mode):
    async with nvme_async.open(f"file:{disk}", engine=engine, mode=mode) as controller:
        namespace = controller.namespaces[1]
        failures = []

        def work(base: int) -> None:
            async def run() -> None:
                for i in range(20):
                    data = bytes([base + i]) * namespace.block_size
                    await namespace.write(base * 50 + i, data)
                    assert await namespace.read(base * 50 + i, 1) == data

            try:
                asyncio.run(run())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(base,)) for base in range(3)]
        for thread in threads:
            thread.start()
        for i in range(20):
            await namespace.write(300 + i, bytes(namespace.block_size))
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.005)
        assert not failures


async def test_completions_can_be_polled_for_in_the_kernel(disk):
    if reason := why_no_ring(io_poll=True):
        pytest.skip(reason)
    if not may_lock_much():
        pytest.skip("two rings may be more memory than may be locked")
    with pytest.raises(ConfigurationError, match="io_poll needs direct I/O"):
        await nvme_async.open(f"file:{disk}", io_poll=True, direct="never")
    async with nvme_async.open(f"file:{disk}") as controller:
        if not controller.inspect()["nodes"][1]["direct"]:
            pytest.skip("no direct I/O in the folder for temporary files")
    async with nvme_async.open(f"file:{disk}", io_poll=True) as controller:
        namespace = controller.namespaces[1]
        await asyncio.gather(*(_write(namespace, i, bytes([i]) * namespace.block_size) for i in range(20)))
        await namespace.flush()
        await namespace.write_zeroes(30, 1)
        # Whether or not the device has queues for it, and for each of them.
        found = await asyncio.gather(*(_first_byte(namespace, i) for i in range(20)))
        assert found == list(range(20))


async def _first_byte(namespace, lba):
    return (await namespace.read(lba, 1))[0]


async def test_a_reset_loses_nothing(disk, engine):
    async with nvme_async.open(f"file:{disk}", engine=engine) as controller:
        namespace = controller.namespaces[1]
        size = namespace.block_size
        writes = [asyncio.ensure_future(_write(namespace, i, bytes([i]) * size)) for i in range(100)]
        await asyncio.sleep(0)
        await controller.reset()
        await asyncio.gather(*writes)
        for i in range(100):
            assert await namespace.read(i, 1) == bytes([i]) * size
        assert controller.resets == 1


async def _write(namespace, lba, data):
    await namespace.write(lba, data)


async def test_everything_is_released(disk, engine):
    async def use() -> None:
        async with nvme_async.open(f"file:{disk}", engine=engine) as controller:
            namespace = controller.namespaces[1]
            await asyncio.gather(*(namespace.read(i, 1) for i in range(50)))
            await namespace.write_zeroes(0, 4)

    await use()
    await asyncio.sleep(0.01)
    before, threads = descriptors(), len(os.listdir("/proc/self/task"))
    for _ in range(5):
        await use()
    await eventually(lambda: descriptors() <= before)
    # asyncio's own executor may grow.
    await eventually(lambda: len(os.listdir("/proc/self/task")) <= threads + 2)


@pytest.mark.parametrize(
    ("uri", "error", "text"),
    [
        ("file:relative", ConfigurationError, "not an absolute path"),
        ("file:/nonexistent/x", ControllerGone, "there is no /nonexistent/x"),
        ("file:/tmp", ConfigurationError, "neither a file nor a block device"),
        ("file:/dev/null", ConfigurationError, "neither a file nor a block device"),
        ("file:/tmp/x?colour=red", ConfigurationError, "unknown option 'colour'"),
        ("file:/tmp/x?block_size=1000", ConfigurationError, "block_size is 1000"),
        ("file:/tmp/x?read_only=maybe", ConfigurationError, "must be on or off"),
        ("kernel:/dev/sda", ConfigurationError, "not an NVMe node"),
        ("kernel:/dev/nvme99n1", ControllerGone, "there is no /dev/nvme99n1"),
        ("kernel:nvme99", ControllerGone, "there is no /dev/nvme99"),
    ],
)
async def test_bad_addresses_are_named(uri, error, text):
    with pytest.raises(error, match=text):
        await nvme_async.open(uri)


async def test_options_in_the_uri_and_files_too_small(tmp_path):
    path = tmp_path / "a?b"
    path.write_bytes(bytes(10_000))
    quoted = str(path).replace("?", "%3F")
    async with nvme_async.open(f"file:{quoted}?block_size=512&engine=threads&direct=never") as controller:
        assert (controller.namespaces[1].block_size, controller.namespaces[1].blocks) == (512, 19)
        assert "can't be accessed" in controller.inspect()["nodes"][1]["notes"][0]
        assert controller.inspect()["engine"].startswith("threads")
    path.write_bytes(bytes(100))
    with pytest.raises(ConfigurationError, match="less than one block"):
        await nvme_async.open(f"file:{quoted}")
    path.write_bytes(bytes(4096))
    with pytest.raises(ConfigurationError, match="io_poll needs io_uring"):
        await nvme_async.open(f"file:{quoted}", engine="threads", io_poll=True)
