"""examples/kvstore: the log and the store on it, against a model, across restarts, compaction and
torn writes.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nvme_async

EXAMPLE = Path(__file__).parents[2] / "examples" / "kvstore"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules, which import each other like modules of a script."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import store

    yield store
    for name in ("store", "log", "wire"):
        sys.modules.pop(name, None)


async def test_a_store_returns_what_was_put_into_it(example: Any) -> None:
    numbers = random.Random(7)
    keys = [f"key {at}".encode() for at in range(40)]
    model: dict[bytes, bytes] = {}
    async with nvme_async.open("emulated:size=1MiB,block=512") as controller:
        namespace = controller.namespaces[1]
        generations = set()
        for _ in range(12):
            store = await example.Store.open(namespace)
            assert {key: await store.get(key) for key in keys} == {key: model.get(key) for key in keys}

            async def change(store: Any = store) -> None:
                for _ in range(25):
                    key = numbers.choice(keys)
                    if numbers.random() < 0.2:
                        model.pop(key, None)
                        await store.delete(key)
                    else:
                        value = model[key] = numbers.randbytes(numbers.choice((0, 1, 100, 600, 9000)))
                        await store.put(key, value)

            await asyncio.gather(*(change() for _ in range(4)))
            await store.settle()
            assert len(store) == len(model)
            generations.add(store.inspect()["generation"])
        assert len(generations) > 2  # it was compacted


async def test_a_full_store_raises_and_keeps_its_content(example: Any) -> None:
    async with nvme_async.open("emulated:size=1MiB,block=512") as controller:
        store = await example.Store.open(controller.namespaces[1])
        wanted = {str(at).encode(): bytes([at % 251]) * 5000 for at in range(200)}
        results = [await asyncio.gather(store.put(key, value), return_exceptions=True) for key, value in wanted.items()]
        kept = {key: value for (key, value), [result] in zip(wanted.items(), results, strict=True) if result is None}
        assert len(kept) > 80
        assert {type(result) for [result] in results} == {type(None), example.StoreFull}
        store = await example.Store.open(controller.namespaces[1])
        assert {key: await store.get(key) for key in kept} == kept
        await store.delete(b"0")
        await store.put(b"0", b"small")


async def test_a_torn_write_at_the_end_is_ignored(example: Any, tmp_path: Path) -> None:
    media = tmp_path / "media"
    options = f"medium=file,path={media},size=4MiB,block=512"
    async with nvme_async.open(f"emulated:{options}") as controller:
        store = await example.Store.open(controller.namespaces[1])
        await store.put(b"whole", b"w" * 3000)
        await store.put(b"torn", b"t" * 3000)
        place = store._index[b"torn"]
    with media.open("r+b") as file:
        file.seek(place.offset + 2000)
        file.write(bytes(512))
    async with nvme_async.open(f"emulated:{options}") as controller:
        store = await example.Store.open(controller.namespaces[1])
        assert await store.get(b"whole") == b"w" * 3000
        assert await store.get(b"torn") is None
        await store.put(b"next", b"n" * 10)
        store = await example.Store.open(controller.namespaces[1])
        assert (await store.get(b"whole"), await store.get(b"next")) == (b"w" * 3000, b"n" * 10)


async def test_a_foreign_namespace_is_not_changed(example: Any) -> None:
    async with nvme_async.open("emulated:size=4MiB") as controller:
        namespace = controller.namespaces[1]
        await namespace.write(0, b"somebody's file system".ljust(4096, b"\0"))
        with pytest.raises(ValueError, match="no log"):
            await example.Store.open(namespace)
        assert (await namespace.read(0)).startswith(b"somebody's file system")


async def test_concurrent_writes_share_a_commit(example: Any) -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        store = await example.Store.open(controller.namespaces[1])
        await asyncio.gather(*(store.put(str(at).encode(), bytes(100)) for at in range(500)))
        assert len(store) == 500
        assert store.commits < 20
        for key, value in ((b"", b""), (b"k" * 1025, b""), (b"k", bytes((1 << 20) + 1))):
            with pytest.raises(ValueError, match="a key has"):
                await store.put(key, value)
