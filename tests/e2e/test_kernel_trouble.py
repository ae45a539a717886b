"""kernel: and file: when the kernel doesn't answer, refuses io_uring, or the process forks; and the
faces above.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from driving import eventually, may_lock_much

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.driver.kernel import engine, queues
from nvme_async.errors import ConfigurationError, NvmeError, QueueShutdown
from nvme_async.native import _kernel

SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def needs_ring() -> None:
    if reason := engine.why_no_ring():
        pytest.skip(reason)
    if not may_lock_much():
        pytest.skip("rings of this user's other processes may take what memory may be locked")


async def _await(awaitable):
    return await awaitable


def becomes_a_pipe(controller) -> tuple[int, int]:
    """The controller's file is a pipe from here on: reads end when something is fed to it."""
    reads, feed = os.pipe()
    node = controller.transport.nodes[1]
    fcntl.fcntl(node.fd, fcntl.F_SETFL, 0)
    os.dup2(reads, node.fd)
    os.close(reads)
    return node.fd, feed


async def test_close_with_io_in_flight_ends_the_waits_and_keeps_the_memory_until_then(disk):
    needs_ring()
    controller = await nvme_async.open(f"file:{disk}", direct="never", drain_timeout=0.05)
    namespace = controller.namespaces[1]
    _, feed = becomes_a_pipe(controller)
    buffer = bytearray(namespace.block_size)
    task = asyncio.ensure_future(_await(namespace.readinto(0, buffer)))
    await asyncio.sleep(0.01)
    with pytest.raises(BufferError):
        buffer.clear()
    began = time.monotonic()
    await controller.close()
    assert time.monotonic() - began < 20
    with pytest.raises(QueueShutdown):
        await task
    buffer.clear()
    os.close(feed)


async def test_a_command_that_does_not_end_times_out_and_the_controller_goes_on(disk):
    needs_ring()
    async with nvme_async.open(
        f"file:{disk}", direct="never", command_timeout=0.08, abort_timeout=0.02, retries=0
    ) as controller:
        namespace = controller.namespaces[1]
        node = controller.transport.nodes[1]
        file = os.dup(node.fd)
        _, feed = becomes_a_pipe(controller)
        with pytest.raises(NvmeError):
            await namespace.read(0, 1)
        os.dup2(file, node.fd)
        os.close(file)
        os.close(feed)
        assert controller.resets == 1
        assert await namespace.read(0, 1) == bytes(namespace.block_size)


class Faulting:
    """A page of memory that the kernel can't touch until let_go(): userfaultfd."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        self.memory = mmap.mmap(-1, 4096)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(self.fd, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, 0, 0)))  # UFFDIO_API
        fcntl.ioctl(self.fd, 0xC020AA00, bytearray(struct.pack("<QQQQ", self.address, 4096, 1, 0)))  # UFFDIO_REGISTER

    def let_go(self) -> None:
        fcntl.ioctl(self.fd, 0xC020AA04, bytearray(struct.pack("<QQQQ", self.address, 4096, 0, 0)))  # UFFDIO_ZEROPAGE

    def close(self) -> None:
        os.close(self.fd)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the system call is x86-64's")
async def test_what_the_kernel_does_not_give_back_is_never_used_again(disk, monkeypatch, caplog):
    """A thread that is stuck in the kernel can't be cancelled: close() says so after its limit, and
    the page stays.
    """
    monkeypatch.setattr("nvme_async.driver.kernel.transport.QUIET_SECONDS", 0.05)
    page = Faulting()
    controller = await nvme_async.open(f"file:{disk}", engine="threads", direct="never", drain_timeout=0.05)
    namespace = controller.namespaces[1]
    task = asyncio.ensure_future(_await(namespace.readinto(0, memoryview(page.memory)[: namespace.block_size])))
    await asyncio.sleep(0.02)
    await controller.close()
    with pytest.raises(QueueShutdown):
        await task
    assert "never reused" in caplog.text
    with pytest.raises(BufferError):
        page.memory.close()  # the command still has it
    left = queues._left[-1][0]
    page.let_go()
    await eventually(lambda: not left.link.in_flight())
    page.close()


@pytest.mark.parametrize(
    ("code", "sysctl", "words"),
    [
        (errno.EPERM, "2", "io_uring_disabled is 2"),
        (errno.EPERM, "1", "io_uring_group"),
        (errno.EPERM, "0", "seccomp"),
        (errno.ENOSYS, "0", "older than 5.5"),
        (errno.ENOMEM, "0", "ulimit -l"),
    ],
)
async def test_where_io_uring_is_refused_threads_do_the_work_and_the_reason_is_said(
    disk, tmp_path, monkeypatch, caplog, code, sysctl, words
):
    (tmp_path / "sysctl").write_text(sysctl)
    monkeypatch.setattr(engine, "_SYSCTL", tmp_path / "sysctl")
    monkeypatch.setattr(engine._kernel, "try_ring", lambda **_: code, raising=False)
    async with nvme_async.open(f"file:{disk}") as controller:
        assert words in controller.inspect()["engine"]
        assert words in caplog.text
        await controller.namespaces[1].write(0, b"t" * controller.namespaces[1].block_size)
    assert disk.read_bytes()[:1] == b"t"
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(")):
        await nvme_async.open(f"file:{disk}", engine="io_uring")


async def test_a_forked_child_is_refused_and_the_parent_goes_on(disk):
    async with nvme_async.open(f"file:{disk}") as controller:
        namespace = controller.namespaces[1]
        await namespace.write_zeroes(0, 1)  # there is a thread now
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            answer = b"no error"
            try:
                namespace.read(0, 1).send(None)
            except NvmeError as error:
                answer = str(error).encode()
            except BaseException as error:
                answer = repr(error).encode()
            os.write(writes, answer)
            os._exit(0)
        os.close(writes)  # so that a child which crashes ends the wait
        answer = await asyncio.to_thread(os.read, reads, 1000)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        os.close(reads)
        assert status == 0
        assert b"belongs to process" in answer
        assert await namespace.read(0, 1) == bytes(namespace.block_size)


async def test_the_manager_drives_it(disk):
    async with nvme_async.Manager() as manager:
        namespace = await manager.namespace(f"file:{disk}", 1)
        await namespace.write(3, b"m" * namespace.block_size)
        assert await namespace.read(3, 1) == b"m" * namespace.block_size
    assert disk.read_bytes()[3 * namespace.block_size :][:1] == b"m"


def run(*arguments: str) -> bytes:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout_bytes


def test_the_command_line_and_the_benchmark(disk, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(b"c" * 4096)
    run("write", f"file:{disk}", "-s", "2", "-d", str(data))
    run("read", f"file:{disk}", "-s", "2", "-d", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"c" * 4096
    assert json.loads(run("id-ns", f"file:{disk}", "-n", "1", "-o", "json"))["nsze"] == SIZE // 4096
    verified = "--name=x --rw=randwrite --verify=crc32c --bs=4k --size=256k --iodepth=8 --output-format=json"
    report = json.loads(run("bench", f"--filename=file:{disk}", *verified.split()))
    assert report["jobs"][0]["write"]["total_ios"] == 64
    assert report["jobs"][0]["error"] == 0


async def test_a_loop_without_room_for_a_ring_has_threads(disk, monkeypatch):
    class Full:
        """A link whose ring can't be had."""

        def __init__(self, link):
            self._link = link

        def use_ring(self, *arguments, **options):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        def close(self):
            self._link.close()

    made = []

    def link(**options):
        made.append(_kernel.Link(**options))
        return Full(made[-1]) if len(made) == 1 else made[-1]

    needs_ring()
    native = SimpleNamespace(**{name: getattr(_kernel, name) for name in dir(_kernel) if not name.startswith("__")})
    native.Link = link
    monkeypatch.setattr(queues, "_kernel", native)
    async with nvme_async.open(f"file:{disk}") as controller:
        assert await controller.namespaces[1].read(0, 1) == bytes(controller.namespaces[1].block_size)
        state = controller.inspect()
        assert "ulimit -l" in state["degraded"]["io_uring"]
        assert state["io_queues"][0]["kernel"]["engine"] == "threads"
