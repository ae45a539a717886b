"""Jobs as processes, each with a lease of the program's controller."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nvme_async.fio.main import main
from nvme_async.fio.processes import ProcessWorker
from nvme_async.fio.run import Run
from nvme_async.native._fio import Histogram

URI = "emulated:size=16MiB,block=4096"
SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "fio.py"


def bench(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    out = io.StringIO()
    assert main(["--output-format=json", f"--filename={URI}", *arguments], stdout=out) == code
    jobs: list[dict[str, Any]] = json.loads(out.getvalue())["jobs"]
    return jobs


def test_jobs_are_processes_whose_results_logs_and_verify_are_as_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = ["--bs=4k", "--size=256k", "--iodepth=4", "--numjobs=2", "--offset_increment=1m", "--verify=crc32c"]
    jobs = bench(
        *common, "--name=w", "--rw=randwrite", f"--write_lat_log={tmp_path}/l",
        "--name=r", "--rw=randwrite", "--offset=8m", "--rate_iops=400", "--new_group", "--group_reporting",
    )  # fmt: skip
    assert [job["jobname"] for job in jobs] == ["w", "w", "r"]
    assert [job["write"]["total_ios"] for job in jobs] == [64, 64, 128]
    assert [job["read"]["total_ios"] for job in jobs] == [64, 64, 128]  # what was verified
    assert [job["error"] for job in jobs] == [0, 0, 0]
    assert jobs[2]["write"]["clat_ns"]["N"] == 128
    assert jobs[2]["write"]["runtime"] >= 100  # 64 I/Os of each at 400/s
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"l_{kind}.{number}.log" for kind in ("clat", "lat", "slat") for number in (1, 2)
    ]
    assert len((tmp_path / "l_lat.2.log").read_text().splitlines()) >= 64
    assert "reset" not in caplog.text  # sharing needs none: the device was opened for it


def test_leases_are_answered_while_processes_write_their_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that gives its lease back waits for the owner's loop, and can't write meanwhile."""
    asked, write = [], ProcessWorker.write_logs

    def watched(self: ProcessWorker) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        asked.append(self.number)
        write(self)

    monkeypatch.setattr(ProcessWorker, "write_logs", watched)
    bench("--name=j", "--rw=randread", "--number_ios=10", "--numjobs=2")
    assert sorted(asked) == [1, 2]


def test_more_processes_than_the_loop_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the owner, which uses the loop's threads to answer."""
    run = Run.run

    async def narrow(self: Run) -> Any:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        return await run(self)

    monkeypatch.setattr(Run, "run", narrow)
    jobs = bench("--name=j", "--rw=randread", "--number_ios=10", "--numjobs=2")
    assert [job["error"] for job in jobs] == [0, 0]


def start(*arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    """The program, with the ids of its two job processes, once they have begun."""
    program = subprocess.Popen(
        [sys.executable, SCRIPT, "--output-format=json", "--eta=always", "--eta-interval=250", f"--filename={URI}",
         "--name=j", "--rw=randread", "--runtime=30", "--time_based", "--numjobs=2", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert program.stderr is not None
    shown = ""
    while "r(2)" not in shown:
        part = os.read(program.stderr.fileno(), 4096).decode()
        assert part, shown
        shown += part
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    found = [int(pid) for pid in children] or children_of(program.pid)
    return program, [pid for pid in found if b"job_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def children_of(pid: int) -> list[int]:
    """Also those of other threads."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_a_killed_job_process_is_reported_and_the_other_goes_on(tmp_path: Path) -> None:
    program, pids = start("--number_ios=100000000")
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    out, errors = program.communicate(timeout=30)
    assert program.returncode == 1
    assert f"fio: pid={pids[0]}, got signal=9" in errors
    failed, good = sorted(json.loads(out)["jobs"], key=lambda job: -job["error"])
    assert (failed["error"], good["error"]) == (5, 0)
    assert good["read"]["total_ios"] > 0
    assert failed["read"]["total_ios"] > 0


def test_ctrl_c_ends_all_with_results() -> None:
    program, pids = start("--group_reporting")
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    out, errors = program.communicate(timeout=30)
    assert program.returncode == 130, errors
    [job] = json.loads(out)["jobs"]
    assert (job["error"], job["read"]["total_ios"] > 0) == (0, True)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_jobs_whose_program_is_killed_end() -> None:
    program, pids = start()
    program.kill()
    program.communicate(timeout=30)
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_with_thread_and_alone_a_job_stays_in_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    common = [f"--filename={URI}", "--size=64k", "--rw=read"]
    assert main([*common, "--thread", "--name=j", "--numjobs=2"], stdout=out) == 0
    assert main([*common, "--name=j", "--name=k", "--stonewall"], stdout=out) == 0
    assert out.getvalue().count("Starting 2 threads") == 2
    assert f"pid={os.getpid()}" not in out.getvalue()


def test_a_job_that_gets_no_lease_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nvme_async.fio.processes._POOL_BYTES", 1 << 20)
    jobs = bench("--name=j", "--rw=read", "--size=8m", "--bs=2m", "--iodepth=8", "--numjobs=2", code=1)
    assert all(job["error"] for job in jobs)
    assert "fio: job 'j', number 1:" in capsys.readouterr().err


def test_a_histogram_goes_from_process_to_process() -> None:
    histogram = Histogram()
    histogram.add(1234, 5)
    histogram.add(99_999_999)
    copy = pickle.loads(pickle.dumps(histogram))
    assert (copy.count, copy.total, copy.min, copy.max) == (6, 4 * 1234 + 1234 + 99_999_999, 1234, 99_999_999)
    assert copy.counts() == histogram.counts()
    with pytest.raises(ValueError, match="not 3"):
        Histogram().__setstate__(b"abc")
