"""Namespaces with metadata and protection information: every way to transfer them, and errors name
the right block.
"""

from __future__ import annotations

import asyncio

import pytest
from driving import FAST, LoopThread, eventually, faults, pattern, within

import nvme_async
from nvme_async.driver.protection import Check, Protect
from nvme_async.emulator import FOREVER
from nvme_async.errors import (
    ApplicationTagError,
    CompareFailure,
    ConfigurationError,
    GuardError,
    LbaOutOfRange,
    PiError,
    ReferenceTagError,
)
from nvme_async.native import _pi
from nvme_async.spec import commands

FORMATS = "formats=512/4096/512+8/4096+8/4096+16/4096+64/4096+16g32/4096+16g64/4096+16g64s16"


def address(**options: object) -> str:
    return ",".join([f"emulated:size=16MiB,{FORMATS}", *(f"{key}={value}" for key, value in options.items())])


@pytest.mark.parametrize("extended", ["off", "on"])
@pytest.mark.parametrize(("block", "metadata"), [(512, 8), (4096, 8), (4096, 64)])
async def test_metadata_is_read_back(block: int, metadata: int, extended: str) -> None:
    async with nvme_async.open(address(block=block, metadata=metadata, extended=extended), **FAST) as controller:
        ns = controller.namespaces[1]
        # Two blocks of 4 KiB use another form of PRPs than three.
        for lba, blocks in [(0, 1), (20, 2), (7, 3), (ns.blocks - 1, 1), (100, 200_000 // block)]:
            data, meta = pattern(blocks * block, lba), pattern(blocks * metadata, lba + 1)
            await ns.write(lba, data, metadata=meta)
            back = bytearray(len(meta))
            assert await ns.read(lba, blocks, metadata=back) == data
            assert back == meta
            into = bytearray(len(data))
            assert await ns.readinto(lba, into) == len(data)
            assert into == data
            await ns.compare(lba, data, metadata=meta)
            with pytest.raises(CompareFailure):
                await ns.compare(lba, data, metadata=bytes(len(meta)))
        await ns.write_zeroes(7, 3)
        assert await ns.read(7, 3, metadata=back[: 3 * metadata]) == bytes(3 * block)
        with pytest.raises(LbaOutOfRange):
            await ns.write(ns.blocks, bytes(block))
        with pytest.raises(ValueError, match="metadata has 5 bytes"):
            await ns.read(0, 1, metadata=bytearray(5))
        with pytest.raises(ConfigurationError, match="metadata per block"):
            await ns.read_many([1])


@pytest.mark.parametrize("extended", ["off", "on"])
@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize(("metadata", "guard"), [(8, 16), (64, 16), (16, 32), (16, 64)])
async def test_protected_by_controller_or_host(metadata: int, guard: int, kind: int, extended: str) -> None:
    options = address(block=4096, metadata=metadata, guard=guard, pi=kind, extended=extended)
    async with nvme_async.open(options, **FAST) as controller:
        ns = controller.namespaces[1]
        data = pattern(4096 * 40)
        await ns.write(10, data)
        assert await ns.read(10, 40) == data
        host = Protect(by="host", ref_tag=77 if kind == 2 else None, app_tag=0x4321, checks=Check(7))
        await ns.write(100, data, protect=host)
        assert await ns.read(100, 40, protect=host) == data
        await ns.verify(10, 40)
        await ns.write_zeroes(10, 4)
        assert await ns.read(10, 4) == bytes(4096 * 4)
        with pytest.raises(ApplicationTagError) as caught:
            await ns.read(100, 40, protect=Protect(by="host", ref_tag=host.ref_tag, app_tag=1, checks=Check(7)))
        assert caught.value.block == 100


@pytest.mark.parametrize("extended", ["off", "on"])
@pytest.mark.parametrize(
    ("offset", "kind", "error"),
    [(0, "guard", GuardError), (2, "app", ApplicationTagError), (7, "ref", ReferenceTagError)],
)
async def test_errors_found_by_the_controller_name_the_block(
    offset: int, kind: str, error: type[PiError], extended: str
) -> None:
    async with nvme_async.open(address(block=512, metadata=8, pi=1, extended=extended), **FAST) as controller:
        ns = controller.namespaces[1]
        data, meta = bytearray(pattern(512 * 8)), bytearray(64)
        _pi.PiFormat(512, 8, 1).generate(data, meta, ref_tag=50, app_tag=5)
        meta[5 * 8 + offset] ^= 1
        everything = Protect(by="none", app_tag=5, checks=Check(7))
        with pytest.raises(error) as caught:
            await ns.write(50, data, metadata=meta, protect=everything)
        assert (caught.value.block, caught.value.found) == (55, None)
        assert "block 55" in str(caught.value)
        await ns.write(50, data, metadata=meta, protect=Protect(by="none", checks=Check(0)))
        with pytest.raises(error) as caught:
            await ns.read(50, 8, protect=Protect(app_tag=5, checks=Check(7)))
        assert caught.value.block == 55
        # The controller doesn't check; this process does.
        found = bytearray(64)
        assert await ns.read(50, 8, metadata=found, protect=Protect(by="none", checks=Check(0))) == data
        assert found == meta


async def test_errors_found_by_the_host_name_the_block() -> None:
    """The data are damaged between controller and host."""
    async with nvme_async.open(address(block=512, metadata=8, pi=1), **FAST) as controller:
        ns = controller.namespaces[1]
        good = Protect(by="host")
        data = pattern(512 * 8)
        await ns.write(50, data, protect=good)
        meta = bytearray(64)
        await ns.read(50, 8, metadata=meta, protect=Protect(by="none"))
        meta[3 * 8 + 7] ^= 1
        await ns.write(50, data, metadata=meta, protect=Protect(by="none", checks=Check(0)))
        # by="host" can't be combined with checks=0 for the controller, whose check comes first.
        with pytest.raises(ReferenceTagError) as caught:
            await ns.read(50, 8, protect=good)
        assert caught.value.block == 53


async def test_storage_tags_and_the_extended_formats() -> None:
    async with nvme_async.open(address(), **FAST) as controller:
        ns = controller.namespaces[1]
        await controller.admin(commands.format_nvm(1, 8, pi=2))
        ns = controller.namespaces[1]
        tagged = Protect(by="host", storage_tag=0xBEEF, ref_tag=3, checks=Check(15))
        await ns.write(0, pattern(8192), protect=tagged)
        assert await ns.read(0, 2, protect=tagged) == pattern(8192)
        with pytest.raises(PiError) as caught:
            await ns.read(0, 2, protect=Protect(storage_tag=1, ref_tag=3, checks=Check(15)))
        assert caught.value.tag == "storage tag"


async def test_invalid_requests_are_refused() -> None:
    async with nvme_async.open(address(block=4096, metadata=64, pi=1), **FAST) as controller:
        ns = controller.namespaces[1]
        with pytest.raises(ValueError, match="by is 'nobody'"):
            await ns.read(0, 1, protect=Protect(by="nobody"))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ref_tag"):
            await ns.read(0, 1, protect=Protect(ref_tag=1 << 32))
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        ns = controller.namespaces[1]
        with pytest.raises(ValueError, match="has no metadata"):
            await ns.read(0, 1, metadata=bytearray(8))
        with pytest.raises(ValueError, match="no protection information"):
            await ns.write(0, bytes(4096), protect=Protect())


async def test_submit_works_on_any_namespace() -> None:
    async with nvme_async.open(address(block=512, metadata=8, extended="on"), **FAST) as controller:
        ns = controller.namespaces[1]
        whole = pattern(520 * 4)
        await ns.submit(commands.write(1, 3, 4), whole)
        completion = await ns.submit(commands.read(1, 3, 4))
        assert completion.data == whole


async def test_metadata_io_on_other_loops_and_cancellation() -> None:
    """A cancelled read leaves its memory with the controller until it completes."""
    async with nvme_async.open(address(block=4096, metadata=64), **FAST) as controller:
        ns = controller.namespaces[1]
        with LoopThread() as other:

            async def there() -> bytes:
                await ns.write(3, pattern(4096), metadata=pattern(64))
                return await ns.read(3)

            assert await within(5, other.submit(there())) == pattern(4096)
        rule = faults(controller).add(opcode=0x02, queue="io", delay=FOREVER)
        reading = asyncio.ensure_future(ns.read(3))
        await asyncio.to_thread(rule.wait, 1)
        (held,) = faults(controller).outstanding()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        rule.remove()
        taken = [controller.alloc(8192) for _ in range(50)]
        for buffer in taken:
            for area in held.ranges:
                assert not (area.iova < buffer.iova + buffer.nbytes and buffer.iova < area.iova + area.nbytes)
        faults(controller).release()
        await eventually(lambda: not faults(controller).outstanding())
        for buffer in taken:
            assert not any(bytes(buffer))
            buffer.free()
