"""Job files: sections in their order, and the options of each as text.

A file has [sections]: each is a job, and [global] holds defaults for the jobs after it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.expressions import substitute
from nvme_async.fio.options import bare_text, canonical

_MAX_INCLUDES = 16


class _Located(ConfigurationError):
    """An error with its place; an including file adds nothing to it."""


@attrs.define
class _Reader:
    """The sections read so far. An include continues the section that it stands in."""

    sections: list[tuple[str, dict[str, str]]] = attrs.Factory(list)

    def read(self, path: str, depth: int = 0) -> None:
        if depth > _MAX_INCLUDES:
            raise _Located(f"{path}: includes are nested more than {_MAX_INCLUDES} deep")
        for number, raw in enumerate(_lines(path), 1):
            text = re.split("[#;]", raw, maxsplit=1)[0].strip()
            if not text:
                continue
            try:
                self._line(text, path, depth)
            except ConfigurationError as error:
                if isinstance(error, _Located):
                    raise
                raise _Located(f"{'standard input' if path == '-' else path}:{number}: {error}") from None

    def _line(self, line: str, path: str, depth: int) -> None:
        if line.startswith("["):
            if not line.endswith("]") or len(line) < 3:
                raise ConfigurationError(f"{line!r} is not a [section]")
            self.sections.append((line[1:-1].strip(), {}))
            return
        if match := re.match(r"include\s+(.+)", line):
            self.read(_included(path, substitute(match[1].strip())), depth + 1)
            return
        if not self.sections:
            raise ConfigurationError(f"{line!r} precedes the first [section]")
        name, separator, value = (part.strip() for part in line.partition("="))
        known = canonical(name)
        text = substitute(value) if separator else bare_text(name)
        if text is None:
            raise ConfigurationError(f"option {name!r} needs a value")
        self.sections[-1][1][known] = text


def _lines(path: str) -> list[str]:
    try:
        return (sys.stdin.read() if path == "-" else Path(path).read_text()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"unable to open {path!r} job file: {error}") from None


def _included(path: str, name: str) -> str:
    """Next to the file that includes it, otherwise in the working directory, as in fio."""
    beside = Path(path).parent / name
    return str(beside) if beside.exists() or not Path(name).exists() else name


def read_sections(path: str) -> list[tuple[str, dict[str, str]]]:
    """The sections of a job file in their order, canonical option names with their texts. "-" is
    standard input. Raises ConfigurationError naming file and line.
    """
    reader = _Reader()
    reader.read(path)
    return reader.sections
