"""Reservations as methods: register, acquire, report, preempt, release."""

from __future__ import annotations

import pytest
from driving import FAST

import nvme_async
from nvme_async import Reservations
from nvme_async.errors import ReservationConflict
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature, ReservationType

WE, EA = ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS


async def become(controller: nvme_async.Controller, host: int) -> None:
    """A host identifier is set once between resets."""
    await controller.reset()
    await controller.admin(commands.set_features(Feature.HOST_IDENTIFIER, 1), host.to_bytes(16, "little"))


async def test_two_hosts_share_reservations_on_one_namespace() -> None:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        ns = controller.namespaces[1]
        reservations = Reservations(ns)
        await become(controller, 1)
        with pytest.raises(ReservationConflict):
            await reservations.acquire(0xA, WE)
        await reservations.register(0xA)
        await reservations.acquire(0xA, WE)
        report = await reservations.report()
        assert (report.rtype, report.regctl) == (WE, 1)
        assert report.holder is not None
        assert report.holder.rkey == 0xA

        await become(controller, 2)
        await ns.read(0)
        with pytest.raises(ReservationConflict):
            await ns.write(0, bytes(4096))
        await reservations.register(0xB)
        with pytest.raises(ReservationConflict):
            await reservations.acquire(0xB, EA)
        await reservations.preempt(0xB, 0xA, EA)
        report = await reservations.report()
        assert (report.rtype, report.regctl) == (EA, 1)
        await ns.write(0, bytes(4096))
        await reservations.register(0xBB, replace=0xB)
        await reservations.release(0xBB, EA)
        assert (await reservations.report()).rtype == ReservationType.NONE
        await reservations.acquire(0xBB, WE)
        await reservations.unregister(0xBB)
        assert (await reservations.report()).regctl == 0
        await reservations.register(0xC)
        await reservations.clear(0xC)
        assert (await reservations.report()).regctl == 0
