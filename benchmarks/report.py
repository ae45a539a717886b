#!/usr/bin/env python3
"""Charts from fio's JSON, ours or fio's own: latency percentiles, and IOPS against queue depth.

    python benchmarks/fio.py --output-format=json --output=qd32.json …
    python benchmarks/report.py qd1.json qd8.json qd32.json --output=report.png

Needs matplotlib: pip install 'nvme_async[report]'. The second chart joins jobs of the same name and
direction that differ in iodepth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

DIRECTIONS = ("read", "write", "trim")


def load(path: str) -> dict[str, Any]:
    """A report; fio may print warnings before the JSON."""
    text = Path(path).read_text()
    start = text.find("{")
    if start < 0:
        raise SystemExit(f"report.py: {path} holds no JSON")
    try:
        report = json.loads(text[start:])
    except json.JSONDecodeError as error:
        raise SystemExit(f"report.py: {path}: {error}") from None
    if not isinstance(report, dict) or "jobs" not in report:
        raise SystemExit(f"report.py: {path} is not a fio report: it has no jobs")
    return report


def depth_of(report: dict[str, Any], job: dict[str, Any]) -> int:
    options = {**report.get("global options", {}), **job.get("job options", {})}
    return int(options.get("iodepth", 1))


def rows(paths: list[str]) -> list[dict[str, Any]]:
    """One row for each job and direction that did any I/O."""
    found = []
    for path in paths:
        report = load(path)
        for job in report["jobs"]:
            for direction in DIRECTIONS:
                side = job.get(direction)
                if not side or not side.get("total_ios"):
                    continue
                latency = side.get("clat_ns", {})
                found.append(
                    {
                        "source": Path(path).stem,
                        "job": job["jobname"],
                        "direction": direction,
                        "depth": depth_of(report, job),
                        "iops": float(side["iops"]),
                        "percentiles": {float(p): value / 1000 for p, value in latency.get("percentile", {}).items()},
                    }
                )
    if not found:
        raise SystemExit("report.py: none of the jobs did any I/O")
    return found


def draw(found: list[dict[str, Any]], output: str) -> None:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("report.py: matplotlib is missing: pip install 'nvme_async[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 5.5))
    several = len({row["source"] for row in found}) > 1
    for row in found:
        points = sorted((p, us) for p, us in row["percentiles"].items() if us > 0)
        if points:
            label = f"{row['job']} {row['direction']} QD{row['depth']}" + (f" ({row['source']})" if several else "")
            # Percentiles by the number of nines: 90, 99, 99.9 are equidistant.
            left.plot(
                [1 / (1 - min(p, 99.999) / 100) for p, _ in points], [us for _, us in points], marker=".", label=label
            )
    left.set(
        xscale="log", yscale="log", xlabel="percentile", ylabel="completion latency, µs", title="Latency percentiles"
    )
    ticks = {2: "50", 10: "90", 100: "99", 1000: "99.9", 10000: "99.99"}
    left.set_xticks(list(ticks), list(ticks.values()))
    left.grid(alpha=0.3, which="both")
    if left.lines:
        left.legend(fontsize="small")

    lines: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in found:
        lines[f"{row['job']} {row['direction']}"][row["depth"]].append(row["iops"])
    for label, depths in lines.items():
        at = sorted(depths)
        right.plot(at, [sum(depths[d]) / len(depths[d]) / 1000 for d in at], marker="o", label=label)
    right.set(xscale="log", xlabel="iodepth", ylabel="k IOPS", title="IOPS against depth")
    right.set_xticks(sorted({row["depth"] for row in found}), [str(d) for d in sorted({row["depth"] for row in found})])
    right.minorticks_off()
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    right.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(output, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", help="files with fio's JSON output")
    parser.add_argument(
        "--output", default="report.png", help="picture to write; the ending chooses the format (png, svg, pdf)"
    )
    options = parser.parse_args(arguments)
    try:
        found = rows(options.reports)
    except OSError as error:
        raise SystemExit(f"report.py: {error}") from None
    draw(found, options.output)
    print(f"{options.output}: {len(found)} series", file=sys.stderr)


if __name__ == "__main__":
    main()
