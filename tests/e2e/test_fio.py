"""The benchmark on the emulated controller: the program as users start it, and its verification of
a damaged medium.
"""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from managed import descriptors

from nvme_async.fio import managed as bench_managed
from nvme_async.fio.main import main
from nvme_async.manager import Manager

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "fio.py"


def bench(*arguments, code=0):
    out = io.StringIO()
    assert main(["--output-format=json", *arguments], stdout=out) == code
    text = out.getvalue()
    return json.loads(text)["jobs"] if text else []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("block", [512, 4096])
def test_every_pattern_runs(loop, block):
    uri = f"--filename=emulated:size=8MiB,block={block}"
    patterns = ("read", "write", "randread", "randwrite", "rw", "randrw", "trim", "randtrim", "trimwrite")
    names = []
    for pattern in patterns:
        names += [f"--name={pattern}", f"--rw={pattern}", "--stonewall"]
    jobs = bench(uri, f"--loop={loop}", "--bs=16k", "--iodepth=4", "--size=2m", *names)
    for job, pattern in zip(jobs, patterns, strict=True):
        counts = [job[direction]["total_ios"] for direction in ("read", "write", "trim")]
        assert sum(counts) == (256 if pattern == "trimwrite" else 128), pattern
        assert [count > 0 for count in counts] == [
            pattern in ("read", "randread", "rw", "randrw"),
            pattern in ("write", "randwrite", "rw", "randrw", "trimwrite"),
            "trim" in pattern,
        ]
        assert job["error"] == 0


@pytest.mark.parametrize("mode", ["adaptive", "interrupt", "poll"])
def test_verify_on_a_controller_that_several_threads_share(mode):
    (job,) = bench(
        "--filename=emulated:size=16MiB,block=512",
        "--name=v",
        "--rw=randrw",
        "--bssplit=512/20:4k/60:64k/20",
        "--verify=crc32c",
        "--numjobs=3",
        "--size=4m",
        "--offset_increment=4m",
        "--iodepth=16",
        "--group_reporting",
        f"--mode={mode}",
        "--verify_interval=512",
        "--blockalign=512",
    )
    assert job["write"]["io_bytes"] > 0
    assert job["error"] == 0


@pytest.mark.parametrize("block", [512, 4096])
def test_the_many_engine_does_the_same_work(block):
    (mixed, failing) = bench(
        f"--filename=emulated:size=8MiB,block={block}",
        "--ioengine=many",
        "--bs=8k",
        "--iodepth=16",
        "--name=mixed",
        "--rw=randrw",
        "--name=too-large",
        "--stonewall",
        "--rw=read",
        "--bs=4m",
        "--iodepth_batch_submit=2",
        code=1,
    )
    assert mixed["read"]["total_ios"] + mixed["write"]["total_ios"] == 1024
    assert mixed["error"] == 0
    assert failing["error"] == 5


def test_requests_over_mdts_can_be_benchmarked():
    (job,) = bench("--filename=emulated:size=16MiB,mdts=128KiB", "--name=b", "--rw=write", "--bs=1m", "--verify=xxhash")
    assert (job["write"]["total_ios"], job["write"]["io_bytes"]) == (16, 16 << 20)


def test_one_flipped_byte_on_a_file_medium_fails_the_job_and_names_the_block(tmp_path, capsys):
    path = tmp_path / "disk"
    uri = f"--filename=emulated:size=8MiB,block=4096,medium=file,path={path}"
    job = ("--name=v", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--verify=crc32c")
    bench(uri, *job)
    bench(uri, *job, "--verify_only")
    with path.open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)[0]
        file.seek(5_000_000)
        file.write(bytes([byte ^ 0x40]))
    capsys.readouterr()
    (result,) = bench(uri, *job, "--verify_only", code=1)
    message = capsys.readouterr().err
    lba, offset = 5_000_000 // 4096, 5_000_000 // 4096 * 4096
    assert f"nsid 1, lba {lba}: crc32c mismatch at offset {offset}, length 4096" in message
    assert f"byte {5_000_000 - offset} is {byte:#04x}" in message
    assert f"{byte ^ 0x40:#04x}" in message
    assert result["error"] == 84
    assert result["read"]["total_ios"] == 2048


def run_script(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, **options
    )


@pytest.mark.parametrize("engine", ["await", "many"])
@pytest.mark.parametrize("between", ["|", ":"])
def test_several_devices_are_driven_by_a_manager(engine, between, monkeypatch):
    managers = []

    class Witness(Manager):
        def __init__(self, **options):
            super().__init__(**options)
            managers.append(self)

        async def close(self):
            self.seen = self.inspect()["devices"]
            await super().close()

    monkeypatch.setattr(bench_managed, "Manager", Witness)
    uris = [f"emulated:size=8MiB,serial=SEVERAL{at}" for at in range(3)]
    verify = ["--verify=crc32c"] if engine == "await" else []
    jobs = bench(
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        f"--ioengine={engine}",
        "--mode=interrupt",
        "--thread",
        "--name=two",
        f"--filename={between.join(uris[:2])}",
        *verify,
        "--name=one",
        f"--filename={uris[2]}",
    )
    assert [job["write"]["total_ios"] for job in jobs] == [4096, 2048]
    assert [job["error"] for job in jobs] == [0, 0]
    [manager] = managers
    assert sorted(manager.seen) == uris
    queues = [device["controller"]["io_queues"] for device in manager.seen.values()]
    assert {queue["mode"] for device in queues for queue in device} == {"interrupt"}
    done = [sum(queue["cq"]["reaped"] for queue in device) for device in queues]
    assert min(done) > 0
    assert sum(done) >= 4096 + 2048


def test_a_missing_device_among_several_leaves_nothing_open():
    before = descriptors()
    out = io.StringIO()
    names = "emulated:size=8MiB|vfio-user:/nonexistent/socket"
    assert main([f"--filename={names}", "--name=j", "--rw=read", "--iodepth=2"], stdout=out) == 1
    assert "issued rwts" not in out.getvalue()
    assert descriptors() == before


def test_the_script_and_the_subcommand_are_the_same_program():
    arguments = ("--filename=emulated:size=4MiB", "--name=j", "--rw=randread", "--bs=4k", "--iodepth=4")
    script = run_script(*arguments)
    command = subprocess.run(
        [sys.executable, "-m", "nvme_async.cli.main", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    for done in (script, command):
        assert (done.returncode, done.stderr) == (0, "")
        assert "     issued rwts: total=1024,0,0,0 short=0,0,0,0 dropped=0,0,0,0\n" in done.stdout
    bad = subprocess.run(
        [sys.executable, "-m", "nvme_async.cli.main", "bench", "--name=j", "--bad=1"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", "fio: unknown option 'bad'. Did you mean ba?\n")


def test_a_missing_device_is_an_error_without_traceback():
    done = run_script("--filename=vfio-user:/nonexistent/socket", "--name=j", "--rw=read")
    assert done.returncode == 1
    assert "fio: ControllerGone: " in done.stderr
    assert "Traceback" not in done.stderr


def test_control_c_prints_the_results_so_far():
    process = subprocess.Popen(
        [
            sys.executable,
            str(SCRIPT),
            "--filename=emulated:size=64MiB",
            "--name=j",
            "--rw=randread",
            "--iodepth=8",
            "--time_based",
            "--runtime=60",
            "--eta=always",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stderr is not None
        seen = ""
        limit = time.monotonic() + 50
        while "IOPS][eta 00m:" not in seen and time.monotonic() < limit:
            seen += process.stderr.read(1)
        assert "Jobs: 1 (f=1): [r(1)][" in seen
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "fio: terminating on signal 2" in out
    assert "  read: IOPS=" in out
    assert "Run status group 0 (all jobs):" in out


def test_the_quick_jobs_are_valid_and_a_shortened_run_of_them_passes(tmp_path):
    text = (ROOT / "benchmarks" / "jobs" / "quick.fio").read_text()
    short = tmp_path / "quick.fio"
    lines = [("runtime=100ms" if line.startswith("runtime=") else line) for line in text.splitlines()]
    short.write_text("\n".join(lines).replace("io_size=128m", "io_size=32m").replace("size=128m", "size=8m"))
    jobs = bench(str(short))
    assert len(jobs) == 8
    assert all(job["error"] == 0 for job in jobs)
