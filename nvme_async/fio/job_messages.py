"""What a run and its job processes say to each other, pickled: both are of one installation."""

from __future__ import annotations

import attrs

from nvme_async.fio.commandline import Job
from nvme_async.fio.stats import JobStats
from nvme_async.fio.worker import Worker


@attrs.frozen
class Plan:
    """What the process is to do. uris: {device as the job names it: what to open for it}."""

    job: Job
    clone: int
    number: int
    groupid: int
    run_number: int
    shared: bool
    uris: dict[str, str]
    io_queues: int = 1


@attrs.frozen
class Progress:
    """How far the job is, several times a second."""

    phase: str
    began_at: float | None
    began: int | None
    measuring: bool
    stopped: bool
    ios: tuple[int, int, int]
    nbytes: tuple[int, int, int]
    claimed: tuple[int, int]

    @classmethod
    def of(cls, worker: Worker) -> Progress:
        recorder = worker.recorder
        return cls(
            worker.phase,
            worker.began_at,
            recorder.began,
            recorder.measuring,
            recorder.stopped,
            recorder.ios,
            recorder.nbytes,
            recorder.claimed,
        )


@attrs.frozen
class Message:
    """From the process. what: "ready", "log", "progress", "stats", "done" or "logged"; the last
    two say what failed.
    """

    what: str
    text: str = ""
    progress: Progress | None = None
    stats: JobStats | None = None
    number: int = 0
    """Of an error, as fio's reports have them."""
