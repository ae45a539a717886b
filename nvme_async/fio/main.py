"""The program: `benchmarks/fio.py` and `nvme-async bench`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import attrs
import uvloop

from nvme_async._version import __version__
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.fio import engine_names, output_json, output_terse, output_text
from nvme_async.fio.commandline import Job, command_line, debug_lines, load_jobs, parse_arguments
from nvme_async.fio.eta import EtaLine
from nvme_async.fio.help import option_help, program_help
from nvme_async.fio.known import cache_note
from nvme_async.fio.logs import AggregateLog
from nvme_async.fio.run import (
    Opener,
    Outcome,
    Run,
    group_ids,
    open_device,
    phases_of,
    thread_count,
    wants_processes,
)
from nvme_async.fio.stats import JobStats
from nvme_async.fio.units import parse_size, parse_time

FORMATS = ("normal", "terse", "json", "json+")


def main(arguments: Sequence[str] | None = None, *, opener: Opener = open_device, stdout: TextIO | None = None) -> int:
    """Runs the program and returns its exit code. Raises only for defects."""
    out = stdout or sys.stdout
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments, opener, out)
        out.flush()
        return code
    except BrokenPipeError:
        # The report's reader has closed the pipe, as `| head` does: Python's final flush is
        # silently discarded.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), out.fileno())
    except ConfigurationError as error:
        print(f"fio: {error}", file=sys.stderr)
    except (NvmeError, OSError) as error:
        print(f"fio: {type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _main(arguments: Sequence[str], opener: Opener, out: TextIO) -> int:
    line = parse_arguments(arguments)
    program = line.program
    if "version" in program:
        print(f"{output_json.FIO_VERSION} (nvme_async {__version__})", file=out)
        return 0
    if "help" in program:
        print(program_help(), file=out)
        return 0
    if "cmdhelp" in program:
        print(option_help(program["cmdhelp"]), file=out)
        return 0
    if "enghelp" in program:
        print(engine_names.help_text(program["enghelp"]), file=out)
        return 0
    report = Report.of(program)
    if "parse" in report.debug:
        print(*debug_lines(line), sep="\n", file=out)
    if "parse-only" in program and not line.files and not line.sections:
        return 0
    jobs, defaults = load_jobs(line)
    if not jobs:
        raise ConfigurationError("No job(s) defined (see --help)")
    _check_number(jobs, program.get("max-jobs"))
    for job in jobs:
        job.options.place_logs(program.get("aux-path", ""))
    if "showcmd" in program:
        for job in jobs:
            print(f"fio.py {command_line(job)}", file=out)
        return 0
    if "readonly" in program:
        _refuse_writers(jobs)
    if "parse-only" in program:
        return 0
    with contextlib.ExitStack() as stack:
        if program.get("output"):
            out = stack.enter_context(open(program["output"], "w"))
        return _run(jobs, defaults, report, opener, out, apart=bool(program.get("output")))


@attrs.define
class Report:
    """The output that the program's own options request."""

    formats: list[str]
    terse_version: int
    eta: EtaLine
    status_interval: float
    aggregate: AggregateLog | None
    debug: frozenset[str]

    @classmethod
    def of(cls, program: dict[str, str]) -> Report:
        newline = _seconds(program, "eta-newline")
        when = _choice(program, "eta", "auto", ("auto", "always", "never"))
        every = _seconds(program, "eta-interval", 0.25) or 1.0
        return cls(
            _formats(program),
            int(_choice(program, "terse-version", "3", ("2", "3", "4", "5"))),
            EtaLine("always" if newline and when == "auto" else when, newline=newline, every=every),
            _seconds(program, "status-interval", 0.1),
            AggregateLog(program.get("aux-path", "")) if "bandwidth-log" in program else None,
            frozenset(program.get("debug", "").split(",")),
        )

    def write(self, stats: list[JobStats], defaults: dict[str, str], when: float, out: TextIO) -> None:
        """All formats, the text last, as people read from the end."""
        if "terse" in self.formats and "normal" not in self.formats:
            out.write(output_terse.render(stats, self.terse_version))
        for name in ("json", "json+"):
            if name in self.formats:
                out.write(output_json.render(stats, defaults, when, bins=name == "json+"))
        if "normal" in self.formats:
            out.write(output_text.render(stats, when))
            if "terse" in self.formats:
                out.write(output_terse.render(stats, self.terse_version))
        out.flush()


def _run(
    jobs: list[Job],
    defaults: dict[str, str],
    report: Report,
    opener: Opener,
    out: TextIO,
    *,
    apart: bool,
) -> int:
    text = "normal" in report.formats

    def log(message: str) -> None:
        print(message, file=out if text else sys.stderr, flush=True)

    if text:
        apart = opener is open_device and not any(
            uri.startswith(("tcp:", "kernel:", "file:")) for uri in _devices(jobs)
        )
        _print_banner(jobs, log, apart)
    # Next to a machine-readable report, not in it, and not among errors if there is another place.
    beside = out if text else sys.stdout if apart else sys.stderr
    for note in dict.fromkeys(_notes(jobs)):
        print(f"fio: {note}", file=beside, flush=True)

    def status(stats: list[JobStats]) -> None:
        report.write(stats, defaults, time.time(), out)

    run = Run(
        jobs,
        opener=opener,
        eta=report.eta,
        log=log,
        status=status if report.status_interval else None,
        status_interval=report.status_interval,
        aggregate=report.aggregate,
        debug=report.debug,
    )
    outcome = uvloop.run(run.run())
    report.write(outcome.stats, defaults, time.time(), out)
    return _exit_code(outcome)


def _notes(jobs: list[Job]) -> Iterator[str]:
    """Options that are interpreted differently than written, each once."""
    for job in jobs:
        texts = job.defaults | job.texts
        asked = job.options.asked_engine
        if note := engine_names.note(asked, parse_size(texts.get("iodepth", "1"))):
            yield note
        if (cached := cache_note(texts)) is not None:
            yield cached


def _check_number(jobs: list[Job], most: str | None) -> None:
    if most is not None and thread_count(jobs) > parse_size(most):
        raise ConfigurationError(f"maximum number of jobs ({most}) reached: {thread_count(jobs)} are defined")


def _exit_code(outcome: Outcome) -> int:
    if outcome.failed:
        return 1
    return 130 if outcome.interrupted else 0


def _devices(jobs: list[Job]) -> set[str]:
    return {uri for job in jobs for uri in job.options.filename}


def _print_banner(jobs: list[Job], log: Callable[[str], None], apart: bool) -> None:
    for job, groupid in zip(jobs, group_ids(jobs), strict=True):
        log(output_text.job_banner(job.options, groupid))
        if job.options.numjobs > 1:
            log("...")
    log(output_json.FIO_VERSION)
    processes = sum(thread_count(wants_processes(phase)) for phase in phases_of(jobs)) if apart else 0
    log(output_text.starting_line(thread_count(jobs) - processes, processes))


def _formats(program: dict[str, str]) -> list[str]:
    if "minimal" in program:
        return ["terse"]
    formats = program.get("output-format", "normal").split(",")
    for name in formats:
        if name not in FORMATS:
            raise ConfigurationError(f"output-format={name}: not one of {', '.join(FORMATS)}")
    if "append-terse" in program and "terse" not in formats:
        formats.append("terse")
    return formats


def _seconds(program: dict[str, str], name: str, least: float = 0.0) -> float:
    """0 where it isn't given. A number without a unit: seconds; of fio's --eta-interval:
    milliseconds.
    """
    text = program.get(name)
    if text is None:
        return 0.0
    try:
        seconds = parse_time(text, "ms" if name == "eta-interval" else "s")
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}={text}: {error}") from None
    if seconds < least:
        raise ConfigurationError(f"{name}={text}: less than {least:g} s")
    return seconds


def _choice(program: dict[str, str], name: str, default: str, allowed: Sequence[str]) -> str:
    value = program.get(name, default)
    if value not in allowed:
        raise ConfigurationError(f"{name}={value}: not one of {', '.join(allowed)}")
    return value


def _refuse_writers(jobs: Sequence[Job]) -> None:
    for job in jobs:
        pattern = job.options.rw
        if (pattern.writes or pattern.trims) and not job.options.verify_only:
            raise ConfigurationError(
                f"job {job.name!r} has write bit set, but fio is in read-only mode (rw={pattern.name})"
            )
