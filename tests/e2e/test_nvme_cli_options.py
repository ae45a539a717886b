"""The sub-commands and options of nvme-cli 2.13 (recorded in tests/data) and ours: the table in
docs/nvme-cli.md says where they differ, and nothing differs that it doesn't say.

    python tests/e2e/test_nvme_cli_options.py        writes the table into docs/nvme-cli.md
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvme_async.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "nvme-cli.md"
OPTIONS: dict[str, dict[str, str | None]] = json.loads((ROOT / "tests" / "data" / "nvme-cli-2.13.json").read_text())[
    "options"
]
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

_KEYS = "keys of the kernel's keyring"
_CONNECTIONS = "the kernel's connections; here a `tcp:` URI connects"
ABSENT = {
    "get-ns-id": "there is no block device whose id could be asked",
    "show-topology": "paths are in `nvme-async inspect`",
    "host-discovery-log": "of a discovery controller, see `discover`",
    "ave-discovery-log": "of a discovery controller, see `discover`",
    "pull-model-ddc-req-log": "of a discovery controller, see `discover`",
    "dim": "of a discovery controller, see `discover`",
    "connect": _CONNECTIONS,
    "disconnect": _CONNECTIONS,
    "disconnect-all": _CONNECTIONS,
    "config": _CONNECTIONS,
    "gen-hostnqn": "`/etc/nvme/hostnqn` is read",
    "show-hostnqn": "`/etc/nvme/hostnqn` is read",
    "gen-dhchap-key": "secrets are given as nvme-cli makes them",
    "check-dhchap-key": "secrets are given as nvme-cli makes them",
    "tls-key": _KEYS,
    "rpmb": "not implemented",
    "zns list": "see `list`",
}
# What a command does not have, or has under another letter.
_NO_KEYRING = (
    "`--keyring`, `-k`, `--keytype`, `-t`, `--insert`, `-i`: no keyring; `--verbose`, `-v`, `--output-format`, `-o`, "
    "`--timeout`"
)
WITHOUT = {
    "gen-tls-key": _NO_KEYRING,
    "check-tls-key": _NO_KEYRING,
    "list": "`--timeout`, `-t`: no device is opened",
    "connect-all": "options of the kernel's connections",
    "discover": "options of the kernel's connections",
    "security-send": "`-t` is `--tl` only, not `--timeout`",
    "security-recv": "`-t` is `--al` only, not `--timeout`",
    "resv-acquire": "`-t` is `--rtype` only, not `--timeout`",
    "resv-release": "`-t` is `--rtype` only, not `--timeout`",
    "compare": "`-t` is `--latency` only, not `--timeout`",
    "read": "`--timeout`; `-t` is `--latency`",
    "write": "`--timeout`; `-t` is `--latency`",
    "flush": "`--verbose`, `-v`, `--output-format`, `-o`, `--timeout`, `-t`",
    "zns id-ns": "`-v` is `--verbose`; JSON and `-b` have the vendor specific bytes",
    "zns zone-mgmt-send": "`-o` is `--output-format`, not `--zsaso`",
}
NOTES = {
    "check-tls-key": "identity 1 of keys with a hash: nvme-cli 2.13 leaves out length fields of HKDF-Expand-Label",
    "list": "PCI functions and their uses, with keys of its own; with `--attach` nvme-cli's",
    "list-subsys": "of DEVICE, or with `--attach` all; each controller is a subsystem of its own",
    "smart-log": "the event is retained, as in all logs without `--rae`",
    "format": "asks, or `--force`; waits for the end",
    "sanitize": "asks, or `--force`; waits for the end; `--emvs` is refused",
    "delete-ns": "asks, or `--force`",
    "fw-download": "`--commit` also commits: a reset in between discards the image",
    "persistent-event-log": "establishes and releases the context itself; `--action` does one step",
    "show-regs": "without INTMS and INTMC, which MSI-X forbids",
    "set-property": "asks, or `--force`; not through `--attach`",
    "set-reg": "asks, or `--force`; not through `--attach`",
    "subsystem-reset": "asks, or `--force`; not through `--attach`",
    "capacity-mgmt": "asks, or `--force`",
    "get-lba-status": "JSON has the keys that nvme-cli means: 2.13 fails an assertion",
    "boot-part-log": "JSON has the header: nvme-cli 2.13 prints an address",
    "media-unit-stat-log": "all of it: nvme-cli 2.13 reads the header only",
    "supported-cap-config-log": "all of it: nvme-cli 2.13 reads the header only",
    "reachability-groups-log": "namespaces are a list: nvme-cli 2.13 repeats a key",
    "reachability-associations-log": "groups are a list: nvme-cli 2.13 repeats a key",
    "phy-rx-eom-log": "nvme-cli 2.13 crashes",
    "fdp events": "the LBA of a reallocation is right: nvme-cli 2.13 takes it from the wrong place",
    "dir-receive": "`-H` in JSON: nvme-cli 2.13 fails, or takes fields from the wrong places",
}


def find(name: str) -> click.Command | None:
    """Our command of that name."""
    found: click.Command | None = cli
    for word in name.split():
        found = found.get_command(click.Context(cli), word) if isinstance(found, click.Group) else None
    return found


def differences(name: str) -> list[str]:
    """nvme-cli's options that ours doesn't have, long or short."""
    command = find(name)
    assert command is not None
    flags = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    wanted = [f"--{option}" for option in OPTIONS[name]] + [f"-{letter}" for letter in OPTIONS[name].values() if letter]
    return [flag for flag in wanted if flag not in flags]


def table() -> str:
    """Markdown, one row for each sub-command."""
    rows = ["| sub-command | options | notes |", "| --- | --- | --- |"]
    for name in OPTIONS:
        if name in ABSENT:
            rows.append(f"| `{name}` | absent | {ABSENT[name]} |")
        else:
            options = f"all but: {WITHOUT[name]}" if name in WITHOUT else "all"
            rows.append(f"| `{name}` | {options} | {NOTES.get(name, '')} |")
    return "\n".join(row.replace("|  |", "| |") for row in rows)


def test_every_subcommand_is_there_or_named_as_absent() -> None:
    assert {name for name in OPTIONS if find(name) is None} == set(ABSENT)


def test_options_are_nvme_clis() -> None:
    found = {
        name: differences(name) for name in OPTIONS if name not in ABSENT and name not in ("discover", "connect-all")
    }
    for name, flags in found.items():
        unnamed = [flag for flag in flags if f"`{flag}`" not in WITHOUT.get(name, "")]
        assert not unnamed, f"{name} doesn't have {unnamed}, nor does the table say so"


def test_a_letter_means_the_same() -> None:
    """A short option of nvme-cli never is another option of ours, but for those that are named."""
    for name, options in OPTIONS.items():
        command = find(name)
        if command is None or name in WITHOUT:
            continue
        for option, letter in options.items():
            if letter is None:
                continue
            (flags,) = [one.opts for one in command.params if f"-{letter}" in one.opts]
            names = {f"--{other}" for other, other_letter in options.items() if other_letter == letter}
            assert names & set(flags), f"{name} -{letter} is {flags}, {option} in nvme-cli"


def test_the_table_is_in_step() -> None:
    text = PAGE.read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == table(), f"run python {Path(__file__).relative_to(ROOT)}"


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
