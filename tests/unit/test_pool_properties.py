"""The pool against a slow model, and against SIGKILL."""

import os
import random
import signal
import time
from typing import NoReturn

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from nvme_async.errors import OutOfDmaMemory
from nvme_async.native._dma import DmaBuffer, Pool

PAGE = 4096
PAGES = 40
IOVA = 7 * PAGE  # so that alignment of the IOVA and of the offset differ


class Model:
    """One entry for each page: None, or the allocation's number."""

    def __init__(self, first_iova: int) -> None:
        self.pages: list[int | None] = [None] * PAGES
        self.first_iova = first_iova

    def place(self, count: int, align: int) -> int | None:
        for page in range(PAGES - count + 1):
            if (self.first_iova + page * PAGE) % align == 0 and not any(
                owner is not None for owner in self.pages[page : page + count]
            ):
                return page
        return None

    def set(self, page: int, count: int, number: int | None) -> None:
        self.pages[page : page + count] = [number] * count

    def longest_run(self) -> int:
        longest = run = 0
        for owner in self.pages:
            run = run + 1 if owner is None else 0
            longest = max(longest, run)
        return longest


class Allocation:
    def __init__(self, number: int, page: int, nbytes: int, persistent: bool, buffer: DmaBuffer | None) -> None:
        self.number, self.page, self.nbytes, self.persistent = number, page, nbytes, persistent
        self.buffer = buffer
        self.offset = 0 if buffer is None else buffer.offset
        self.views: list[memoryview] = []
        self.freed = False

    @property
    def count(self) -> int:
        return -(-self.nbytes // PAGE)

    @property
    def live(self) -> bool:
        return not self.freed or bool(self.views)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(Pool.size_for(PAGES * PAGE), iova=IOVA, hugepages="never")
        self.model = Model(IOVA + self.pool.data_offset)
        self.allocations: list[Allocation] = []
        self.number = 0

    allocated = Bundle("allocated")

    @rule(
        target=allocated,
        nbytes=st.integers(1, 12 * PAGE) | st.integers(1, 3).map(lambda pages: pages * PAGE),
        align=st.sampled_from([1, PAGE, 2 * PAGE, 8 * PAGE]),
        persistent=st.booleans(),
    )
    def alloc(self, nbytes: int, align: int, persistent: bool) -> Allocation | None:
        count = -(-nbytes // PAGE)
        expected = self.model.place(count, max(align, PAGE))
        self.number += 1
        owner = f"n{self.number}"
        if expected is None:
            with pytest.raises(OutOfDmaMemory):
                self.pool.alloc(nbytes, owner=owner) if align == 1 else self.pool.alloc(
                    nbytes, owner=owner, align=align
                )
            return None
        buffer = self.pool.alloc(nbytes, owner=owner, tag=self.number, align=align, persistent=persistent)
        assert buffer.offset == self.pool.data_offset + expected * PAGE
        assert not any(buffer)
        buffer[:] = bytes([self.number & 0xFF]) * nbytes
        self.model.set(expected, count, self.number)
        allocation = Allocation(self.number, expected, nbytes, persistent, buffer)
        self.allocations.append(allocation)
        return allocation

    def settle(self, allocation: Allocation) -> None:
        if not allocation.live and allocation in self.allocations:
            self.allocations.remove(allocation)
            self.model.set(allocation.page, allocation.count, None)

    @rule(allocation=allocated)
    def export(self, allocation: Allocation | None) -> None:
        if allocation is None or allocation.buffer is None:
            return
        if allocation.freed:
            with pytest.raises(ValueError, match="freed"):
                memoryview(allocation.buffer)
        else:
            allocation.views.append(memoryview(allocation.buffer))

    @rule(allocation=allocated)
    def release_view(self, allocation: Allocation | None) -> None:
        if allocation is not None and allocation.views:
            allocation.views.pop().release()
            self.settle(allocation)

    @rule(allocation=allocated)
    def free(self, allocation: Allocation | None) -> None:
        if allocation is not None and allocation.buffer is not None:
            allocation.buffer.free()
            allocation.freed = True
            self.settle(allocation)

    @rule(allocation=consumes(allocated))
    def drop(self, allocation: Allocation | None) -> None:
        if allocation is None or allocation.views or allocation.buffer is None:
            return
        allocation.buffer = None
        if not allocation.persistent:
            allocation.freed = True
        self.settle(allocation)

    @precondition(lambda self: any(a.buffer is None for a in self.allocations))
    @rule(target=allocated, data=st.data())
    def claim(self, data: st.DataObject) -> Allocation:
        allocation = data.draw(st.sampled_from([a for a in self.allocations if a.buffer is None]))
        allocation.buffer = self.pool.claim(allocation.offset)
        assert allocation.buffer.tag == allocation.number
        return allocation

    @precondition(lambda self: not any(a.views for a in self.allocations))
    @rule(target=allocated, reclaim=st.booleans())
    def successor(self, reclaim: bool) -> Allocation | None:
        """A new Pool on the memory of the old one. Closing frees nothing, even if objects are
        dropped later.
        """
        successor = Pool.attach(self.pool.fd, expect_iova=IOVA)
        self.pool.close()
        self.pool = successor
        for allocation in list(self.allocations):
            if reclaim and allocation.number % 2:
                self.pool.reclaim(allocation.offset)
                self.allocations.remove(allocation)
                self.model.set(allocation.page, allocation.count, None)
                allocation.freed, allocation.buffer = True, None
            else:
                allocation.buffer = self.pool.claim(allocation.offset)
        return None

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.pool.free_bytes == self.model.pages.count(None) * PAGE
        assert self.pool.inspect()["longest_free_run"] == self.model.longest_run() * PAGE
        live = sorted(self.allocations, key=lambda a: a.page)
        assert [(s.offset, s.nbytes, s.owner, s.tag, s.persistent) for s in self.pool.slots()] == [
            (self.pool.data_offset + a.page * PAGE, a.nbytes, f"n{a.number}", a.number, a.persistent) for a in live
        ]

    @invariant()
    def contents_stay(self) -> None:
        for allocation in self.allocations:
            where = self.pool.data_offset + allocation.page * PAGE
            content = os.pread(self.pool.fd, allocation.nbytes, where)
            assert content == bytes([allocation.number & 0xFF]) * allocation.nbytes

    @invariant()
    def another_reader_agrees(self) -> None:
        with Pool.attach(self.pool.fd) as reader:
            assert reader.free_bytes == self.pool.free_bytes
            assert [slot[:4] for slot in reader.slots()] == [slot[:4] for slot in self.pool.slots()]

    def teardown(self) -> None:
        for allocation in self.allocations:
            for view in allocation.views:
                view.release()
        self.pool.close()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase


def churn(fd: int, seed: int) -> NoReturn:
    """The child's work until it is killed. Every page of an allocation carries its tag."""
    pool = Pool.attach(fd)
    chance = random.Random(seed)
    held = [pool.claim(slot.offset) for slot in pool.slots()]
    tag = 0
    while True:
        if held and chance.random() < 0.5:
            held.pop(chance.randrange(len(held))).free()
        else:
            tag += 1
            try:
                buffer = pool.alloc(chance.randint(1, 5 * PAGE), owner=f"child {seed}", tag=tag)
            except OutOfDmaMemory:
                held.pop(chance.randrange(len(held))).free()
            else:
                held.append(buffer)


def test_killed_at_any_instant_leaves_a_valid_table() -> None:
    """Attach validates bounds, states and overlaps: it must accept the table after any death."""
    chance = random.Random(4711)
    with Pool(Pool.size_for(64 * PAGE), iova=0x100000, hugepages="never") as pool:
        for seed in range(60):
            ready_read, ready_write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.write(ready_write, b"x")
                    churn(pool.fd, seed)
                finally:
                    os._exit(1)
            os.read(ready_read, 1)
            os.close(ready_read)
            os.close(ready_write)
            time.sleep(chance.uniform(0, 0.012))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it was alive until then"
            with Pool.attach(pool.fd) as successor:
                slots = successor.slots()
                pages = sum(-(-slot.nbytes // PAGE) for slot in slots)
                assert successor.free_bytes == (64 - pages) * PAGE
                assert all(slot.owner.startswith("child ") and slot.tag for slot in slots)
                for slot in slots[:: 1 + seed % 3]:
                    successor.reclaim(slot.offset)


def test_a_forked_child_cannot_touch_the_table() -> None:
    with Pool(Pool.size_for(8 * PAGE), iova=0, hugepages="never") as pool:
        buffer = pool.alloc(PAGE, owner="parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with pytest.raises(ValueError, match="forked"):
                    pool.alloc(PAGE, owner="child")
                with pytest.raises(ValueError, match="forked"):
                    memoryview(buffer)
                del buffer
                pool.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert [slot.owner for slot in pool.slots()] == ["parent"]
        buffer[:2] = b"ok"
