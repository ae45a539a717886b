"""Commands without data, which MDTS doesn't limit: the controller's own limits for them, and whole
namespaces at once.
"""

from __future__ import annotations

import struct
from contextlib import closing

import pytest
from driving import FAST, faults, pattern

import nvme_async
from nvme_async.emulator import EmulatedController, EmulatorConfig
from nvme_async.errors import ControllerError
from nvme_async.spec.identify import IdentifyControllerNvm
from nvme_async.spec.opcodes import Cns, NvmOpcode

IDENTIFY = 0x06
VS = 0x08


async def test_verify_of_a_whole_namespace_that_exceeds_the_controllers_limit():
    async with nvme_async.open("emulated:size=64MiB,block=512", **FAST) as controller:
        namespace = controller.namespaces[1]
        assert controller.identify_nvm is not None
        assert namespace.limits.verify < namespace.blocks
        await namespace.verify(0, namespace.blocks)
        counts = faults(controller).counters()["io"]
        assert counts[NvmOpcode.VERIFY] == -(-namespace.blocks // namespace.limits.verify)


def served(options: str) -> EmulatedController:
    return EmulatedController(EmulatorConfig.parse(options))


async def test_every_limit_of_the_controller_is_respected(tmp_path):
    with closing(served("size=16MiB,block=4096")) as emulator:
        limits = IdentifyControllerNvm(vsl=4, wzsl=3, wusl=2, dmrl=2, dmrsl=5, dmsl=8)
        emulator.faults.add(queue="admin", opcode=IDENTIFY, cdw10=int(Cns.CSI_CONTROLLER), payload=limits.encode()[:16])
        emulator.listen(str(tmp_path / "socket"))
        async with nvme_async.open(f"vfio-user:{tmp_path}/socket", **FAST) as controller:
            namespace = controller.namespaces[1]
            assert controller.identify_nvm == limits
            before = dict(emulator.faults.counters()["io"])
            await namespace.write(0, pattern(64 * 4096))
            await namespace.verify(0, 64)  # 16 at once
            await namespace.write_uncorrectable(1000, 10)  # 4 at once
            await namespace.write_zeroes(8, 20)  # 8 at once
            await namespace.deallocate([(32, 12), (50, 3)])  # (5) | (5, 2→) …
            after = emulator.faults.counters()["io"]
            sent = {opcode: after[opcode] - before.get(opcode, 0) for opcode in after}
            assert sent[NvmOpcode.VERIFY] == 4
            assert sent[NvmOpcode.WRITE_UNCORRECTABLE] == 3
            assert sent[NvmOpcode.WRITE_ZEROES] == 3
            assert sent[NvmOpcode.DATASET_MANAGEMENT] == 3
            expected = bytearray(pattern(64 * 4096))
            for first, count in ((8, 20), (32, 12), (50, 3)):
                expected[first * 4096 : (first + count) * 4096] = bytes(count * 4096)
            assert await namespace.read(0, 64) == bytes(expected)


async def test_a_copy_over_the_limits_is_split_into_several_commands():
    async with nvme_async.open("emulated:size=128MiB,block=512", **FAST) as controller:
        namespace = controller.namespaces[1]
        identify = namespace.identify
        blocks = identify.mcl + 100
        data = pattern(blocks * 512)
        await namespace.write(0, data)
        await namespace.copy([(0, blocks)], 100_000)
        assert await namespace.read(100_000, blocks) == data
        assert faults(controller).counters()["io"][NvmOpcode.COPY] == 2


async def test_without_the_limits_page_there_are_no_limits(tmp_path):
    with closing(served("size=16MiB")) as emulator:
        refused = emulator.faults.add(
            queue="admin", opcode=IDENTIFY, cdw10=int(Cns.CSI_CONTROLLER), fail=0x002, dnr=True
        )
        emulator.listen(str(tmp_path / "socket"))
        async with nvme_async.open(f"vfio-user:{tmp_path}/socket", **FAST) as controller:
            assert refused.hits == 1
            assert controller.identify_nvm is None
            namespace = controller.namespaces[1]
            assert namespace.limits.verify == 65536
            # As in Linux, because firmware of that age is known to apply MDTS to Write Zeroes.
            assert namespace.limits.write_zeroes == namespace.max_blocks == 32
            data = pattern(100 * 4096)
            await namespace.write(0, data)
            await namespace.write_zeroes(1, 98)
            assert emulator.faults.counters()["io"][NvmOpcode.WRITE_ZEROES] == 4
            assert await namespace.read(0, 100) == data[:4096] + bytes(98 * 4096) + data[99 * 4096 :]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (512, 0x77, "submission queue entries of 128 bytes or more"),
        (513, 0x55, "completion queue entries of 32 bytes or more"),
        (111, 2, "a discovery controller"),
        (111, 3, "an administrative controller"),
    ],
)
async def test_a_controller_without_io_queues_is_refused_with_its_type(tmp_path, at, value, message):
    with closing(served("size=16MiB")) as emulator:
        async with nvme_async.open(open_at(emulator, tmp_path), **FAST) as controller:
            page = bytearray(controller.identify.encode())
        page[at] = value
        emulator.faults.add(queue="admin", opcode=IDENTIFY, cdw10=int(Cns.CONTROLLER), payload=bytes(page))
        with pytest.raises(ControllerError, match=message):
            async with nvme_async.open(f"vfio-user:{tmp_path}/socket", **FAST):
                pass


def open_at(emulator, folder):
    emulator.listen(str(folder / "socket"))
    return f"vfio-user:{folder}/socket"


@pytest.mark.parametrize(
    ("listed", "asked"),
    [
        (range(1, 1025), 1),  # the same full page for every request
        ([*range(1, 1024), 0xFFFFFFFF], 1),  # no id can be higher
        (range(1024, 0, -1), 1),  # not ascending
    ],
)
async def test_an_endless_list_of_namespaces_ends_the_scan(tmp_path, listed, asked):
    with closing(served("size=16MiB")) as emulator:
        rule = emulator.faults.add(
            queue="admin", opcode=IDENTIFY, cdw10=int(Cns.ACTIVE_NAMESPACES), payload=struct.pack("<1024I", *listed)
        )
        async with nvme_async.open(open_at(emulator, tmp_path), **FAST) as controller:
            assert list(controller.namespaces) == [1]
            assert rule.hits == asked


async def test_an_invalid_namespace_does_not_affect_the_others(tmp_path, caplog):
    with closing(served("size=16MiB,namespaces=3")) as emulator:
        emulator.faults.add(queue="admin", opcode=IDENTIFY, cdw10=int(Cns.NAMESPACE), nsid=2, fail=0x002)
        # Number 3 is formatted with an LBA format that doesn't exist: LBADS 0.
        emulator.faults.add(
            queue="admin",
            opcode=IDENTIFY,
            cdw10=int(Cns.NAMESPACE),
            nsid=3,
            payload=struct.pack("<QQQBBB", 1, 1, 1, 0, 7, 5),
        )
        emulator.listen(str(tmp_path / "socket"))
        async with nvme_async.open(f"vfio-user:{tmp_path}/socket", **FAST) as controller:
            assert list(controller.namespaces) == [1]
            await controller.namespaces[1].write(0, bytes(4096))
        text = caplog.text
        assert "namespace 2 is omitted: Identify" in text
        assert "namespace 3 is omitted: its blocks have 0 bytes" in text
