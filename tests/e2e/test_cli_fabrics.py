"""nvme-cli's words for an NVMe/TCP controller, on commands of every kind."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from nvme_async.cli.io import read
from nvme_async.cli.main import COMMANDS, cli
from nvme_async.cli.nvme.build import COMMANDS as OF_NVME_CLI
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig

NQN = "nqn.2024-01.io.example:words"


@pytest.fixture(scope="module")
def target():
    with EmulatedController("size=16MiB") as emulator:
        port = emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        yield str(port)


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_words_and_the_uri_name_the_same_controller(target):
    words = ("--transport", "tcp", "--traddr", "127.0.0.1", "--trsvcid", target, "--nqn", NQN)
    uri = f"tcp:127.0.0.1:{target}/{NQN}"
    host = ("--hostnqn", "nqn.2014-08.org.nvmexpress:uuid:0c9b4d8e-0000-4000-8000-000000000001", "--data-digest")
    by_words = json.loads(run("id-ctrl", *words, *host, "-o", "json"))
    assert by_words["subnqn"].rstrip("\0") == NQN
    by_uri = json.loads(run("id-ctrl", uri, "-o", "json"))
    assert {**by_words, "cntlid": 0} == {**by_uri, "cntlid": 0}
    for command in ("smart-log", "list-ns"):
        assert run(command, *words) == run(command, uri)
    assert run("id-ns", *words) == run("id-ns", uri)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--traddr", "127.0.0.1"), "belong together"),
        (("--nqn", NQN), "belong together"),
        (("--transport", "tcp"), "need --traddr and --nqn"),
        (("emulated:", "--traddr", "127.0.0.1", "--nqn", NQN), "not both"),
        ((), "a DEVICE is needed"),
    ],
)
def test_words_that_are_not_enough_or_too_many_are_usage_errors(words, said):
    done = CliRunner().invoke(cli, ["id-ctrl", *words])
    assert done.exit_code == 2
    assert said in done.output


def test_every_command_with_a_device_has_them():
    context = click.Context(cli)
    without = []
    for name in COMMANDS:
        command = cli.get_command(context, name)
        for one in (command, *getattr(command, "commands", {}).values()):
            takes_device = any(param.name == "device" and param.callback is None for param in one.params)
            if takes_device and not any("--traddr" in param.opts for param in one.params):
                without.append((name, one.name))
    assert not without


def test_the_commands_themselves_stay_as_they_are():
    """A program that uses one of them gets the same whatever ran before."""
    own = {"read": read, "id-ctrl": OF_NVME_CLI["id-ctrl"], "zns": OF_NVME_CLI["zns report-zones"]}
    before = {name: ([(one.name, one.required) for one in made.params], made.callback) for name, made in own.items()}
    for name in own:
        assert cli.get_command(click.Context(cli), name) is not None
    assert before == {
        name: ([(one.name, one.required) for one in made.params], made.callback) for name, made in own.items()
    }
    assert all("traddr" not in dict(params) for params, _ in before.values())


def test_a_group_takes_them_and_the_next_command_starts_without_them(target):
    address = ("--traddr", "127.0.0.1", "--trsvcid", target, "--nqn", NQN)
    wrong = ("--tls-key", "/nowhere")  # without --tls
    for first in (("id-ctrl",), ("dir-receive",)):
        done = CliRunner().invoke(cli, (*first, *address, *wrong))
        assert "tls_key needs tls=True" in str(done.exception)
    done = CliRunner().invoke(cli, ("fdp", "configs", *address, "-e", "1", *wrong))
    assert "tls_key needs tls=True" in str(done.exception)
    done = CliRunner().invoke(cli, ("zns", "id-ctrl", *address))
    assert "tls" not in f"{done.exception}{done.output}"


@pytest.mark.parametrize("command", [("export", "--nbd", "unused"), ("selftest",), ("id-ctrl",), ("read",)])
def test_each_command_that_opens_a_device_passes_the_words_on(command):
    done = CliRunner().invoke(cli, [command[0], "emulated:size=1MiB", *command[1:], "--hostid", "nonsense"])
    assert done.exit_code != 0
    assert "hostid is 'nonsense', must be a UUID" in done.output + str(done.exception)
