"""A zoned namespace of QEMU: a log with concurrent appends, and fio's zonemode=zbd."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Callable

import nvme_async
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.errors import ZoneBoundaryError, ZoneFull
from nvme_async.fio.main import main

WRITERS, RECORDS = 16, 60


async def test_a_log_of_sixteen_writers_loses_nothing(address: Callable[[str], str]) -> None:
    """Each record says who wrote it and as what; it is read from the address that came back."""
    async with nvme_async.open(f"pci:{address('zoned')}") as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        await zoned.reset(None)
        size = controller.namespaces[1].block_size
        written: dict[int, bytes] = {}
        current = 0

        async def writer(number: int) -> None:
            nonlocal current
            numbers = random.Random(number)
            for record in range(RECORDS):
                body = number.to_bytes(4, "little") + record.to_bytes(4, "little") + numbers.randbytes(8)
                data = body * (size * numbers.randint(1, 64) // 16)
                while True:
                    zone = current
                    try:
                        lba = await zoned.append(zone, data)
                        break
                    except (ZoneBoundaryError, ZoneFull):
                        current = max(current, zone + zoned.zone_size)
                assert lba not in written
                written[lba] = data

        async with asyncio.timeout(120):
            await asyncio.gather(*(writer(number) for number in range(WRITERS)))
        assert len(written) == WRITERS * RECORDS
        end = 0
        for lba, data in sorted(written.items()):
            assert lba >= end
            end = lba + len(data) // size
            assert await zoned.read(lba, len(data) // size) == data
        assert current > 0  # several zones were filled


def test_fio_writes_at_write_pointers(address: Callable[[str], str]) -> None:
    uri = f"--filename=pci:{address('zoned')}"
    for rw in ("write", "randwrite"):
        out = io.StringIO()
        job = ["--output-format=json", "--name=j", "--zonemode=zbd", uri, f"--rw={rw}", "--bs=16k", "--iodepth=8"]
        assert main([*job, "--io_size=8m", "--verify=crc32c", "--verify_fatal=1"], stdout=out) == 0
        (result,) = json.loads(out.getvalue())["jobs"]
        assert result["error"] == 0
        assert result["write"]["total_ios"] >= 512
        assert result["read"]["total_ios"] >= 512  # verified
