"""The table of autonomous power state transitions: as Linux builds it."""

from __future__ import annotations

import pytest

from nvme_async.driver.power import transitions_for
from nvme_async.spec.identify import PowerState


def states(*latencies: tuple[int, int] | None) -> list[PowerState]:
    """None: an operational state; else entry and exit latency of a non-operational one."""
    return [
        PowerState(mp=900) if pair is None else PowerState(mp=10, flags=3, enlat=pair[0], exlat=pair[1])
        for pair in latencies
    ]


@pytest.mark.parametrize(
    ("latencies", "budget", "expected"),
    [
        # Two states of different bands: the first after 100 ms, the second after 2 s.
        ((None, None, (1000, 2000), (10000, 45000)), 100_000, [(2, 100), (2, 100), (3, 2000), (0, 0)]),
        # The budget is the exit latency.
        ((None, (1000, 2000), (10000, 45000)), 44_999, [(1, 100), (0, 0), (0, 0)]),
        ((None, (1000, 2000), (10000, 45000)), 1999, [(0, 0), (0, 0), (0, 0)]),
        # Of two states of one band the deeper one is used.
        ((None, (10, 10), (20, 20)), 100_000, [(2, 100), (2, 100), (0, 0)]),
        # A deep state that is faster than a shallow one of the second band hides it.
        ((None, (20000, 20000), (20, 20)), 100_000, [(2, 100), (2, 100), (0, 0)]),
        # Too slow in all, though its exit alone would be fast enough.
        ((None, (90_000, 20_000)), 100_000, [(0, 0), (0, 0)]),
        ((None,), 100_000, [(0, 0)]),
        # The limits of the bands.
        ((None, (5000, 10000)), 100_000, [(1, 100), (0, 0)]),
        ((None, (5001, 10000)), 100_000, [(1, 2000), (0, 0)]),
    ],
)
def test_transitions(latencies, budget, expected) -> None:
    table = transitions_for(states(*latencies), budget)
    assert [(entry.itps, entry.itpt) for entry in table] == expected
