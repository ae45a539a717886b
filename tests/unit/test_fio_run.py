"""Complete runs of the benchmark on a device in memory: what is issued, when it ends, and that
bad blocks are found.
"""

import io
import json
import os
import signal
import threading
import time

import pytest
from memory_device import MemoryController, MemoryNamespace

from nvme_async.fio.main import main


class Bench:
    """Runs the program on one in-memory device and keeps the results."""

    def __init__(self, **device):
        self.namespace = MemoryNamespace(**device)
        self.controllers = {}

    def opener(self, uri, mode):
        controller = self.controllers.setdefault(uri, MemoryController(self.namespace if uri == "mem" else None))
        return controller

    def __call__(self, *arguments, code=0):
        self.out = io.StringIO()
        self.namespace.calls.clear()
        self.namespace.history.clear()
        arguments = ["--filename=mem", "--output-format=json", *arguments]
        assert main(arguments, opener=self.opener, stdout=self.out) == code
        text = self.out.getvalue()
        self.jobs = json.loads(text)["jobs"] if text else []
        return self.jobs[0] if self.jobs else None

    def offsets(self, kind):
        return [lba * self.namespace.block_size for name, lba, _ in self.namespace.history if name == kind]


@pytest.fixture
def bench():
    return Bench()


def test_sequential_reads_cover_the_region_once_in_order(bench):
    job = bench("--name=j", "--rw=read", "--bs=4k", "--size=64k", "--offset=16k")
    assert bench.offsets("read") == list(range(16384, 81920, 4096))
    assert (job["read"]["total_ios"], job["read"]["io_bytes"]) == (16, 65536)
    assert job["read"]["clat_ns"]["N"] == 16
    assert job["write"]["total_ios"] == 0


def test_random_reads_visit_every_block_exactly_once_and_the_same_way_each_time(bench):
    bench("--name=j", "--rw=randread", "--bs=4k", "--iodepth=7")
    first = bench.offsets("read")
    assert sorted(first) == list(range(0, 1 << 20, 4096))
    assert first != sorted(first)
    bench("--name=j", "--rw=randread", "--bs=4k", "--iodepth=7")
    assert bench.offsets("read") == first
    bench("--name=j", "--rw=randread", "--bs=4k", "--iodepth=7", "--randseed=5")
    assert bench.offsets("read") != first


def test_iodepth_is_the_number_in_flight(bench):
    job = bench("--name=j", "--rw=randread", "--bs=4k", "--iodepth=8")
    assert bench.namespace.most_in_flight == 8
    assert job["iodepth_level"]["8"] > 95.0
    assert job["latency_depth"] == 8


def test_a_mix_has_the_requested_shares_and_is_counted_completely(bench):
    job = bench("--name=j", "--rw=randrw", "--rwmixread=75", "--bs=512", "--iodepth=4")
    reads, writes = job["read"]["total_ios"], job["write"]["total_ios"]
    assert reads + writes == 2048
    assert 0.70 < reads / 2048 < 0.80
    assert (bench.namespace.calls["read"], bench.namespace.calls["write"]) == (reads, writes)


def test_block_sizes_may_be_spread_or_split(bench):
    bench("--name=j", "--rw=randread", "--bsrange=512-4k", "--number_ios=2000", "--io_size=100m", "--norandommap")
    sizes = {blocks * 512 for kind, _, blocks in bench.namespace.history if kind == "read"}
    assert sizes == set(range(512, 4097, 512))
    bench("--name=j", "--rw=randread", "--bssplit=512/75:8k/25", "--number_ios=2000", "--io_size=100m")
    small = sum(blocks == 1 for kind, _, blocks in bench.namespace.history if kind == "read")
    assert 0.70 < small / 2000 < 0.80


def test_number_ios_io_size_and_loops_limit_the_amount(bench):
    assert bench("--name=j", "--bs=4k", "--number_ios=10")["read"]["total_ios"] == 10
    assert bench("--name=j", "--bs=4k", "--size=64k", "--io_size=128k")["read"]["total_ios"] == 32
    assert bench("--name=j", "--bs=4k", "--size=64k", "--loops=3")["read"]["total_ios"] == 48


def test_a_time_limit_ends_the_job_and_loses_nothing_in_flight(bench):
    bench.namespace.delay = 0.01
    began = time.monotonic()
    job = bench("--name=j", "--rw=randread", "--bs=4k", "--iodepth=4", "--time_based", "--runtime=200ms")
    assert time.monotonic() - began < 30
    assert bench.namespace.in_flight == 0
    assert job["read"]["total_ios"] == bench.namespace.calls["read"] >= 4
    assert 150 <= job["read"]["runtime"] < 30_000


def test_time_counts_from_the_end_of_the_ramp(bench):
    job = bench("--name=j", "--bs=4k", "--time_based", "--runtime=200ms", "--ramp_time=700ms", "--rate_iops=20")
    assert 190 <= job["read"]["runtime"] < 800
    assert job["read"]["total_ios"] > 0


def test_a_job_that_ends_in_its_ramp_reports_everything(bench):
    job = bench("--name=j", "--bs=4k", "--size=64k", "--ramp_time=60")
    assert (job["read"]["total_ios"], job["read"]["clat_ns"]["N"]) == (16, 16)
    assert job["iodepth_level"]["1"] == 100.0


def test_the_ramp_is_not_measured(bench):
    bench.namespace.delay = 0.005
    job = bench("--name=j", "--bs=4k", "--time_based", "--runtime=600ms", "--ramp_time=150ms")
    assert 0 < job["read"]["total_ios"] < bench.namespace.calls["read"]


def test_numjobs_are_threads_with_their_own_offsets(bench):
    job = bench(
        "--name=j", "--rw=write", "--bs=4k", "--size=64k", "--numjobs=3", "--offset_increment=64k", "--group_reporting"
    )
    assert len(bench.jobs) == 1
    assert job["write"]["total_ios"] == 48
    assert sorted(bench.offsets("write")) == list(range(0, 3 << 16, 4096))
    bench("--name=j", "--rw=read", "--bs=4k", "--size=64k", "--numjobs=3")
    assert [job["read"]["total_ios"] for job in bench.jobs] == [16, 16, 16]


def test_stonewall_separates_phases(bench):
    bench("--name=a", "--rw=write", "--size=64k", "--name=b", "--rw=read", "--size=64k", "--stonewall")
    kinds = [kind for kind, _, _ in bench.namespace.history if kind != "first"]
    assert kinds == ["write"] * 16 + ["read"] * 16
    assert [job["groupid"] for job in bench.jobs] == [0, 1]


def test_fsync_follows_every_nth_write_and_is_reported(bench):
    job = bench("--name=j", "--rw=write", "--bs=4k", "--size=64k", "--fsync=4", "--end_fsync=1")
    kinds = [kind for kind, _, _ in bench.namespace.history if kind != "first"]
    assert kinds == (["write"] * 4 + ["flush"]) * 4 + ["flush"]
    assert job["sync"]["total_ios"] == 5
    assert job["sync"]["lat_ns"]["N"] == 5


def test_sync_writes_have_fua(bench):
    bench("--name=j", "--rw=write", "--bs=4k", "--size=64k", "--sync=1")
    assert bench.namespace.calls["fua"] == 16


def test_trims_and_trimwrite(bench):
    bench.namespace.data[:] = b"x" * (1 << 20)
    job = bench("--name=j", "--rw=randtrim", "--bs=4k", "--size=64k")
    assert job["trim"]["total_ios"] == 16
    assert bench.namespace.data[:65536] == bytes(65536)
    bench("--name=j", "--rw=trimwrite", "--bs=4k", "--size=32k", "--iodepth=3", "--zero_buffers")
    trims, writes = bench.offsets("trim"), bench.offsets("write")
    assert sorted(trims) == sorted(writes) == list(range(0, 32768, 4096))
    for offset in writes:
        history = [kind for kind, lba, _ in bench.namespace.history if lba * 512 == offset and kind != "first"]
        assert history == ["trim", "write"]


def test_sequential_holes_and_runs(bench):
    bench("--name=j", "--rw=read:4k", "--bs=4k", "--number_ios=5")
    assert bench.offsets("read") == [0, 8192, 16384, 24576, 32768]
    bench("--name=j", "--rw=randread:4", "--bs=4k", "--number_ios=40")
    offsets = bench.offsets("read")
    steps = [b - a for a, b in zip(offsets, offsets[1:], strict=False)]
    assert steps.count(4096) >= 29


@pytest.mark.parametrize("distribution", ["zipf:1.2", "pareto:0.2", "normal:5"])
def test_skewed_distributions_are_skewed_and_stay_inside(bench, distribution):
    bench(
        "--name=j",
        "--rw=randread",
        "--bs=4k",
        "--number_ios=4000",
        "--io_size=1g",
        f"--random_distribution={distribution}",
    )
    offsets = bench.offsets("read")
    counts = sorted((offsets.count(offset) for offset in set(offsets)), reverse=True)
    assert sum(counts[: 256 // 5]) > 0.6 * len(offsets)
    if distribution.startswith("normal"):
        assert abs(sum(offsets) / len(offsets) - (1 << 19)) < 1 << 15


def test_rates_are_respected(bench):
    began = time.monotonic()
    job = bench("--name=j", "--rw=read", "--bs=4k", "--iodepth=4", "--rate_iops=200", "--number_ios=60")
    assert time.monotonic() - began >= 0.28
    assert job["read"]["total_ios"] == 60
    began = time.monotonic()
    bench("--name=j", "--rw=read", "--bs=4k", "--rate=400k", "--number_ios=30")
    assert time.monotonic() - began >= 0.28


def test_thinktime_pauses(bench):
    began = time.monotonic()
    bench("--name=j", "--rw=read", "--bs=4k", "--thinktime=20ms", "--thinktime_blocks=2", "--number_ios=10")
    assert time.monotonic() - began >= 0.08


@pytest.mark.parametrize("option", ["--iodepth_batch_submit=4", "--iodepth_batch_complete_min=4", "--iodepth_low=4"])
def test_batches_are_sent_at_once_and_the_last_one_is_completed(bench, option):
    job = bench("--name=j", "--rw=randread", "--bs=4k", "--iodepth=8", "--number_ios=101", option)
    assert job["read"]["total_ios"] == 101


def test_a_size_beyond_the_device_ends_with_the_device(bench):
    job = bench("--name=j", "--rw=read", "--bs=4k", "--size=10g", "--offset=512k")
    assert job["read"]["io_bytes"] == 512 << 10
    job = bench("--name=j", "--rw=read", "--bs=4k", "--size=50%", "--io_size=50%")
    assert job["read"]["io_bytes"] == 256 << 10


def test_rates_of_reads_and_writes_override_the_mix(bench):
    for share in ("50", "10"):
        job = bench(
            *("--name=j", "--rw=randrw", "--bs=4k", "--iodepth=4", "--rate_iops=100,40", f"--rwmixread={share}"),
            *("--time_based", "--runtime=1"),
        )
        reads, writes = job["read"]["total_ios"], job["write"]["total_ios"]
        assert 40 < reads <= 102
        assert writes <= 41
        assert reads / writes == pytest.approx(2.5, rel=0.1)


def test_the_many_engine(bench):
    job = bench("--name=j", "--ioengine=many", "--rw=randrw", "--bs=4k", "--iodepth=8")
    assert job["read"]["total_ios"] + job["write"]["total_ios"] == 256
    assert job["iodepth_level"]["8"] > 90.0
    job = bench("--name=j", "--ioengine=many", "--rw=randread", "--bs=4k", "--iodepth=4", "--iodepth_batch_submit=16")
    assert job["iodepth_submit"]["16"] == 100.0


def test_several_devices_in_one_job_share_its_depth(bench):
    job = bench("--name=j", "--filename=mem|other", "--rw=read", "--bs=4k", "--size=128k", "--iodepth=2")
    assert job["read"]["total_ios"] == 32  # size applies to all of them, as in fio
    assert bench.namespace.calls["read"] > 0
    assert bench.controllers["other"].namespaces[1].calls["read"] > 0


@pytest.mark.parametrize("verify", ["crc32c", "xxhash", "sha256", "pattern"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_verify_reads_everything_back(bench, verify, loop):
    job = bench(
        "--name=j",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        f"--verify={verify}",
        "--verify_pattern=0xa5",
        f"--loop={loop}",
    )
    assert (job["write"]["total_ios"], job["read"]["total_ios"]) == (256, 256)
    bench("--name=j", "--rw=randwrite", "--bs=4k", f"--verify={verify}", "--verify_pattern=0xa5", "--do_verify=0")
    assert bench.namespace.calls["read"] == 0


def test_overwrites_of_different_sizes_verify(bench):
    bench(
        "--name=j",
        "--rw=randrw",
        "--bssplit=512/50:2k/50",
        "--iodepth=16",
        "--norandommap",
        "--io_size=4m",
        "--verify=crc32c",
    )
    bench(
        "--name=j",
        "--rw=randwrite",
        "--bs=512",
        "--iodepth=16",
        "--norandommap",
        "--size=8k",
        "--io_size=1m",
        "--verify=crc32c",
        "--random_distribution=zipf:1.5",
    )


def test_a_lost_write_is_found_and_named(bench, capsys):
    bench("--name=j", "--rw=write", "--bs=4k", "--size=64k", "--verify=crc32c")
    bench.namespace.lose_writes = {16}
    job = bench("--name=j", "--rw=write", "--bs=4k", "--size=64k", "--verify=crc32c", code=1)
    assert job["error"] == 84
    assert job["read"]["total_ios"] == 16
    message = capsys.readouterr().err
    assert "verify: job 'j', mem, nsid 1, lba 16: stale block at offset 8192, length 4096" in message


def test_a_misdirected_write_is_found_and_named(bench, capsys):
    bench.namespace.misdirect = {8: 24}
    bench("--name=j", "--rw=write", "--bs=4k", "--size=64k", "--verify=md5", "--iodepth=1", code=1)
    message = capsys.readouterr().err
    assert "lba 8: no verify header at offset 4096" in message
    bench.namespace.misdirect = {24: 8}
    bench("--name=j", "--rw=write", "--bs=4k", "--size=64k", "--verify=md5", "--iodepth=1", code=1)
    assert "lba 8: misplaced block at offset 4096, length 4096: expected offset 4096" in capsys.readouterr().err


def test_verify_only_checks_what_an_earlier_run_wrote(bench, capsys):
    job = ("--name=j", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--io_size=2m", "--norandommap", "--verify=crc32c")
    bench(*job, "--do_verify=0")
    bench(*job, "--verify_only")
    assert (bench.namespace.calls["write"], bench.namespace.calls["read"] > 0) == (0, True)
    bench.namespace.data[5000] ^= 1
    bench(*job, "--verify_only", "--verify_fatal=1", code=1)
    assert "lba 8: crc32c mismatch at offset 4096, length 4096" in capsys.readouterr().err


def test_reads_of_a_verify_job_check_each_block(bench, capsys):
    bench("--name=j", "--rw=write", "--bs=4k", "--verify=crc32c", "--do_verify=0")
    bench("--name=k", "--rw=randread", "--bs=4k", "--verify=crc32c", "--iodepth=3")
    bench.namespace.data[9000] ^= 0x80
    bench.namespace.data[16384:20480] = bench.namespace.data[4096:8192]
    bench("--name=k", "--rw=read", "--bs=4k", "--verify=crc32c", code=1)
    message = capsys.readouterr().err
    assert "lba 16: crc32c mismatch at offset 8192" in message
    assert "byte 808 is 0x" in message
    assert "lba 32: misplaced block at offset 16384" in message


def test_verify_backlog_reads_back_while_writing(bench):
    bench("--name=j", "--rw=randwrite", "--bs=4k", "--iodepth=4", "--verify=crc32c", "--verify_backlog=16")
    kinds = [kind for kind, _, _ in bench.namespace.history]
    assert kinds.count("read") == 256
    assert kinds.index("read") < len(kinds) - 1 - kinds[::-1].index("write")


def test_jobs_that_verify_the_same_region_get_a_warning_and_accept_each_others_data(bench, capsys):
    bench("--name=j", "--rw=write", "--bs=4k", "--verify=crc32c", "--numjobs=2", "--iodepth=4")
    assert capsys.readouterr().err.count("size with offset or offset_increment, or stonewall, keep them apart") == 1


def test_an_error_of_the_device_ends_the_job_with_its_name(bench, capsys):
    bench.namespace.fail_reads = {64}
    job = bench("--name=j", "--rw=read", "--bs=4k", "--iodepth=4", code=1)
    assert "fio: job 'j', number 1: UnrecoveredReadError: Read on namespace 1 lba 64+1" in capsys.readouterr().err
    assert job["error"] == 5
    assert job["read"]["total_ios"] <= 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--offset=2m"], "offset 2097152 is not inside the namespace of 1048576 bytes"),
        (["--bs=100"], "bs=100 is not a multiple of the block size, 512"),
        (["--nsid=7"], r"nsid=7 is not on mem (there: 1)"),
        (["--rw=write:2", "--bs=4k"], "rw=write:2: a hole of 2 bytes is not a multiple of the block size, 512"),
        (["--rw=write", "--verify=sha512", "--verify_interval=64"], "no room for data"),
    ],
)
def test_options_that_do_not_fit_the_device_are_refused_by_name(bench, capsys, arguments, message):
    bench("--name=j", *arguments, code=1)
    assert message in capsys.readouterr().err


def test_logs_have_fios_columns(bench, tmp_path):
    bench(
        "--name=j",
        "--rw=write",
        "--bs=4k",
        "--size=64k",
        f"--write_lat_log={tmp_path}/l",
        f"--write_bw_log={tmp_path}/l",
        f"--write_iops_log={tmp_path}/l",
        "--log_offset=1",
    )
    rows = [line.split(", ") for line in (tmp_path / "l_clat.1.log").read_text().splitlines()]
    assert len(rows) == 16
    assert [int(row[4]) for row in rows] == list(range(0, 65536, 4096))
    assert {tuple(row[2:4] + row[5:]) for row in rows} == {("1", "4096", "0")}
    parts = [
        [int(line.split(", ")[1]) for line in (tmp_path / f"l_{kind}.1.log").read_text().splitlines()]
        for kind in ("slat", "clat", "lat")
    ]
    assert all(slat > 0 and slat + clat == lat for slat, clat, lat in zip(*parts, strict=True))
    assert len((tmp_path / "l_bw.1.log").read_text().splitlines()) == 16
    bench.namespace.delay = 0.002
    bench("--name=j", "--rw=read", "--bs=4k", "--number_ios=100", f"--write_iops_log={tmp_path}/w", "--log_avg_msec=50")
    rows = [line.split(", ") for line in (tmp_path / "w_iops.1.log").read_text().splitlines()]
    assert all(row[2:] == ["0", "0", "0"] for row in rows)
    ends = [int(row[0]) for row in rows]
    spans = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    # A busy machine may skip some; the last one ends with the job.
    assert all(span % 50 == 0 for span in spans[:-1])
    full = [int(row[1]) * 50 / 1000 for row, span in zip(rows, spans, strict=True) if span == 50]
    assert all(value == round(value) for value in full)
    assert sum(full) <= 100


def test_gtod_reduce_drops_latencies_and_keeps_counts(bench):
    job = bench("--name=j", "--rw=randread", "--bs=4k", "--gtod_reduce=1")
    assert job["read"]["total_ios"] == 256
    assert job["read"]["clat_ns"]["N"] == job["read"]["lat_ns"]["N"] == 0


def test_exitall_stops_the_others(bench):
    bench.namespace.delay = 0.001
    began = time.monotonic()
    bench("--name=long", "--time_based", "--runtime=60", "--name=short", "--number_ios=5", "--exitall")
    assert time.monotonic() - began < 20


def test_steady_state_ends_the_job_early(bench):
    bench.namespace.delay = 0.005
    began = time.monotonic()
    job = bench("--name=j", "--time_based", "--runtime=60", "--steadystate=iops:60%", "--steadystate_duration=2")
    assert time.monotonic() - began < 30
    assert job["steadystate"]["attained"] == 1
    assert len(job["steadystate"]["data"]["iops"]) == 2


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_a_signal_ends_the_run_with_the_results_so_far(bench, capsys):
    bench.namespace.delay = 0.001
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    job = bench("--name=j", "--time_based", "--runtime=60", "--name=never", "--stonewall", code=130)
    assert job["read"]["total_ios"] == bench.namespace.calls["read"] > 0
    assert len(bench.jobs) == 1
    assert "fio: terminating on signal 2" in capsys.readouterr().err


def test_text_is_written_to_the_terminal_or_a_file(bench, tmp_path, capsys):
    out = io.StringIO()
    assert main(["--filename=mem", "--name=j", "--size=64k"], opener=bench.opener, stdout=out) == 0
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(
        "j: (g=0): rw=read, bs=(R) 4096B-4096B, (W) 4096B-4096B, (T) 4096B-4096B, ioengine=await"
    )
    assert lines[1:4] == ["fio-3.33", "Starting 1 thread", ""]
    assert lines[5].startswith("  read: IOPS=")
    path = tmp_path / "report"
    assert main(["--filename=mem", "--name=j", "--size=64k", f"--output={path}"], opener=bench.opener, stdout=out) == 0
    assert path.read_text().startswith("j: (g=0)")


def test_the_program_options(bench, capsys):
    def run(*arguments):
        out = io.StringIO()
        return main(list(arguments), opener=bench.opener, stdout=out), out.getvalue()

    assert run("--version")[1].startswith("fio-3.33 (nvme_async ")
    code, text = run("--help")
    assert code == 0
    assert "iodepth_batch_complete_min" in text
    assert run("--filename=mem", "--name=j", "--parse-only") == (0, "")
    assert (
        run("--filename=mem", "--name=j", "--rw=write", "--showcmd")[1] == "fio.py --name=j --filename=mem --rw=write\n"
    )
    assert run("--filename=mem", "--name=j", "--rw=write", "--readonly")[0] == 1
    assert run("--filename=mem", "--name=j", "--output-format=xml")[0] == 1
    assert run("--filename=mem", "--name=j", "--frobnicate=1")[0] == 1
    assert "fio: unknown option 'frobnicate'" in capsys.readouterr().err
    assert run()[0] == 1
    assert run("--filename=mem", "--name=j", "--size=4k", "--minimal")[1].startswith("3;fio-3.33;j;0;0;4;")
