"""The output of --help, --cmdhelp and --cmdhelp=OPTION."""

from __future__ import annotations

from nvme_async.fio.engine_names import MAPPED, OWN
from nvme_async.fio.known import ACCEPTED
from nvme_async.fio.options import canonical, describe, help_lines

HELP = """\
A benchmark with fio's job language and fio's reports, which awaits each I/O from asyncio.

  fio.py [options] [job options] <job file(s)>

  fio.py --filename=emulated:size=1GiB --name=r --rw=randread --bs=4k --iodepth=32 --time_based --runtime=5
  fio.py --filename=pci:0000:01:00.0 published.fio
  fio.py --filename=pci:0000:01:00.0 --name=w --rw=randwrite --size=1g --verify=crc32c --output-format=json
  fio.py benchmarks/jobs/quick.fio

Devices are URIs: pci:0000:01:00.0, kernel:/dev/ng0n1, file:/path, emulated:size=1GiB. Several in one job are
separated by |, or by : where the next one's scheme follows. With several devices, in one job or in all, a manager has
them (nvme_async.Manager) and the jobs use its handles. WRITING JOBS DESTROY WHAT IS ON THE DEVICE.

Options before the first --name= are for all jobs. They override what job files say, so a published file runs on any
device with --filename= in front of it; a job file of "-" is standard input.

Engines: --ioengine=await has iodepth coroutines, each awaiting one I/O at a time, the way an application does;
--ioengine=many awaits batches. The kernel's engines (libaio, io_uring, psync, ...) are taken as await, with one I/O
at a time where they have one. Each job, and each of its numjobs clones, has an event loop and an I/O queue pair of its
own. Jobs that run at the same time are processes, as in fio, to which this one lends queue pairs (docs/sharing.md);
with --thread, and on devices that can't be shared (tcp:, kernel:), they are threads of this one, as a job that runs
alone is. A job file has [sections] like fio's; sizes are powers of 1024. Options of files, page cache and kernel, which
a device has not, are accepted and change nothing; those that would change what is measured, and that this program has
not, are refused by name.

Where it differs from fio: an await is submission and completion in one, so lat equals clat and there is no slat
unless slat_percentiles or write_lat_log ask for it; I/O is always direct (direct=0 only leads
to a line that says so); verify checks everything that was
written, whatever the runtime, and goes on after a bad block unless verify_fatal is set; verify_only needs a job that
was ended by its size or number_ios; Ki and KiB are 1024.

Exit code: 0 done, 1 an error, bad options or bad data, 130 interrupted (with results of what was done).

Program options:
  --output=FILE            write the report there
  --output-format=FORMAT   normal, terse, json or json+, several separated by commas [normal]
  --eta=WHEN               auto (on a terminal), always, never
  --append-terse           the terse form after the normal one
  --terse-version=N        2, 3, 4 or 5 [3]
  --status-interval=TIME   report what there is so far, each TIME
  --eta-newline=TIME       a new ETA line each TIME, not over the last one
  --eta-interval=TIME      milliseconds between ETA lines [1000]
  --bandwidth-log          write agg-read_bw.log, agg-write_bw.log, agg-trim_bw.log: of all jobs, each second
  --section=NAME           run only that section of the job files; may be given several times
  --max-jobs=N             refuse more jobs than that, clones counted
  --readonly               refuse jobs that write or trim
  --parse-only, --showcmd  check the jobs; print them as command lines
  --debug=parse,random     print options as they are taken, and the seeds of jobs
  --cmdhelp=OPTION         explain one job option, or list them all; --enghelp: the engines
  --version, --help
  --minimal                the same as --output-format=terse
  --aux-path=FOLDER        where log files go

Job options [default]:
"""


def program_help() -> str:
    """The whole."""
    return HELP + "\n".join(help_lines())


def option_help(name: str) -> str:
    """Of one job option in fio's form, or a line for each."""
    if name in ("", "all"):
        return "\n".join(help_lines())
    known = canonical(name)
    if known in ACCEPTED:
        because = ACCEPTED[known].because or "an await has nothing of the kind between it and the drive"
        return f"{known:>20}: accepted; {because}"
    help_text, aliases, default, bare = describe(known)
    lines = [f"{known:>20}: {help_text}"]
    if aliases:
        lines.append(f"{'alias':>20}: {', '.join(aliases)}")
    if bare is not None:
        lines.append(f"{'alone':>20}: {bare}")
    lines.append(f"{'default':>20}: {default or 'no default'}")
    if known == "ioengine":
        lines.append(f"{'valid values':>20}: {', '.join([*OWN, *sorted(MAPPED)])}")
    return "\n".join(lines)
