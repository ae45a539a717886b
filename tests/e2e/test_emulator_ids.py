"""The emulated controller's PCI ids, which make it one of a class, and its faults' one switch."""

from __future__ import annotations

import struct

import pytest
from driving import FAST, faults

import nvme_async
from nvme_async.errors import CommandError, ConfigurationError
from nvme_async.spec.registers import PAGE


async def test_ids_are_those_of_the_function_and_of_identify() -> None:
    async with nvme_async.open("emulated:size=1MiB,ids=1B36:0010:1af4:1100", **FAST) as controller:
        ids = controller.device.ids
        assert (ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem) == (0x1B36, 0x0010, 0x1AF4, 0x1100)
        assert (controller.identify.vid, controller.identify.ssvid) == (0x1B36, 0x1AF4)
        assert set(controller.inspect()["quirks"]) == {"bogus-ids"}
        await controller.reset("a test")
        assert controller.device.ids == ids
    async with nvme_async.open("emulated:size=1MiB", **FAST) as controller:
        assert str(controller.device.ids).startswith("6e61:0001")


@pytest.mark.parametrize(("ids", "fused"), [("1414:b111", True), ("1414:b112", False)])
async def test_a_class_of_devices_is_fused_with_keepalive(ids: str, fused: bool) -> None:
    for keepalive in (True, False):
        address = f"emulated:size={PAGE << 8},ids={ids}"
        async with nvme_async.open(address, keepalive=keepalive, keeper="none") as controller:
            assert controller.fused is (fused and keepalive)


@pytest.mark.parametrize("ids", ["", "1414", "1414:b11", "1414:b111:1", "ffff:0001", "0000:0001", "x414:b111"])
async def test_invalid_ids_are_refused(ids: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ids=|vendor_id="):
        await nvme_async.open(f"emulated:size=1MiB,ids={ids}")


async def test_one_switch_for_all_faults() -> None:
    async with nvme_async.open("emulated:size=1MiB", **FAST) as controller:
        namespace, emulated = controller.namespaces[1], faults(controller)
        failing = emulated.add(queue="io", opcode=2, fail=0x281, dnr=True)
        forging = emulated.add(queue="io", opcode=1, payload=b"forged")
        emulated.switch(False)
        for lba in range(3):
            await namespace.write(lba, struct.pack("<Q", lba) * (namespace.block_size // 8))
            assert (await namespace.read(lba))[:8] == struct.pack("<Q", lba)
        late = emulated.add(queue="io", opcode=0, fail=0x281, dnr=True)
        await namespace.flush()
        assert (failing.hits, forging.hits, late.hits) == (0, 0, 0)
        emulated.switch(True)
        with pytest.raises(CommandError):
            await namespace.read(0)
        with pytest.raises(CommandError):
            await namespace.flush()
        assert (failing.hits, late.hits) == (1, 1)
