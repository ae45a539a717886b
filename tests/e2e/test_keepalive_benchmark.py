"""The hand-over benchmark itself: it runs, loses nothing, and reports its measurements.
docs/performance.md has the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks/keepalive.py"


def test_it_hands_back_and_forth_and_reports_as_json() -> None:
    arguments = [
        "--rounds",
        "4",
        "--fresh",
        "2",
        "--queues",
        "2",
        "--iodepth",
        "8",
        "--deaths",
        "1",
        "--save-queues",
        "1,3",
        "--save-rounds",
        "2",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    handovers = report["handovers"]
    assert handovers["commands_lost"] == 0
    for name in ("pause", "answered", "all_queues", "standstill"):
        assert handovers[name]["rounds"] == 4
        assert 0 < handovers[name]["median_ms"] <= handovers[name]["p99_ms"]
    assert handovers["fresh"]["rounds"] == 2
    assert handovers["floor"]["rounds"] == 4 * 5
    assert handovers["pause_over_floor_median"] > 0
    assert all(0 < report["deaths"][name]["median_ms"] < 60_000 for name in ("sent", "first", "kernel"))
    assert [save["queue_pairs"] for save in report["saves"]] == [1, 3]
