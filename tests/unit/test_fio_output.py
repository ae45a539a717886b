"""Our reports against what fio 3.33 printed for tests/data/fio-3.33.fio, key by key and line by
line.
"""

import json
import math
from pathlib import Path
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.fio import output_json, output_terse, output_text
from nvme_async.fio.stats import DirectionStats, JobStats, Samples, SteadyStateResult, merge_groups
from nvme_async.native._fio import Histogram

DATA = Path(__file__).parent.parent / "data"
SAMPLE = json.loads((DATA / "fio-3.33.json").read_text())
TEXT = (DATA / "fio-3.33.txt").read_text().splitlines()


PERCENTILES = tuple(float(share) for share in SAMPLE["jobs"][0]["read"]["clat_ns"]["percentile"])


def histogram_of(latency):
    histogram = Histogram()
    for value, count in latency.get("bins", {}).items():
        histogram.add(int(value), count)
    return histogram


def job_from(sample):
    """The job that fio measured, from the bins of its json+ output."""
    job = JobStats(sample["jobname"], sample["groupid"], 4711, depth=sample["latency_depth"])
    job.percentiles = PERCENTILES
    job.options = sample["job options"]
    job.elapsed, job.job_runtime = sample["elapsed"], sample["job_runtime"]
    job.context_switches, job.minor_faults = sample["ctx"], sample["minf"]
    job.user_ms = sample["usr_cpu"] * sample["job_runtime"] / 100
    for direction, name in zip(job.directions, ("read", "write", "trim"), strict=True):
        theirs = sample[name]
        direction.ios, direction.nbytes = theirs["total_ios"], theirs["io_bytes"]
        direction.runtime = theirs["runtime"]
        direction.latency = histogram_of(theirs["clat_ns"])
        for ours, kind, deviation in (direction.bandwidth, "bw", "dev"), (direction.iops, "iops", "stddev"):
            if theirs[f"{kind}_samples"]:
                ours.count, ours.mean = theirs[f"{kind}_samples"], theirs[f"{kind}_mean"]
                ours.min, ours.max = theirs[f"{kind}_min"], theirs[f"{kind}_max"]
                assert theirs[f"{kind}_{deviation}"] == 0
    job.sync = histogram_of(sample["sync"]["lat_ns"])
    job.issued = [direction.ios for direction in job.directions] + [sample["sync"]["total_ios"]]
    for name, field, base in (
        ("iodepth_level", "depths", sum(job.issued[:3])),
        ("iodepth_submit", "submits", 1000),
        ("iodepth_complete", "completes", 1000),
    ):
        setattr(job, field, [round(share * base / 100) for share in sample[name].values()])
    return job


JOBS = [job_from(sample) for sample in SAMPLE["jobs"]]


def structure(value):
    """Keys and types; a histogram's own keys (bins) are data."""
    if isinstance(value, dict):
        return {key: structure(item) if key not in ("bins", "job options") else {} for key, item in value.items()}
    if isinstance(value, list):
        return [structure(item) for item in value]
    return type(value).__name__


def test_json_has_exactly_fios_keys_and_types():
    ours = output_json.document(JOBS, SAMPLE["global options"], SAMPLE["timestamp"], bins=True)
    assert ours.pop("disk_util") == []  # fio's null engine has none
    assert structure(json.loads(json.dumps(ours))) == structure(SAMPLE)
    assert list(ours["jobs"][0]) == list(SAMPLE["jobs"][0])
    assert list(ours["jobs"][0]["read"]) == list(SAMPLE["jobs"][0]["read"])


def test_json_figures_match_fios():
    ours = output_json.document(JOBS, {}, SAMPLE["timestamp"], bins=True)
    for job, theirs in zip(ours["jobs"], SAMPLE["jobs"], strict=True):
        for name in ("read", "write", "trim"):
            for key in ("io_bytes", "io_kbytes", "total_ios", "runtime", "bw_min", "bw_max", "iops_samples"):
                assert job[name][key] == theirs[name][key]
            assert job[name]["bw"] == pytest.approx(theirs[name]["bw"], abs=1)
            assert job[name]["iops"] == pytest.approx(theirs[name]["iops"])
            assert job[name]["clat_ns"].get("percentile") == theirs[name]["clat_ns"].get("percentile")
            assert job[name]["clat_ns"].get("bins") == theirs[name]["clat_ns"].get("bins")
            assert job[name]["clat_ns"]["mean"] == pytest.approx(theirs[name]["clat_ns"]["mean"], rel=0.01)
        # fio counted on exact values, these come from the buckets
        for key in ("latency_ns", "latency_us", "latency_ms"):
            for limit, share in job[key].items():
                assert share == pytest.approx(theirs[key][limit], abs=0.6), (key, limit)


def test_without_plus_there_are_no_bins():
    assert '"bins"' not in output_json.render(JOBS, {}, 0)


def test_text_matches_fios_line_by_line():
    ours = output_text.render(JOBS, SAMPLE["timestamp"]).splitlines()
    begin = TEXT.index("Starting 4 processes") + 1
    theirs = TEXT[begin:]

    def comparable(lines):
        # Not compared: slat, which an await doesn't have; lat, which then equals clat; figures not
        # rebuilt.
        skip = (
            "slat",
            " lat (nsec)",
            "lat (nsec)   ",
            "lat (usec)   ",
            "clat (nsec): ",
            "sync (nsec): ",
            "pid=",
            "cpu ",
        )
        return [line for line in lines if not any(word in line for word in skip)]

    assert comparable(ours) == comparable(theirs)


def test_text_lines_have_fios_form():
    job = JobStats("j", 0, 1, percentiles=(50.0, 99.0))
    read = job.directions[0]
    read.ios, read.nbytes, read.runtime = 1000, 4096000, 2000
    values = (120, 3_000_000, 250_000_000)
    for value in values:
        read.latency.add(value)
    for value in (2000.0, 2100.0):
        read.bandwidth.add(value)
        read.iops.add(value / 4)
    text = output_text.render([job], 0)
    assert "  read: IOPS=500, BW=2000KiB/s (2048kB/s)(4000KiB/2000msec)\n" in text
    assert f"    clat (nsec): min=120, max=250M, avg=84333373.33, stdev={stdev(values):.2f}\n" in text
    assert "     lat (nsec): min=120, max=250M, " in text
    assert "    clat percentiles (msec):\n     | 50.00th=[    3], 99.00th=[  251]\n" in text
    assert "   bw (  KiB/s): min= 2000, max= 2100, per=100.00%, avg=2050.00, stdev=70.71, samples=2\n" in text
    assert "   iops        : min=  500, max=  525, avg=512.50, stdev=17.68, samples=2\n" in text
    assert "  lat (nsec)   : 250=33.33%\n" in text
    assert "  lat (msec)   : 4=33.33%, 500=33.33%\n" in text or "  lat (msec)   : 4=33.33%, 250=" in text


def test_units_follow_the_values():
    job = JobStats("j", 0, 1, percentiles=(1.0, 99.0))
    read = job.directions[0]
    read.ios, read.nbytes, read.runtime = 2, 8192, 1
    read.latency.add(3_000)
    read.latency.add(5_431_000)
    text = output_text.render([job], 0)
    assert "    clat (usec): min=3, max=5431, avg=2717.00, stdev=3838.18\n" in text
    (top,) = read.latency.percentiles((99.0,))
    assert f"    clat percentiles (usec):\n     |  1.00th=[    3], 99.00th=[{-(-top // 1000):5d}]\n" in text


def test_errors_and_steady_state_are_shown():
    job = JobStats("j", 0, 1, error=5, error_text="write lba 0+8: Write Fault")
    job.steady = SteadyStateResult(
        "iops:5.000000%", 3, True, 0.067, True, iops=[1000, 1001], bandwidth=[4096000, 4098048]
    )
    text = output_text.render([job], 0)
    assert "err= 5 (write lba 0+8: Write Fault): pid=1: " in text
    assert "  steadystate  : attained=yes, bw=4001KiB/s (4097kB/s), iops=1000, iops mean dev=0.067%\n" in text
    data = output_json.document([job], {}, 0)["jobs"][0]["steadystate"]
    assert data["criterion"] == "0.067000%"
    assert data["data"]["iops"] == [1000, 1001]


def test_terse_has_fios_fields():
    # What `fio --output-format=terse` printed: 131 fields of version 3 without disk utilization.
    line = output_terse.render(JOBS[:1]).rstrip("\n").split(";")
    assert line[:5] == ["3", "fio-3.33", "mixed", "0", "0"]
    assert len(line) == 121
    assert line[5] == str(JOBS[0].directions[0].nbytes >> 10)
    assert line[17].startswith("1.000000%=")


def test_jobs_of_a_group_are_merged_when_asked_to():
    def job(name, groupid, ios, runtime):
        stats = JobStats(name, groupid, 1)
        read = stats.directions[0]
        read.ios, read.nbytes, read.runtime = ios, ios * 4096, runtime
        read.latency.add(100, ios)
        read.iops.add(ios)
        return stats

    merged = merge_groups([(job("a", 0, 10, 5), True), (job("a", 0, 30, 7), True), (job("b", 1, 1, 1), True)])
    assert [(m.name, m.members, m.directions[0].ios) for m in merged] == [("a", 2, 40), ("b", 1, 1)]
    read = merged[0].directions[0]
    assert (read.runtime, read.latency.count, read.iops.mean) == (7, 40, 40)
    apart = merge_groups([(job("a", 0, 10, 5), False), (job("a", 0, 30, 7), False)])
    assert [m.members for m in apart] == [1, 1]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
def test_histogram_agrees_with_the_values_themselves(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert (histogram.count, histogram.total) == (len(values), sum(values))
    assert (histogram.min, histogram.max) == (min(values), max(values))
    mean = sum(values) / len(values)
    if len(values) > 1:
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        assert histogram.deviation == pytest.approx(deviation, rel=1e-6, abs=1e-3)
    ordered = sorted(values)
    for share, got in zip((1, 50, 99.9, 100), histogram.percentiles((1, 50, 99.9, 100)), strict=True):
        exact = ordered[max(0, math.ceil(share / 100 * len(values)) - 1)]
        assert got == pytest.approx(min(exact, 17_000_000_000), rel=0.01)
    assert sum(histogram.bins().values()) == len(values)


@given(st.lists(st.integers(0, 10**10)), st.lists(st.integers(0, 10**10)))
def test_merged_histograms_are_the_histogram_of_all(left, right):
    a, b, both = Histogram(), Histogram(), Histogram()
    for values, histogram in (left, a), (right, b), (left + right, both):
        for value in values:
            histogram.add(value)
    a.merge(b)
    assert (a.count, a.total, a.min, a.max, a.bins()) == (
        both.count,
        both.total,
        both.min,
        both.max,
        both.bins(),
    )
    assert a.deviation == pytest.approx(both.deviation)


def test_samples_of_one_job():
    samples = Samples()
    for value in (3.0, 5.0, 10.0):
        samples.add(value)
    assert (samples.count, samples.min, samples.max, samples.mean) == (3, 3, 10, 6.0)
    assert samples.deviation == pytest.approx(3.605551)


def test_an_idle_direction_does_not_divide_by_zero():
    assert DirectionStats().ios_per_second == DirectionStats().bytes_per_second == 0.0
