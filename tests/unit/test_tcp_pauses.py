"""The pauses between attempts to reach a lost NVMe/TCP controller."""

from types import SimpleNamespace

import pytest

from nvme_async.driver.options import Options
from nvme_async.driver.tcp import transport
from nvme_async.driver.tcp.address import Address


@pytest.mark.parametrize(
    ("longest", "expected"), [(0.01, [0, 0.01, 0.01, 0.01]), (0.15, [0, 0.05, 0.1, 0.15]), (2, [0, 0.05, 0.1, 0.2])]
)
async def test_each_pause_is_twice_the_last_and_none_longer_than_reconnect_delay(monkeypatch, longest, expected):
    clock = 0.0
    slept = []

    async def sleep(seconds):
        nonlocal clock
        clock += seconds
        slept[-1] += seconds

    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(transport, "asyncio", SimpleNamespace(sleep=sleep))
    options = Options(reconnect_delay=longest)
    one = transport.TcpTransport(Address.parse("192.0.2.7/nqn.2024-01.io.example:x"), options)
    one.owner = SimpleNamespace(options=options, lifecycle=SimpleNamespace(closing=False))
    for _ in expected:
        slept.append(0.0)
        await one._pause()
    assert slept == pytest.approx(expected)
