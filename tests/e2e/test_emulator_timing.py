"""Latency and bandwidth of the emulated medium (ext/emulator/nvme_timing.h), as the driver sees
them. Lower bounds only: a busy machine adds any time.
"""

import asyncio
import time

import pytest

import nvme_async
from nvme_async.emulator.config import EmulatorConfig
from nvme_async.errors import ConfigurationError


@pytest.mark.parametrize(
    ("options", "reads", "least"),
    [
        ("latency=5ms", 1, 0.005),
        ("latency=5ms,channels=2", 8, 0.020),
        ("bandwidth=1MiB", 8, 8 * 4096 / 2**20),
        ("latency=4ms,jitter=1ms,channels=1", 3, 0.012),
    ],
)
@pytest.mark.parametrize("mode", ["adaptive", "interrupt", "poll", "hybrid"])
async def test_reads_take_the_time_of_the_medium(options, reads, least, mode):
    async with nvme_async.open(f"emulated:size=1MiB,{options}", mode=mode) as controller:
        namespace = controller.namespaces[1]
        await namespace.flush()  # the queue pair is there
        begin = time.monotonic()
        await asyncio.gather(*(namespace.read(lba) for lba in range(reads)))
        assert time.monotonic() - begin >= least


async def test_what_was_written_is_read_back_whatever_completes_first():
    async with nvme_async.open("emulated:size=1MiB,latency=200us,jitter=2ms,channels=8") as controller:
        namespace = controller.namespaces[1]
        await asyncio.gather(*(namespace.write(lba, bytes([lba]) * 4096) for lba in range(64)))
        assert await asyncio.gather(*(namespace.read(lba) for lba in range(64))) == [
            bytes([lba]) * 4096 for lba in range(64)
        ]


def test_times_have_units():
    extras = EmulatorConfig.parse("latency=80us,jitter=0.5ms,channels=64,bandwidth=3GiB").extras
    assert (extras.latency, extras.jitter) == pytest.approx((80e-6, 500e-6))
    assert (extras.channels, extras.bandwidth) == (64, 3 << 30)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("latency=80", "not a time"),
        ("latency=11s", "0 to 10 seconds"),
        ("jitter=-1us", "not a time"),
        ("channels=0", "1 to 256"),
        ("channels=257", "1 to 256"),
        ("bandwidth=fast", "not a size"),
    ],
)
def test_bad_values_name_the_limit(option, why):
    with pytest.raises(ConfigurationError, match=why) as caught:
        EmulatorConfig.parse(option)
    assert option.partition("=")[0] in str(caught.value)
