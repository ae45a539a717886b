"""Verify jobs in complete runs on a device in memory: which data count, and the effect on
latencies.
"""

import itertools
import time

import pytest
from test_fio_run import Bench

from nvme_async.fio import checksums
from nvme_async.fio.main import main


@pytest.fixture
def bench():
    return Bench()


LAYOUT = ("--name=layout", "--rw=randwrite", "--bs=4k", "--size=256k", "--verify=crc32c")


def test_verify_only_under_another_name_checks_the_same_blocks(bench, capsys):
    job = ("--rw=randwrite", "--bs=4k", "--io_size=200k", "--norandommap", "--verify=crc32c", "--iodepth=4")
    bench("--name=writer", *job, "--do_verify=0")
    written = set(bench.offsets("write"))
    bench("--name=checker", *job, "--verify_only")
    lba_to_bytes = bench.namespace.block_size
    read = {
        lba * lba_to_bytes + at
        for kind, lba, blocks in bench.namespace.history
        if kind == "read"
        for at in range(0, blocks * lba_to_bytes, 4096)
    }
    assert read == written
    bench.namespace.data[min(written) + 1000] ^= 1
    bench("--name=checker", *job, "--verify_only", code=1)
    assert "crc32c mismatch" in capsys.readouterr().err


def test_verify_only_finds_a_lost_rewrite_of_its_own_plan(bench, capsys):
    job = ("--rw=write", "--bs=4k", "--size=64k", "--loops=2", "--verify=crc32c", "--iodepth=1")
    bench("--name=writer", *job, "--do_verify=0")
    first = ("--rw=write", "--bs=4k", "--size=64k", "--loops=1", "--verify=crc32c", "--iodepth=1")
    kept = bytes(bench.namespace.data)
    bench("--name=checker", *job, "--verify_only")
    bench.namespace.lose_writes = {8}
    bench("--name=writer", *job, "--do_verify=0")
    assert bytes(bench.namespace.data)[4096:8192] == kept[4096:8192]
    assert bytes(bench.namespace.data)[:4096] != kept[:4096]
    bench("--name=other", *first, "--verify_only")  # which has another plan: digests alone


def test_write_then_verify_by_three_jobs_passes_as_in_fio(bench):
    """A layout, verify_only by another job of the file, and random reads of all of it."""
    only, readback = [["--name=only", *LAYOUT[1:], "--verify_only"], ["--name=read", *LAYOUT[1:], "--rw=randread"]]
    bench(*LAYOUT, *only, "--stonewall", *readback, "--stonewall")
    assert [job["error"] for job in bench.jobs] == [0, 0, 0]
    assert bench.jobs[2]["read"]["io_bytes"] == 256 << 10


def test_a_reader_accepts_data_of_two_writers_and_a_later_run(bench, capsys):
    half = ("--rw=randwrite", "--bs=4k", "--size=128k", "--verify=xxhash")
    bench("--name=a", *half, "--name=b", *half, "--offset=128k")
    bench("--name=c", *half[:2], "--size=16k", "--offset=64k", "--verify=xxhash")
    reader = ("--name=r", "--rw=read", "--bs=4k", "--size=256k", "--verify=xxhash", "--iodepth=4")
    assert bench(*reader)["error"] == 0
    bench.namespace.data[200 << 10] ^= 0xFF
    assert bench(*reader, code=1)["error"] == 84
    assert "lba 400: no verify header" in capsys.readouterr().err


@pytest.mark.parametrize("bs", ["4k", "bssplit"])
@pytest.mark.parametrize("hole", [512, 1024, 4096])
@pytest.mark.parametrize("iodepth", [1, 5])
def test_holes_after_each_write_are_verified_as_in_fio(bench, capsys, bs, hole, iodepth):
    sizes = "--bs=4k" if bs == "4k" else "--bssplit=4k/50:8k/50"
    job = ("--name=j", f"--rw=write:{hole}", sizes, "--size=256k", "--verify=md5", f"--iodepth={iodepth}")
    result = bench(*job)
    assert result["write"]["io_bytes"] >= 256 << 10  # it wraps around, to where holes were
    assert result["read"]["total_ios"] > 0
    last = bench.offsets("write")[-1]
    bench.namespace.lose_writes = {last // 512}
    bench(*job, code=1)
    assert f"lba {last // 512}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--bssplit=1k/50:1536/50"], ["--bs=4k", "--blockalign=512"], ["--bsrange=1k-3k"]]
)
def test_sizes_and_alignments_need_not_be_multiples_of_each_other(bench, arguments):
    job = bench(
        "--name=j", "--rw=randwrite", *arguments, "--norandommap", "--io_size=1m", "--verify=crc32", "--iodepth=3"
    )
    assert (job["error"], job["read"]["total_ios"] > 0) == (0, True)


def test_random_order_depends_on_the_jobs_place_not_its_name(bench):
    job = ("--rw=randread", "--bs=4k", "--number_ios=20", "--iodepth=1")
    orders = []
    for arguments in (["--name=a"], ["--name=b"], ["--name=c", "--randseed=7"], ["--name=d", "--numjobs=2"]):
        bench(*arguments, *job)
        orders.append(bench.offsets("read"))
    assert orders[0] == orders[1]
    assert orders[2] != orders[0]
    assert set(orders[0]) < set(orders[3]), "the first clone is job 1, the second another"


def test_an_explicit_seed_counts_without_randrepeat(bench):
    job = ("--name=j", "--rw=randread", "--bs=4k", "--number_ios=20", "--iodepth=1", "--randrepeat=0")
    orders = []
    for seed in (["--randseed=7"], ["--randseed=7"], [], []):
        bench(*job, *seed)
        orders.append(bench.offsets("read"))
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


def test_checksums_do_not_count_as_the_devices_latency(bench, monkeypatch):
    """Each digest takes 20 ms, each I/O far less; with eight at once one would wait for the
    digests of the others.
    """
    digests = itertools.count()

    def slow(data):
        next(digests)
        time.sleep(0.02)
        return bytes(4)

    monkeypatch.setitem(checksums.CHECKSUMS, "crc32c", slow)
    job = bench("--name=j", "--rw=randwrite", "--bs=4k", "--size=128k", "--verify=crc32c", "--iodepth=8")
    assert next(digests) == 64
    for direction in ("read", "write"):
        assert job[direction]["clat_ns"]["percentile"]["50.000000"] < 60_000_000


def test_bad_blocks_are_dumped_on_request(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench("--name=old", "--rw=write", "--bs=4k", "--size=16k", "--verify=md5")
    bench.namespace.lose_writes = {8}
    bench("--name=j", "--rw=write", "--bs=4k", "--size=16k", "--verify=md5", "--verify_dump=1", code=1)
    received, expected = (tmp_path / f"j.4096.{kind}" for kind in ("received", "expected"))
    assert received.read_bytes() == bytes(bench.namespace.data[4096:8192])
    assert len(expected.read_bytes()) == 4096
    assert expected.read_bytes() != received.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {received.name, expected.name}


def test_checking_the_order_of_writes_can_be_disabled(bench):
    job = ("--name=j", "--rw=write", "--bs=4k", "--size=16k", "--verify=md5")
    bench(*job)
    bench.namespace.lose_writes = {8}
    bench(*job, code=1)
    bench(*job, "--verify_write_sequence=0")
    bench.namespace.data[5000] ^= 1
    bench(*job, "--verify_write_sequence=0", code=1)


def test_bad_blocks_are_named_on_stderr_with_any_report_format(bench, capsys):
    bench("--name=j", "--rw=write", "--bs=512", "--size=16k", "--verify=md5")
    arguments = ["--filename=mem", "--name=r", "--rw=read", "--bs=16k", "--size=16k", "--verify=md5"]
    assert main(arguments, opener=bench.opener) == 1
    out, err = capsys.readouterr()
    assert "other verify settings" in err
    assert "err=84" in out
    assert "verify: job" not in out
