"""Job files and the command line → jobs.

A file has [sections]: each is a job, and [global] holds defaults for the jobs after it. On the
command line
`--name=` begins a job; options before the first one are defaults for all, those in job files
included.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.options import Options, canonical, is_flag, resolve

_MAX_INCLUDES = 16


@attrs.define
class Job:
    """One job as written: `texts` are its own options in their order, `defaults` those from
    [global].
    """

    options: Options
    texts: dict[str, str]
    defaults: dict[str, str]

    @property
    def name(self) -> str:
        return self.options.name


@attrs.define
class CommandLine:
    """What was typed: the program's own options, job files, defaults, and jobs with their options."""

    program: dict[str, str] = attrs.Factory(dict)
    files: list[str] = attrs.Factory(list)
    defaults: dict[str, str] = attrs.Factory(dict)
    sections: list[dict[str, str]] = attrs.Factory(list)


# The program's own options and whether they take a value. The rest of fio's are refused by name.
PROGRAM_OPTIONS = {
    "help": False,
    "version": False,
    "cmdhelp": False,
    "parse-only": False,
    "showcmd": False,
    "readonly": False,
    "minimal": False,
    "output": True,
    "output-format": True,
    "terse-version": True,
    "eta": True,
    "section": True,
}
KNOWN_PROGRAM_OPTIONS = frozenset(
    """
    debug merge-blktrace-only bandwidth-log append-terse cpuclock-test crctest enghelp status-interval
    eta-newline alloc-size warnings-fatal max-jobs server daemonize client remote-config idle-prof inflate-log
    trigger-file trigger-timeout trigger trigger-remote aux-path eta-interval
    """.split()  # noqa: SIM905
)


def parse_arguments(arguments: Sequence[str]) -> CommandLine:
    """Sorts the command line. Values are not parsed yet. Raises ConfigurationError naming the
    option.
    """
    line = CommandLine()
    section = line.defaults
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "-v"):
            argument = {"-h": "--help", "-v": "--version"}[argument]
        if argument == "--":
            line.files += rest
            break
        if not argument.startswith("-") or argument == "-":
            line.files.append(argument)
            continue
        name, separator, value = argument.lstrip("-").partition("=")
        if name in PROGRAM_OPTIONS:
            if PROGRAM_OPTIONS[name] and not separator:
                value = _take(name, rest)
            line.program[name] = value
            continue
        if name in KNOWN_PROGRAM_OPTIONS:
            raise ConfigurationError(f"option '--{name}' is known to fio, not supported here")
        known = canonical(name)
        if not separator:
            value = "1" if is_flag(name) else _take(name, rest)
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


def _substitute(text: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match.group(1))
        if found is None:
            raise ConfigurationError(f"{where}: environment variable {match.group(1)} is not set")
        return found

    return re.sub(r"\$\{(\w+)\}", value, text)


def read_sections(path: str, depth: int = 0) -> list[tuple[str, dict[str, str]]]:
    """The sections of a job file in their order, canonical option names with their texts."""
    if depth > _MAX_INCLUDES:
        raise ConfigurationError(f"{path}: more than {_MAX_INCLUDES} files include each other")
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"unable to open {path!r} job file: {error}") from None
    sections: list[tuple[str, dict[str, str]]] = []
    for number, raw in enumerate(lines, 1):
        where = f"{path}:{number}"
        text = re.split("[#;]", raw, maxsplit=1)[0].strip()
        if not text:
            continue
        if text.startswith("["):
            if not text.endswith("]") or len(text) < 3:
                raise ConfigurationError(f"{where}: {text!r} is not a [section]")
            sections.append((text[1:-1].strip(), {}))
            continue
        if text.startswith("include "):
            included = Path(path).parent / text[len("include ") :].strip()
            sections += read_sections(str(included), depth + 1)
            continue
        if not sections:
            raise ConfigurationError(f"{where}: {text!r} stands before the first [section]")
        name, separator, value = (part.strip() for part in text.partition("="))
        try:
            known = canonical(name)
            if not separator and not is_flag(name):
                raise ConfigurationError(f"option {name!r} needs a value")
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
        sections[-1][1][known] = _substitute(value, where) if separator else "1"
    return sections


def load_jobs(line: CommandLine) -> tuple[list[Job], dict[str, str]]:
    """All jobs in their order, and the options of the last [global], for the report."""
    defaults = dict(line.defaults)
    wanted = line.program.get("section")
    jobs = [_job(section, defaults) for section in line.sections]
    for path in line.files:
        for name, texts in read_sections(path):
            if name == "global":
                defaults |= texts
            elif wanted is None or name == wanted:
                jobs.append(_job({"name": name} | texts, defaults))
    if not jobs and line.defaults and not line.files:
        raise ConfigurationError("no job: --name=NAME is missing")
    return jobs, defaults


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
