"""The report of benchmarks/keepalive.py: medians, and the aims beside them."""

from __future__ import annotations

import statistics
from typing import Any


def milliseconds(nanoseconds: list[float]) -> dict[str, float]:
    values = sorted(value / 1e6 for value in nanoseconds)
    rank = max(0, -(-len(values) * 99 // 100) - 1)
    return {
        "rounds": len(values),
        "median_ms": round(statistics.median(values), 3),
        "p99_ms": round(values[rank], 3),
        "min_ms": round(values[0], 3),
        "max_ms": round(values[-1], 3),
    }


def aims(report: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, its value, the most that it is to be): milliseconds, or a ratio."""
    handover = report["handovers"]
    pause = handover["pause"]["median_ms"]
    found = [
        ("pause, median, ms", pause, 0.5),
        ("pause, p99, ms", handover["pause"]["p99_ms"], 2.0),
        ("pause : floor, medians", handover["pause_over_floor_median"], 3.0),
        ("every queue had an answer : pause, medians", round(handover["all_queues"]["median_ms"] / pause, 2), 3.0),
    ]
    if "deaths" in report:
        found.append(("from kill -9 to the first new I/O, median, ms", report["deaths"]["sent"]["median_ms"], 10.0))
    most = {4: 0.15, 64: 1.0}
    found += [
        (f"save() with {save['queue_pairs']} I/O queue pairs, median, ms", save["median_ms"], most[save["queue_pairs"]])
        for save in report["saves"]
        if save["queue_pairs"] in most
    ]
    return found


def text(report: dict[str, Any]) -> str:
    def line(name: str, figures: dict[str, Any]) -> str:
        return (
            f"{name:<34} median {figures['median_ms']:9.3f} ms   p99 {figures['p99_ms']:9.3f} ms   "
            f"of {figures['rounds']}"
        )

    handover = report["handovers"]
    lines = [
        f"{report['uri']}: {handover['queues']} queues, {handover['iodepth']} reads out on each",
        line("pause at a hand-over", handover["pause"]),
    ]
    if "standstill" in handover:
        lines.append(line("  of it between the two drivers", handover["standstill"]))
    lines.append(line("floor: an exchange of two messages", handover["floor"]))
    lines.append(f"the pause is {handover['pause_over_floor_median']} times the floor, in the median")
    lines.append(line("  until the first is answered", handover["answered"]))
    lines.append(line("  until every queue had an answer", handover["all_queues"]))
    if "fresh" in handover:
        lines.append(line("pause at a fresh bring-up", handover["fresh"]))
        lines.append(f"a fresh bring-up takes {handover['fresh_over_handover_median']} times as long")
    lines.append(
        f"{handover['commands_adopted']} commands in flight were adopted, {handover['commands_lost']} of them failed"
    )
    if "deaths" in report:
        lines.append(line("from kill -9 to the first new I/O", report["deaths"]["sent"]))
        lines.append(line("  of it until the process had ended", report["deaths"]["kernel"]))
        lines.append(line("  of it from then on", report["deaths"]["after"]))
        lines.append(line("  until it was answered", report["deaths"]["first"]))
    lines += [line(f"save with {save['queue_pairs']} I/O queue pairs", save) for save in report["saves"]]
    for name, figures in (*handover.items(), *report.get("deaths", {}).items()):
        if name.startswith("phase "):
            lines.append(line(f"  {name}", figures))
    lines += [
        "a slowest hand-over, ms: " + ", ".join(f"{name} {value:.3f}" for name, value in one.items())
        for one in handover["slowest"]
    ]
    for what, value, most in aims(report):
        lines.append(f"{what:<50} {value:9.3f}   aim {most:5.2f}   {'met' if value <= most else 'missed'}")
    return "\n".join(lines)
