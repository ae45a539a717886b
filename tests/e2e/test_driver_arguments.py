"""Bad arguments are refused by name, and no command reaches the controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from driving import FAST, faults

import nvme_async
from nvme_async import Controller, Namespace
from nvme_async.errors import NvmeError, OutOfDmaMemory
from nvme_async.spec import commands
from nvme_async.spec.opcodes import AdminOpcode

Call = Callable[[Controller, Namespace], Any]


def sent(controller: Controller) -> list[dict[int, int]]:
    """Commands by opcode, without the driver's event request, which may arrive shortly after
    open().
    """
    counters = faults(controller).counters()
    return [
        counters["io"],
        {opcode: n for opcode, n in counters["admin"].items() if opcode != AdminOpcode.ASYNC_EVENT_REQUEST},
    ]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c, n: n.write_many([0, 1], None), TypeError, "data is None"),
        (lambda c, n: n.write_many([0, 1], bytes(4096)), ValueError, "need 8192 bytes, the buffer has 4096"),
        (lambda c, n: n.read_many([0, 1], bytearray(1)), ValueError, "need 8192 bytes, the buffer has 1"),
        (lambda c, n: n.read_many(5), ValueError, "lbas must be integers"),
        (lambda c, n: n.read_many([0], blocks=-3), ValueError, "blocks is -3"),
        (lambda c, n: n.read_many([0], depth=-1), ValueError, "depth is -1"),
        (lambda c, n: n.submit(5), TypeError, "command is 5"),
        (lambda c, n: n.submit("ab"), TypeError, "command is 'ab'"),
        (lambda c, n: n.submit([commands.flush(1), 7]), TypeError, "a sequence of them"),
        (lambda c, n: n.submit(commands.flush(2)), ValueError, "for namespace 2, this is 1"),
        (lambda c, n: n.submit(commands.write(1, 0, 1)), ValueError, "no buffer was given"),
        (lambda c, n: n.write(0, None), TypeError, "NoneType"),
        (lambda c, n: n.write(0, bytes(100)), ValueError, "100 bytes"),
        (lambda c, n: n.readinto(0, bytes(4096)), ValueError, "read-only"),
        (lambda c, n: n.pread(4096, -5), ValueError, "offset -5 is negative"),
        (lambda c, n: n.deallocate([(0, 0)]), ValueError, "one or more existing blocks"),
        (lambda c, n: c.admin(5), TypeError, "command is a int"),
    ],
)
async def test_bad_arguments_are_refused(call: Call, error: type[Exception], text: str) -> None:
    async with nvme_async.open("emulated:size=16MiB,block=4096", **FAST) as controller:
        namespace = controller.namespaces[1]
        before = sent(controller)
        with pytest.raises(error, match=text):
            await call(controller, namespace)
        assert sent(controller) == before
        await namespace.read(0, 1)


async def test_too_much_memory_and_a_bad_size_are_different_errors() -> None:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        with pytest.raises(OutOfDmaMemory, match=f"{1 << 50} bytes: the limit of a pool is {1 << 46}"):
            controller.alloc(1 << 50)
        with pytest.raises(ValueError, match="nbytes is 0"):
            controller.alloc(0)
        controller.alloc(4096).free()


async def test_the_error_for_a_missing_namespace_lists_the_existing_ones() -> None:
    async with nvme_async.open("emulated:size=16MiB,namespaces=3") as controller:
        assert list(controller.namespaces) == [1, 2, 3]
        with pytest.raises(KeyError, match=r"^namespace 4 is not active on emulated:.*; active: 1, 2, 3$") as caught:
            controller.namespaces[4]
        assert isinstance(caught.value, NvmeError)
        assert controller.namespaces.get(4) is None
