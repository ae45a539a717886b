"""In-place exec: the same process, a new program, controllers that keep running.

The descriptors stay open across execve(); one environment variable names them and their process, so
that no child of the successor claims them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from nvme_async.errors import ConfigurationError, InvalidSavedState
from nvme_async.keepalive.bundle import Bundle

if TYPE_CHECKING:
    from nvme_async.keepalive.depositor import Depositor

log: logging.Logger = logging.getLogger("nvme_async")

VARIABLE = "NVME_ASYNC_INHERITED"
VERSION = 1
_ITERATIONS = 6
"""Of the event loop, before it ends with this program: waiters of the saved controllers end in the
third, and what waits for those after it.
"""
FIRST_FD = 3  # never over standard input, output and error

_waiting: dict[str, Bundle] = {}  # by URI


def describe(bundles: Iterable[Bundle]) -> str:
    """The variable's value for these bundles' descriptors as they are numbered in this process."""
    controllers = [{"uri": bundle.uri, "descriptors": bundle.descriptors} for bundle in bundles]
    return json.dumps({"version": VERSION, "pid": os.getpid(), "controllers": controllers})


def _check(entry: Any) -> tuple[str, dict[str, int]]:
    uri, descriptors = entry["uri"], entry["descriptors"]
    if not isinstance(uri, str) or not isinstance(descriptors, dict):
        raise TypeError("uri must be a string, descriptors an object")
    for name, fd in descriptors.items():
        if not isinstance(fd, int) or isinstance(fd, bool) or fd < FIRST_FD:
            raise ValueError(f"descriptor {name} is {fd!r}")
        os.fstat(fd)  # OSError if it isn't open
    return uri, descriptors


def adopt_environment() -> None:
    """Reads the variable, removes it from the environment, and makes its descriptors close-on-exec.
    Once: later calls find nothing.

    Raises InvalidSavedState for an invalid variable; nothing is closed then, because the meaning of
    the numbers is unknown. A variable for another process (inherited from a parent) is ignored.
    """
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return
    try:
        value = json.loads(text)
        if value["pid"] != os.getpid():
            return
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']!r}, this release reads {VERSION}")
        entries = [_check(entry) for entry in value["controllers"]]
        numbers = [fd for _, descriptors in entries for fd in descriptors.values()]
        if len(set(numbers)) != len(numbers):
            raise ValueError("a descriptor is named twice")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InvalidSavedState(f"{VARIABLE}: {error!r}") from None
    for uri, descriptors in entries:
        for fd in descriptors.values():
            os.set_inheritable(fd, False)
        keep(Bundle(uri, b"", descriptors))


def keep(bundle: Bundle) -> None:
    """For take() and inherited(), which own it from now on."""
    older = _waiting.pop(bundle.uri, None)
    if older is not None:
        older.close()
    _waiting[bundle.uri] = bundle


def inherited() -> dict[str, Bundle]:
    """The bundles by URI that an exec left for this process and that have not been taken yet.
    The caller owns them: restore or close them.
    """
    adopt_environment()
    bundles = dict(_waiting)
    _waiting.clear()
    return bundles


def take(uri: str) -> Bundle | None:
    """The inherited bundle of one controller, now owned by the caller; None if there is none."""
    adopt_environment()
    return _waiting.pop(uri, None)


def is_waiting(uri: str) -> bool:
    """Is there something to take()?"""
    adopt_environment()
    return uri in _waiting


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The path of an executable, searched as by a shell. ConfigurationError if there is none,
    before anything stops.
    """
    path = shutil.which(name, path=environ.get("PATH", os.defpath))
    if path is None:
        raise ConfigurationError(f"{name!r} is not an executable program")
    return path


def replace(bundles: Sequence[Bundle], argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """execve() with the descriptors of `bundles`, which belong to it. Doesn't return.

    If execve() itself fails (OSError), the bundles wait for take() and inherited() in this process.
    """
    program = find_program(argv[0], environ)
    descriptors = [fd for bundle in bundles for fd in bundle.descriptors.values()]
    text = describe(bundles)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for fd in descriptors:
            os.set_inheritable(fd, True)
        os.execve(program, list(argv), {**environ, VARIABLE: text})
    except OSError:
        for fd in descriptors:
            os.set_inheritable(fd, False)
        for bundle in bundles:
            keep(bundle)
        raise


class Saves(Protocol):
    """The part of a controller that an exec needs."""

    depositor: Depositor | None

    async def save(self) -> Bundle: ...


async def execute(controllers: Sequence[Saves], argv: Sequence[str], env: Mapping[str, str] | None = None) -> NoReturn:
    """Saves the controllers and becomes another program with the same process id. Doesn't
    return.

    argv: as for os.execvp(); env: the new environment, by default this one. The successor opens the
        same URIs (nvme_async.open finds what
    it inherited), or calls inherited(). Other controllers of this process should be closed before:
        an exec ends them like a death.

    Raises ConfigurationError if there is no such program, before anything has changed; save()'s
    exceptions, after the already saved controllers were restored; OSError if execve() fails: the
    controllers are released by then, and open() in this process finds them.
    """
    environ = dict(os.environ if env is None else env)
    if not argv:
        raise ConfigurationError("argv is empty")
    find_program(argv[0], environ)
    bundles: list[Bundle] = []
    try:
        for controller in controllers:
            if controller.depositor is not None:
                controller.depositor.stays = True
            bundles.append(await controller.save())
    except BaseException:
        for bundle in bundles:
            log.warning("%s: released for an exec that failed; open it again", bundle.uri)
            keep(bundle)
        raise
    for _ in range(_ITERATIONS):
        await asyncio.sleep(0)
    replace(bundles, argv, environ)
