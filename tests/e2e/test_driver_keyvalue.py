"""Key value namespaces: stored values are retrieved, listed and deleted."""

from __future__ import annotations

import random

import pytest
from driving import FAST, pattern

import nvme_async
from nvme_async.driver.keyvalue import KeyValueNamespace
from nvme_async.errors import CapacityExceeded, ConfigurationError, KeyDoesNotExist, KeyExists
from nvme_async.spec import commands, kv
from nvme_async.spec.opcodes import LogPage

ADDRESS = "emulated:size=1MiB,key_value=on"


async def test_values_of_all_sizes_come_back() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        values = await KeyValueNamespace.of(controller, 1)
        assert list(controller.namespaces) == []
        stored = {}
        for size in (0, 1, 3, 4095, 4096, 4097, 100_000):
            key = f"key-{size}".encode()
            stored[key] = pattern(size, size)
            await values.store(key, stored[key])
        for key, value in stored.items():
            assert await values.retrieve(key) == value
        assert [key async for key in values.list_keys()] == sorted(stored)
        assert [key async for key in values.list_keys(b"key-4")] == sorted(key for key in stored if key >= b"key-4")
        await values.store(b"key-1", b"another, longer")
        assert await values.retrieve(b"key-1") == b"another, longer"
        await values.delete(b"key-1")
        assert not await values.exists(b"key-1")
        assert await values.exists(b"key-3")


async def test_a_scan_leaves_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Identify Namespace doesn't exist for them, so it isn't sent."""
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        await controller.rescan()
        assert list(controller.namespaces) == []
        page = await controller.admin(commands.get_log_page(LogPage.ERROR_INFORMATION, 64))
        assert page.data is not None
        assert int.from_bytes(page.data[:8], "little") == 0  # the first entry's number: no error
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_missing_and_existing_keys() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        values = await KeyValueNamespace.of(controller, 1)
        for call in (values.retrieve, values.delete):
            with pytest.raises(KeyDoesNotExist, match=r"(Retrieve|Delete) on namespace 1: KV Key Does Not Exist"):
                await call(b"nothing")
        with pytest.raises(KeyDoesNotExist):
            await values.store(b"nothing", b"x", must_exist=True)
        await values.store(b"k", b"x", must_not_exist=True)
        with pytest.raises(KeyExists, match="Store on namespace 1: Key Exists"):
            await values.store(b"k", b"y", must_not_exist=True)
        assert await values.retrieve(b"k") == b"x"
        with pytest.raises(ValueError, match="1 to 16"):
            await values.store(b"", b"x")
        with pytest.raises(ValueError, match="the limit is 16"):
            await values.store(b"x" * 17, b"x")
        with pytest.raises(ValueError, match="at most"):
            await values.store(b"x", bytes(values.max_value + 1))
        for number in range(9):
            try:
                await values.store(f"big{number}".encode(), bytes(values.max_value))
            except CapacityExceeded:
                break
        else:
            raise AssertionError("1 MiB held 9 values of 128 KiB")


async def test_a_thousand_keys_against_a_dictionary() -> None:
    rng = random.Random(5)
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        values = await KeyValueNamespace.of(controller, 1)
        model: dict[bytes, bytes] = {}
        for _ in range(1500):
            key = rng.randbytes(rng.choice((1, 2, 16)))
            if rng.random() < 0.7:
                model[key] = rng.randbytes(rng.randrange(60))
                await values.store(key, model[key])
            elif key in model:
                del model[key]
                await values.delete(key)
        assert {key async for key in values.list_keys()} == set(model)
        for key, value in model.items():
            assert await values.retrieve(key) == value


async def test_blocks_have_no_keys() -> None:
    async with nvme_async.open("emulated:size=1MiB", **FAST) as controller:
        with pytest.raises(ConfigurationError, match="not a key-value namespace"):
            await KeyValueNamespace.of(controller, 1)


def test_golden_bytes() -> None:
    command = kv.store(3, b"0123456789abcdef", 5, must_exist=True).pack()
    assert command[0] == 0x01
    assert command[8:16] == b"01234567"
    assert command[40:48] == b"\x05\0\0\0\x10\1\0\0"
    assert command[56:64] == b"89abcdef"
    assert kv.decode_keys(b"\2\0\0\0\1\0a\0\3\0abc\0\0\0") == (b"a", b"abc")
    with pytest.raises(ValueError, match="extends beyond"):
        kv.decode_keys(b"\2\0\0\0\1\0a\0\5\0ab")
