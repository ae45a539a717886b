"""The program: `benchmarks/fio.py` and `nvme-async bench`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import uvloop

from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.fio import output_json, output_terse, output_text
from nvme_async.fio.eta import EtaLine
from nvme_async.fio.jobfile import Job, command_line, load_jobs, parse_arguments
from nvme_async.fio.options import help_lines
from nvme_async.fio.run import Opener, Outcome, Run, group_ids, open_device, thread_count

FORMATS = ("normal", "terse", "json", "json+")

HELP = """\
A benchmark with fio's job language and fio's reports, which awaits each I/O from asyncio.

  fio.py [options] [job options] <job file(s)>

  fio.py --filename=emulated:size=1GiB --name=r --rw=randread --bs=4k --iodepth=32 --time_based --runtime=5
  fio.py --filename=pci:0000:01:00.0 --name=w --rw=randwrite --size=1g --verify=crc32c --output-format=json
  fio.py benchmarks/jobs/quick.fio

Devices are URIs: pci:0000:01:00.0, vfio-user:/run/controller.sock, emulated:size=1GiB. Several in one job are
separated by |, or by : where the next one's scheme follows. With several devices, in one job or in all, a manager has
them (nvme_async.Manager) and the jobs use its handles. WRITING JOBS DESTROY WHAT IS ON THE DEVICE.

Engines: --ioengine=await has iodepth coroutines, each awaiting one I/O at a time, the way an application does;
--ioengine=many awaits batches. Each job, and each of its numjobs clones, is a thread with an event loop and an I/O
queue pair of its own. A job file has [sections] like fio's; sizes are powers of 1024. Options that fio has and
this program has not are refused by name.

Where it differs from fio: an await is submission and completion in one, so there is no slat and lat equals clat;
direct=1 and thread=1 always; verify checks everything that was written, whatever the runtime, and goes on after a
bad block unless verify_fatal is set; verify_only needs a job that was ended by its size or number_ios; Ki and KiB
are 1024.

Exit code: 0 done, 1 an error, bad options or bad data, 130 interrupted (with results of what was done).

Program options:
  --output=FILE            write the report there
  --output-format=FORMAT   normal, terse, json or json+, several separated by commas [normal]
  --eta=WHEN               auto (on a terminal), always, never
  --section=NAME           run only that section of the job files
  --readonly               refuse jobs that write or trim
  --parse-only, --showcmd  check the jobs; print them as command lines
  --version, --help
  --minimal                the same as --output-format=terse

Job options [default]:
"""


def version() -> str:
    try:
        return importlib.metadata.version("nvme_async")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0"


def main(arguments: Sequence[str] | None = None, *, opener: Opener = open_device, stdout: TextIO | None = None) -> int:
    """Runs the program and returns its exit code. Nothing is raised but what is a defect."""
    out = stdout or sys.stdout
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments, opener, out)
        out.flush()
        return code
    except BrokenPipeError:
        # The report's reader has left, as `| head` does: what Python would flush at its end goes
        # nowhere, without a word.
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
        print(f"{output_json.FIO_VERSION} (nvme_async {version()})", file=out)
        return 0
    if "help" in program or "cmdhelp" in program:
        print(HELP + "\n".join(help_lines()), file=out)
        return 0
    formats = _formats(program)
    eta = EtaLine(_choice(program, "eta", "auto", ("auto", "always", "never")))
    jobs, defaults = load_jobs(line)
    if not jobs:
        raise ConfigurationError("No job(s) defined (--help tells how)")
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
        return _run(jobs, defaults, formats, eta, opener, out)


def _run(
    jobs: list[Job],
    defaults: dict[str, str],
    formats: list[str],
    eta: EtaLine,
    opener: Opener,
    out: TextIO,
) -> int:
    text = "normal" in formats

    def log(message: str) -> None:
        print(message, file=out if text else sys.stderr, flush=True)

    if text:
        _print_banner(jobs, log)
    outcome = uvloop.run(Run(jobs, opener=opener, eta=eta, log=log).run())
    when = time.time()
    if "terse" in formats:
        out.write(output_terse.render(outcome.stats))
    for name in ("json", "json+"):
        if name in formats:
            out.write(output_json.render(outcome.stats, defaults, when, bins=name == "json+"))
    if text:
        out.write(output_text.render(outcome.stats, when))
    out.flush()
    return _exit_code(outcome)


def _exit_code(outcome: Outcome) -> int:
    if outcome.failed:
        return 1
    return 130 if outcome.interrupted else 0


def _print_banner(jobs: list[Job], log: Callable[[str], None]) -> None:
    for job, groupid in zip(jobs, group_ids(jobs), strict=True):
        log(output_text.job_banner(job.options, groupid))
        if job.options.numjobs > 1:
            log("...")
    log(output_json.FIO_VERSION)
    log(output_text.starting_line(thread_count(jobs)))


def _formats(program: dict[str, str]) -> list[str]:
    if "minimal" in program:
        return ["terse"]
    if program.get("terse-version", "3") != "3":
        raise ConfigurationError(f"terse-version={program['terse-version']}: only 3 is supported here")
    formats = program.get("output-format", "normal").split(",")
    for name in formats:
        if name not in FORMATS:
            raise ConfigurationError(f"output-format={name}: not one of {', '.join(FORMATS)}")
    return formats


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
