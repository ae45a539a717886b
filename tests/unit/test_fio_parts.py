"""The benchmark's smaller parts: offsets, checksums, the ETA line, steady state, gates and
claims.
"""

import asyncio
import io
import shutil
import subprocess
import zlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.fio.eta import EtaLine, eta_line, run_string
from nvme_async.fio.pacing import Claims, Gate
from nvme_async.fio.parsers import SteadyState
from nvme_async.fio.steadystate import SteadyStateWatch
from nvme_async.native._fio import Batch, Generator, Recorder, Slot, clock_ns, crc32c, fill_random, xxh64

SIZES = (((4096, 1.0),),) * 3


def generator(**options):
    defaults = {"seed": 1, "start": 0, "length": 1 << 20, "block_size": 512, "sizes": SIZES, "order": "permuted"}
    return Generator(**(defaults | options))


@given(st.integers(0, 2**64 - 1), st.integers(1, 3000), st.integers(0, 50))
def test_a_pass_of_the_permutation_visits_every_block_once_and_the_next_pass_too(seed, blocks, start):
    offsets = generator(seed=seed, start=start * 4096, length=blocks * 4096)
    for _ in range(2):
        seen = {offsets.next()[1] for _ in range(blocks)}
        assert seen == set(range(start * 4096, (start + blocks) * 4096, 4096))


@given(
    st.sampled_from(["sequential", "permuted", "uniform", "zipf", "pareto", "normal"]),
    st.integers(0, 2**32),
    st.integers(16, 400),
    st.integers(0, 20),
    st.sampled_from([512, 1024, 4096]),
)
def test_every_io_lies_inside_the_region_and_on_the_grid(order, seed, blocks, start, align):
    parameter = {"zipf": 1.1, "pareto": 2.0, "normal": 40.0}.get(order, 0.0)
    split = (((512, 0.5), (1024, 0.25), (8192, 0.25)), ((512, None), (4096, None)), ((512, 1.0),))
    subject = generator(
        seed=seed,
        start=start * 512,
        length=blocks * 512,
        sizes=split,
        order=order,
        parameter=parameter,
        align=align,
        read_share=0.5,
    )
    for _ in range(200):
        direction, offset, nbytes = subject.next()
        assert direction in (0, 1)
        assert start * 512 <= offset
        assert offset + nbytes <= (start + blocks) * 512
        assert nbytes > 0
        assert nbytes % 512 == 0
        if order != "sequential":
            assert (offset - start * 512) % align == 0


def test_zipf_follows_its_law():
    offsets = generator(order="zipf", parameter=1.2, length=1000 * 4096)
    counts = {}
    for _ in range(100_000):
        offset = offsets.next()[1]
        counts[offset] = counts.get(offset, 0) + 1
    ranked = sorted(counts.values(), reverse=True)
    weights = [1 / rank**1.2 for rank in range(1, 1001)]
    for rank in range(5):
        assert ranked[rank] / 100_000 == pytest.approx(weights[rank] / sum(weights), rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1000}, "not a power of two"),
        ({"sizes": (((100, 1.0),),) * 3}, "multiples of the block size"),
        ({"length": 1024}, "smaller than one block"),
        ({"align": 100}, "alignment 100"),
        ({"sizes": ((),) * 3}, "0 block sizes"),
        ({"sizes": SIZES[:2]}, "must be for 3"),
    ],
)
def test_a_generator_refuses_unsupported_settings(options, message):
    with pytest.raises(ValueError, match=message):
        generator(**options)


def test_a_slot_runs_the_whole_loop_of_a_plain_job():
    recorder = Recorder(limit_ios=100)
    slot = Slot(recorder, generator(read_share=0.5))
    lbas = list(slot)
    assert len(lbas) == 100
    assert recorder.ios == (sum(lba >= 0 for lba in lbas), sum(lba < 0 for lba in lbas), 0)
    assert all((lba if lba >= 0 else ~lba) % 8 == 0 for lba in lbas)
    assert recorder.in_flight == 0
    assert recorder.latency(0).count == recorder.ios[0]
    assert recorder.depths[0] == 100


def test_an_abandoned_io_is_not_counted():
    recorder = Recorder()
    slot = Slot(recorder, generator())
    next(slot)
    assert recorder.in_flight == 1
    slot.abandon()
    assert (recorder.in_flight, recorder.ios) == (0, (0, 0, 0))


def test_a_deadline_a_stop_and_an_expiry_end_the_loop():
    for end in ("stop", "expire"):
        recorder = Recorder(timed=False)
        slot = Slot(recorder, generator())
        next(slot)
        getattr(recorder, end)()
        assert list(slot) == []
        assert recorder.ios == (1, 0, 0)
    recorder = Recorder()
    recorder.arm(deadline=clock_ns())
    assert list(Slot(recorder, generator())) == []


def test_a_batch_takes_the_rest_of_the_budget():
    recorder = Recorder(limit_ios=10)
    batch = Batch(recorder, generator(read_share=0.5), 4)
    reads, writes = array("Q", bytes(64)), array("Q", bytes(64))
    total = 0
    for expected in (8, 2, 0):
        n_reads, n_writes = batch.fill(reads, writes)
        assert n_reads + n_writes == expected
        batch.end()
        total += n_reads + n_writes
    assert total == sum(recorder.ios)
    assert recorder.batches[0] == recorder.batches[1]


def test_checksums_have_their_published_values():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4 and the usual check value
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(b"456789", crc32c(b"123")) == 0xE3069283
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(bytes(range(101)), 2654435761) == xxh64(bytearray(range(101)), 2654435761)


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_crc32c_of_the_processor_and_of_the_tables_agree(data, start):
    assert crc32c(data, start) == crc32c(data, start, software=True)


def test_random_contents_depend_on_the_key_and_do_not_compress():
    a, b, c = bytearray(4099), bytearray(4099), bytearray(4099)
    fill_random(a, 5)
    fill_random(b, 5)
    fill_random(c, 6)
    assert a == b != c
    assert len(zlib.compress(a)) > 4000


def test_the_eta_line_has_fios_form():
    line = eta_line(["r"], 1, 0.248, 31, (21495808, 0, 0), (5250, 0, 0))
    assert line == "Jobs: 1 (f=1): [r(1)][24.8%][r=20.5MiB/s][r=5250 IOPS][eta 00m:31s]"
    line = eta_line(["_", "m", "m", "P"], 2, None, None, (4096, 8192, 0), (1, 2, 0))
    assert line == "Jobs: 2 (f=2): [_(1),m(2),P(1)][-.-%][r=4096B/s,w=8192B/s][r=1,w=2 IOPS][eta --]"
    assert run_string("rrw") == "r(2),w(1)"


def test_the_eta_line_is_printed_only_on_terminals():
    stream = io.StringIO()
    EtaLine("auto", stream).show("x")
    assert stream.getvalue() == ""
    line = EtaLine("always", stream)
    line.show("long line")
    line.show("short")
    line.clear()
    assert stream.getvalue() == "\rlong line\rshort    \r     \r"


def feed(watch, rates):
    total = 0
    results = [watch.feed(0.0, 0, 0)]
    for second, rate in enumerate(rates, 1):
        total += rate
        results.append(watch.feed(float(second), total, total * 4096))
    return results


def test_steady_state_by_deviation():
    watch = SteadyStateWatch(SteadyState("iops", False, 5.0, True), 3, 0)
    assert feed(watch, [100, 200, 300, 301, 299])[-3:] == [False, False, True]
    assert watch.result.iops == [300, 301, 299]
    assert watch.result.criterion == pytest.approx(100 / 300)


def test_steady_state_by_slope_in_absolute_numbers_after_a_ramp():
    watch = SteadyStateWatch(SteadyState("bw", True, 4096.0 * 10, False), 3, 2.0)
    assert feed(watch, [0, 0, 300, 100, 305]) == [False] * 5 + [True]
    assert watch.result.slope == pytest.approx(4096 * 2.5)
    rising = SteadyStateWatch(SteadyState("bw", True, 4096.0 * 10, False), 3, 0.0)
    assert not any(feed(rising, [100, 200, 300, 400]))


async def test_a_gate_opens_for_groups_and_for_the_last_ones():
    gate, passed = Gate(3, 4), []

    async def visitor(name, visits):
        for _ in range(visits):
            await gate.arrive()
            passed.append(name)
        gate.leave()

    await asyncio.wait_for(asyncio.gather(*(visitor(n, n + 1) for n in range(4))), 5)
    assert sorted(passed) == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


async def test_claims_keep_overlapping_ios_apart():
    claims, inside = Claims(), set()

    async def worker(first):
        for step in range(50):
            units = range((first + step) % 7, (first + step) % 7 + 3)
            await claims.take(units)
            assert not inside.intersection(units)
            inside.update(units)
            await asyncio.sleep(0)
            inside.difference_update(units)
            claims.release(units)

    await asyncio.wait_for(asyncio.gather(*(worker(n) for n in range(6))), 10)


@pytest.mark.skipif(shutil.which("fio_jsonplus_clat2csv") is None, reason="fio is not installed")
def test_fios_own_reader_accepts_our_json(tmp_path):
    from memory_device import MemoryController

    from nvme_async.fio.main import main

    report = tmp_path / "report.json"
    controller = MemoryController()
    arguments = ["--filename=m", "--name=j", "--rw=randrw", "--output-format=json+", f"--output={report}"]
    assert main(arguments, opener=lambda uri, mode: controller) == 0
    subprocess.run(["fio_jsonplus_clat2csv", str(report), str(tmp_path / "out.csv")], check=True, timeout=30)
    header, *rows = (tmp_path / "out_job0.csv").read_text().splitlines()
    assert "read_clat_ns_count" in header
    assert rows


@pytest.mark.skipif(shutil.which("fio2gnuplot") is None, reason="fio is not installed")
def test_fio2gnuplot_accepts_our_logs(tmp_path):
    from memory_device import MemoryController

    from nvme_async.fio.main import main

    arguments = [
        "--filename=m",
        "--name=j",
        "--rw=randread",
        "--time_based",
        "--runtime=300ms",
        "--log_avg_msec=10",
        "--output-format=json",
    ]
    arguments += [f"--write_bw_log={tmp_path}/log", f"--output={tmp_path}/report.json"]
    assert main(arguments, opener=lambda uri, mode: MemoryController()) == 0
    command = ["fio2gnuplot", "-p", "log_bw.*.log", "-t", "bw"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert "1 files Selected" in done.stdout
    lines = (tmp_path / "gnuplot_temp_file.0").read_text().splitlines()
    points = [line.split() for line in lines if not line.startswith("#")]
    assert len(points) >= 4
    assert all(float(bandwidth) > 0 for _, _, bandwidth in points)
