"""Reports while jobs run (--status-interval)."""

import asyncio
import errno
import io
import json

import pytest
from test_fio_run import Bench

from nvme_async.fio.commandline import load_jobs, parse_arguments
from nvme_async.fio.main import main
from nvme_async.fio.run import Run
from nvme_async.fio.worker import Worker


@pytest.fixture
def bench():
    return Bench()


def jobs_of(*arguments: str):
    return load_jobs(parse_arguments(list(arguments)))[0]


def test_a_status_is_reported_while_jobs_run(bench):
    out = io.StringIO()
    arguments = ["--filename=mem", "--name=j", "--time_based", "--runtime=1", "--status-interval=300ms"]
    assert main([*arguments, "--output-format=json", "--rate_iops=100"], opener=bench.opener, stdout=out) == 0
    decoder, text, seen = json.JSONDecoder(), out.getvalue(), []
    while text.strip():
        document, end = decoder.raw_decode(text)
        seen.append(document["jobs"][0]["read"])
        text = text[end:].lstrip()
    assert 2 <= len(seen) <= 4
    assert [read["total_ios"] for read in seen] == sorted(read["total_ios"] for read in seen)
    assert 0 < seen[0]["iops"] < 120


def test_a_status_leaves_the_loop_to_its_owner(bench, monkeypatch):
    """A job process that is asked for its results may be waiting for that loop."""
    stats, seen = Worker.stats, []

    async def run():
        loop = asyncio.get_running_loop()

        def stats_after_the_loop(worker, elapsed):
            if not worker.done.is_set():
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)
            return stats(worker, elapsed)

        monkeypatch.setattr(Worker, "stats", stats_after_the_loop)
        jobs = jobs_of("--filename=mem", "--name=j", "--time_based", "--runtime=1", "--rate_iops=100")
        return await Run(jobs, opener=bench.opener, status=seen.append, status_interval=0.1).run()

    outcome = asyncio.run(run())
    assert outcome.stats[0].error == 0
    assert seen


def test_a_failing_status_ends_the_run(bench):
    def full(stats):
        raise OSError(errno.ENOSPC, "No space left on device")

    jobs = jobs_of("--filename=mem", "--name=j", "--time_based", "--runtime=1")
    with pytest.raises(OSError, match="No space"):
        asyncio.run(Run(jobs, opener=bench.opener, status=full, status_interval=0.1).run())
