"""The command line → jobs, including those of its job files.

`--name=` starts a job; options before the first one apply to all. They are the defaults of the jobs
on the command line, and override job files: so a published file runs on any device with --filename=
before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.expressions import substitute
from nvme_async.fio.jobfile import read_sections
from nvme_async.fio.options import Options, bare_text, canonical, resolve
from nvme_async.fio.parsers import steady_state


@attrs.define
class Job:
    """One job as written: `texts` are its own options in their order, `defaults` those from
    [global] and the command line.
    """

    options: Options
    texts: dict[str, str]
    defaults: dict[str, str]

    @property
    def name(self) -> str:
        return self.options.name


@attrs.define
class CommandLine:
    """The command line: the program's own options, job files, defaults, and jobs with their
    options.
    """

    program: dict[str, str] = attrs.Factory(dict)
    wanted_sections: list[str] = attrs.Factory(list)
    files: list[str] = attrs.Factory(list)
    defaults: dict[str, str] = attrs.Factory(dict)
    sections: list[dict[str, str]] = attrs.Factory(list)


# The program's own options: "" has no value, "=" must have one, "?" may have one (behind = only).
PROGRAM_OPTIONS = {
    "help": "",
    "version": "",
    "cmdhelp": "?",
    "enghelp": "?",
    "parse-only": "",
    "showcmd": "",
    "readonly": "",
    "minimal": "",
    "append-terse": "",
    "bandwidth-log": "",
    "warnings-fatal": "",
    "output": "=",
    "output-format": "=",
    "terse-version": "=",
    "eta": "=",
    "eta-newline": "=",
    "eta-interval": "=",
    "status-interval": "=",
    "section": "=",
    "max-jobs": "=",
    "alloc-size": "=",
    "aux-path": "=",
    "debug": "=",
}
# fio's others are refused by name.
KNOWN_PROGRAM_OPTIONS = frozenset(
    """
    merge-blktrace-only cpuclock-test crctest server daemonize client remote-config idle-prof inflate-log
    trigger-file trigger-timeout trigger trigger-remote
    """.split()  # noqa: SIM905
)
_SHORT = {"-h": "--help", "-v": "--version", "-c": "--cmdhelp", "-i": "--enghelp", "-m": "--minimal", "-o": "--output"}


def parse_arguments(arguments: Sequence[str]) -> CommandLine:
    """Sorts the command line. Values are not parsed yet. Raises ConfigurationError naming the
    option.
    """
    line = CommandLine()
    section = line.defaults
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        argument = _SHORT.get(argument, argument)
        if argument == "--":
            line.files += rest
            break
        if not argument.startswith("-") or argument == "-":
            line.files.append(argument)
            continue
        name, separator, value = argument.lstrip("-").partition("=")
        if name in PROGRAM_OPTIONS:
            if PROGRAM_OPTIONS[name] == "=" and not separator:
                value = _take(name, rest)
            if name == "section":
                line.wanted_sections.append(value)
            line.program[name] = value
            continue
        if name in KNOWN_PROGRAM_OPTIONS:
            raise ConfigurationError(f"fio's option '--{name}' is not supported here")
        known = canonical(name, PROGRAM_OPTIONS)
        bare = bare_text(name)
        if separator:
            value = substitute(value)
        elif bare is None:
            value = _take(name, rest)
        elif bare == "1" and rest and rest[0] in ("0", "1"):
            value = rest.pop(0)  # --direct 1
        else:
            value = bare
        if known == "name":
            if value == "global":
                section = line.defaults
                continue
            section = {}
            line.sections.append(section)
        section[known] = value
    return line


def _take(name: str, rest: list[str]) -> str:
    if not rest:
        raise ConfigurationError(f"option '--{name}' needs a value")
    return rest.pop(0)


def load_jobs(line: CommandLine) -> tuple[list[Job], dict[str, str]]:
    """All jobs in their order, and the options of the last [global], for the report.

    Raises ConfigurationError, also if no file has a requested --section.
    """
    jobs = [_job(section, line.defaults) for section in line.sections]
    defaults: dict[str, str] = {}
    wanted, names = line.wanted_sections, set()
    for path in line.files:
        for name, texts in read_sections(path):
            names.add(name)
            if name == "global":
                defaults |= texts
            elif not wanted or name in wanted:
                own = {key: text for key, text in texts.items() if key not in line.defaults}
                jobs.append(_job({"name": name} | own, defaults | line.defaults))
    for name in wanted:
        if line.files and name not in names:
            near = difflib.get_close_matches(name, names - {"global"}, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"no section {name!r} in {', '.join(line.files)}{hint}")
    if not jobs and line.defaults and not line.files:
        raise ConfigurationError("no job: --name=NAME is missing")
    return jobs, defaults | line.defaults


def _job(texts: dict[str, str], defaults: dict[str, str]) -> Job:
    try:
        options = resolve(defaults | texts)
    except ConfigurationError as error:
        raise ConfigurationError(f"job {texts['name']!r}: {error}") from None
    return Job(options=options, texts=dict(texts), defaults=dict(defaults))


def command_line(job: Job) -> str:
    """The job as options of a command line (--showcmd)."""
    texts = {"name": job.name} | job.defaults | job.texts
    return " ".join(f"--{name}={value}" for name, value in texts.items())


def debug_lines(line: CommandLine) -> Iterator[str]:
    """--debug=parse: each option of the command line as it was taken; of steadystate, in fio's
    words.
    """
    for texts in (line.defaults, *line.sections):
        for name, text in texts.items():
            yield f"parse    {name}={text}"
            if name == "steadystate":
                yield f"parse    set steady state {steady_state(text).threshold}"
