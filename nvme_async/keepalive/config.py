"""Whether keepalive is on, the pool's size, and the reasons: from arguments, command line,
environment and the machine.

Precedence, separately for each setting: an argument of open() > an option of the command line > the
environment > inference.

| setting        | argument           | command line           | environment                       |
| -------------- | ------------------ | ---------------------- | --------------------------------- |
| keepalive      | keepalive=         | --keep-alive           | OPENHCL_NVME_KEEP_ALIVE           |
| off in any case| disable_keepalive= | --disable-keep-alive   | OPENHCL_DISABLE_NVME_KEEP_ALIVE   |
| pool size      | pool_pages=        | --pool-pages           | OPENHCL_ENABLE_VTL2_GPA_POOL, else|
|                |                    |                        | OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG |
| pool's nodes   | pool_numa=         | --pool-numa            | OPENHCL_VTL2_GPA_POOL_NUMA        |
| VFIO driver    | vfio=              | --vfio/--no-vfio       | OPENHCL_NVME_VFIO                 |
| FLR at open    | always_flr=        | --always-flr/--no-...  | OPENHCL_NVME_ALWAYS_FLR           |
| fused          | fused=             | --fused/--no-fused     |                                   |

Inferred if unset: keepalive "host" if there is a holder and "privatepool" if there is a pool; a
pool of the default size if keepalive can use it; no particular nodes; VFIO used; no FLR; fused by
the device's class.

An invalid value is an error in an argument or on the command line; in the environment, which may be
meant for another release, it switches off the feature, with a warning that quotes it.
"""

from __future__ import annotations

import enum
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.keepalive.sizing import DRIVES, Wanted, size_pool
from nvme_async.spec.registers import PAGE

log: logging.Logger = logging.getLogger("nvme_async")

KEEP_ALIVE = "OPENHCL_NVME_KEEP_ALIVE"
VFIO = "OPENHCL_NVME_VFIO"
POOL = "OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG"
POOL_OVERRIDE = "OPENHCL_ENABLE_VTL2_GPA_POOL"
DISABLE = "OPENHCL_DISABLE_NVME_KEEP_ALIVE"
NUMA = "OPENHCL_VTL2_GPA_POOL_NUMA"
ALWAYS_FLR = "OPENHCL_NVME_ALWAYS_FLR"
VARIABLES = (KEEP_ALIVE, DISABLE, POOL_OVERRIDE, POOL, NUMA, VFIO, ALWAYS_FLR)

DEFAULT_POOL_PAGES = 8192
MAX_POOL_PAGES = 1 << 28  # 1 TiB

_SETTINGS = "[disabled,](host|nohost),(privatepool|noprivatepool), enabled or disabled"


@attrs.frozen
class Setting:
    """A value of OPENHCL_NVME_KEEP_ALIVE. Only host and private pool together enable keepalive."""

    host: bool
    private_pool: bool
    disabled: bool = False

    @property
    def enabled(self) -> bool:
        return self.host and self.private_pool and not self.disabled

    def __str__(self) -> str:
        if self.disabled:
            return "disabled"
        return f"{'host' if self.host else 'nohost'},{'privatepool' if self.private_pool else 'noprivatepool'}"


DISABLED = Setting(host=False, private_pool=False, disabled=True)


def parse_setting(text: str) -> Setting:
    """From OPENHCL_NVME_KEEP_ALIVE's values, case-insensitive. ConfigurationError quotes
    anything else.
    """
    words = text.lower()
    if words == "disabled" or words.startswith("disabled,"):
        return DISABLED
    if words == "enabled":
        return Setting(host=True, private_pool=True)
    match = re.fullmatch(r"(no)?host,(no)?privatepool", words, re.ASCII)
    if match is None:
        raise ConfigurationError(f"{text!r} is not a keepalive setting; the form is {_SETTINGS}")
    return Setting(host=match[1] is None, private_pool=match[2] is None)


def parse_pool_pages(text: str | int) -> int | str:
    """From a count of 4 KiB pages, "off" (0), or the name of a rule that computes it: "release",
    "debug". ConfigurationError quotes anything else.
    """
    if isinstance(text, str):
        if text.lower() == "off":
            return 0
        if text.lower() in DRIVES:
            return text.lower()
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII):
            raise ConfigurationError(
                f"{text!r} is not a size of a private pool: give a count of {PAGE}-byte pages, off, release or debug"
            )
        text = int(text)
    if not 0 <= text <= MAX_POOL_PAGES:
        raise ConfigurationError(f"a private pool of {text} pages: must be 0 to {MAX_POOL_PAGES}")
    return text


def parse_disable(text: str) -> bool:
    """Any value except 0 switches keepalive off."""
    return text != "0"


def parse_numa(text: str) -> str:
    """From "split", case-insensitive. ConfigurationError quotes anything else."""
    if text.lower() != "split":
        raise ConfigurationError(f"{text!r} is not a way to spread a pool over NUMA nodes; the only one is split")
    return "split"


def parse_always_flr(text: str) -> bool:
    """From 1 or 0. ConfigurationError quotes anything else."""
    if text not in ("0", "1"):
        raise ConfigurationError(f"{text!r} must be 1 (a function level reset at each open) or 0")
    return text == "1"


def parse_vfio(text: str) -> bool:
    """From 1, 0, true or false, case-insensitive. ConfigurationError quotes anything else."""
    words = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ConfigurationError(f"{text!r} must be 1 (true) or 0 (false)")
    return words[text.lower()]


@attrs.define
class CommandLine:
    """The options of a command line; None: not given. They apply to every controller that is
    opened within `with_command_line()`, in any thread.
    """

    keepalive: Setting | None = None
    pool_pages: int | str | None = None
    vfio: bool | None = None
    keeper: str | None = None
    disable_keepalive: bool | None = None
    pool_numa: str | None = None
    always_flr: bool | None = None
    fused: bool | None = None


command_line: CommandLine = CommandLine()
"""That of the command that runs in this process; without one, no option is given."""


@contextmanager
def with_command_line(options: CommandLine) -> Iterator[None]:
    """These are the command line's until the end of the block: what a program opens after a
    command, or the next command in one process, doesn't have them.
    """
    global command_line
    before, command_line = command_line, options
    try:
        yield
    finally:
        command_line = before


@attrs.frozen(kw_only=True)
class Decision:
    """The decision and its reasons. str() of it is one line for the log.

    Attributes:
        enabled: keepalive is on: the setting enables it, and the pool has pages.
        why: the reason as text.
        setting: "host,privatepool", …; setting_source: its source.
        pool_pages: pages of the private pool for allocations, 0 = none; pool_source; pool_how: how
            it was computed, if by a rule.
        pool_numa: "split" evenly over the NUMA nodes, or "" = the kernel decides; numa_source.
        always_flr: a function level reset whenever the device is opened; always_flr_source.
        fused: no admin command after the bring-up, regardless of the device's class (True), or as
            usual regardless of it (False); None: by its class, with keepalive. fused_source.
        vfio: pci: devices may be driven; vfio_source.
        holder: what will hold the descriptors while no driver runs ("keeper /run/k.sock",
            "systemd"), or None.
        warnings: about values that were not understood; logged when the decision was made.
    """

    enabled: bool
    why: str
    setting: str
    setting_source: str
    pool_pages: int
    pool_source: str
    vfio: bool = True
    vfio_source: str = "inferred"
    holder: str | None = None
    warnings: tuple[str, ...] = ()
    pool_how: str = ""
    pool_numa: str = ""
    numa_source: str = "inferred"
    always_flr: bool = False
    always_flr_source: str = "inferred"
    fused: bool | None = None
    fused_source: str = "inferred"

    @property
    def pool_bytes(self) -> int:
        return self.pool_pages * PAGE

    def __str__(self) -> str:
        return f"keepalive {'on' if self.enabled else 'off'}: {self.why} [{self.settings}]"

    @property
    def settings(self) -> str:
        """Each with its source; NUMA, FLR and fused only if they are set."""
        how = f", {self.pool_how}" if self.pool_how else ""
        parts = [
            f"setting {self.setting} ({self.setting_source})",
            f"pool {self.pool_pages} pages ({self.pool_source}{how})",
            f"vfio {'on' if self.vfio else 'off'} ({self.vfio_source})",
        ]
        if self.pool_numa:
            parts.append(f"pool {self.pool_numa} over NUMA nodes ({self.numa_source})")
        if self.always_flr:
            parts.append(f"always a function level reset at open ({self.always_flr_source})")
        if self.fused is not None:
            parts.append(f"fused {'on' if self.fused else 'off'} ({self.fused_source})")
        return ", ".join(parts)

    def inspect(self) -> dict[str, Any]:
        """The attributes as plain data, and `settings` as text."""
        plain = attrs.asdict(
            self, value_serializer=lambda _, __, value: list(value) if isinstance(value, tuple) else value
        )
        return plain | {"settings": self.settings}

    def check_scheme(self, uri: str) -> None:
        """ConfigurationError if the VFIO driver is switched off and `uri` needs it."""
        if not self.vfio and uri.partition(":")[0].lower() == "pci":
            raise ConfigurationError(f"{uri}: the VFIO driver is switched off ({self.vfio_source})")


class _Chooser:
    """Argument, command line, environment: the first that is given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.warnings: list[str] = []

    def __call__(
        self, name: str, argument: Any, option: Any, variables: Sequence[str], parse: Callable[[str], Any], off: Any
    ) -> tuple[Any, str]:
        """(value or None, source). off: the result of an invalid variable."""
        if argument is not None:
            return argument, f"argument {name}"
        if option is not None:
            return option, "command line"
        for variable in variables:
            text = self._environ.get(variable)
            if text is None:
                continue
            try:
                return parse(text), f"environment {variable}"
            except ConfigurationError as error:
                self.warnings.append(f"{variable}: {error}; switched off")
                return off, f"environment {variable}, not understood"
        return None, "inferred"


def _reason(setting: Setting, pages: int, holder: str | None) -> str:
    if setting.disabled:
        return "it is disabled"
    missing = []
    if not setting.host:
        missing.append("no process may hold the controller while no driver runs (nohost)")
    if not setting.private_pool:
        missing.append("there is no private pool (noprivatepool)")
    elif setting.enabled and not pages:
        missing.append("the private pool has no pages")
    if missing:
        return " and ".join(missing)
    return f"{holder or 'a successor'} can take over, and there is a private pool of {pages} pages"


def decide(
    *,
    keepalive: str | bool | None = None,
    pool_pages: int | str | None = None,
    vfio: bool | None = None,
    disable_keepalive: bool | None = None,
    pool_numa: str | None = None,
    always_flr: bool | None = None,
    fused: bool | None = None,
    holder: str | None = None,
    default_pool_pages: int = DEFAULT_POOL_PAGES,
    wanted: Wanted | None = None,
    environ: Mapping[str, str] | None = None,
) -> Decision:
    """Decides from arguments, environment and machine. Logs one line, and a warning for each
    invalid value.

    keepalive: as OPENHCL_NVME_KEEP_ALIVE; True and False stand for "enabled" and "disabled".
    disable_keepalive: True: off, regardless of keepalive.
    holder: what would hold the descriptors of this controller between two drivers, as text; None if
        there is nothing. default_pool_pages: the pool's size if none is given. wanted: the input of
        "release" and "debug". Raises ConfigurationError for an invalid argument.
    """
    choose = _Chooser(os.environ if environ is None else environ)
    given = command_line
    if isinstance(keepalive, bool):
        keepalive = "enabled" if keepalive else "disabled"
    argument: Any = None if keepalive is None else parse_setting(keepalive)
    setting, setting_source = choose("keepalive", argument, given.keepalive, [KEEP_ALIVE], parse_setting, DISABLED)
    off, off_source = choose(
        "disable_keepalive", disable_keepalive, given.disable_keepalive, [DISABLE], parse_disable, True
    )
    if off:
        setting, setting_source = DISABLED, off_source
    argument = None if pool_pages is None else parse_pool_pages(pool_pages)
    pages, pool_source = choose("pool_pages", argument, given.pool_pages, [POOL_OVERRIDE, POOL], parse_pool_pages, 0)
    argument = None if pool_numa is None else parse_numa(pool_numa)
    numa, numa_source = choose("pool_numa", argument, given.pool_numa, [NUMA], parse_numa, "")
    use_vfio, vfio_source = choose("vfio", vfio, given.vfio, [VFIO], parse_vfio, False)
    flr, flr_source = choose("always_flr", always_flr, given.always_flr, [ALWAYS_FLR], parse_always_flr, False)
    is_fused, fused_source = choose("fused", fused, given.fused, [], parse_disable, None)
    if pages is None:
        # A pool is useful: there is a holder, or keepalive was enabled without a size.
        useful = setting.enabled if setting is not None else holder is not None
        pages = default_pool_pages if useful else 0
    how = ""
    if isinstance(pages, str):
        size = size_pool(pages, wanted or Wanted())
        pages, how = size.pages, size.how
    if setting is None:
        setting = Setting(host=holder is not None, private_pool=pages > 0)
    decision = Decision(
        enabled=setting.enabled and pages > 0,
        why=_reason(setting, pages, holder),
        setting=str(setting),
        setting_source=setting_source,
        pool_pages=pages,
        pool_source=pool_source,
        pool_how=how,
        pool_numa=numa or "",
        numa_source=numa_source,
        vfio=True if use_vfio is None else use_vfio,
        vfio_source=vfio_source,
        always_flr=bool(flr),
        always_flr_source=flr_source,
        fused=is_fused,
        fused_source=fused_source,
        holder=holder,
        warnings=tuple(choose.warnings),
    )
    for warning in choose.warnings:
        log.warning("%s", warning)
    log.info("%s", decision)
    return decision


class Outcome(enum.Enum):
    """What happens to one controller, given what the previous run left."""

    LIVE_RESTORE = "live restore"
    RECLAIM = "reclaim"
    """Reset the controller first, then free the predecessor's buffers, then a fresh bring-up."""
    MISSING_POOL = "missing pool"
    """An error that names the pool that the saved state needs."""
    FRESH = "fresh"
    """Bring-up, with a reset if the controller is found enabled."""


def outcome(*, saved: bool, pool: bool, keepalive: bool) -> Outcome:
    """saved: the previous run left a state for this controller; pool: and its private pool;
    keepalive: it is on in this process.
    """
    if not saved:
        return Outcome.FRESH
    if not pool:
        return Outcome.MISSING_POOL
    return Outcome.LIVE_RESTORE if keepalive else Outcome.RECLAIM


def outcomes(saved: Mapping[str, bool], uris: Iterable[str], *, keepalive: bool) -> dict[str, Outcome]:
    """For several controllers. saved: {uri: its pool exists} of those that the previous run
    saved; the result also has those that are not opened now, so that no memory is leaked: they
    must be reclaimed.
    """
    wanted = dict.fromkeys(uris)
    result = {uri: outcome(saved=uri in saved, pool=saved.get(uri, False), keepalive=keepalive) for uri in wanted}
    for uri, pool in saved.items():
        if uri not in wanted:
            result[uri] = outcome(saved=True, pool=pool, keepalive=False)
    return result
