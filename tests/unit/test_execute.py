"""Descriptors across an exec: the variable, which process it is for, and a failed exec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from nvme_async.errors import ConfigurationError, InvalidSavedState
from nvme_async.keepalive import execute
from nvme_async.keepalive.bundle import Bundle

URI = "vfio-user:/run/c.sock"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(execute.VARIABLE, "")
    monkeypatch.delenv(execute.VARIABLE)
    yield
    for bundle in execute._waiting.values():
        bundle.close()
    execute._waiting.clear()


def bundle(uri: str = URI, content: bytes = b"content") -> Bundle:
    pool = os.memfd_create("pool")
    os.write(pool, content)
    return Bundle(uri, b"", {"pool": pool, "irq.0": os.eventfd(0, os.EFD_CLOEXEC)})


def test_exec_keeps_the_controllers() -> None:
    successor = """
        import os, subprocess, sys
        from nvme_async.keepalive import execute
        from nvme_async.keepalive.execute import inherited, take
        first = take("vfio-user:/one")
        assert execute.VARIABLE not in os.environ
        assert os.getpid() == int(sys.argv[1])
        assert os.environ["MARK"] == "kept"
        rest = inherited()
        second = rest["vfio-user:/two"]
        print(os.pread(first.descriptors["pool"], 10, 0).decode(), list(rest), sorted(second.descriptors))
        bundles = (first, *rest.values())
        assert not any(os.get_inheritable(fd) for bundle in bundles for fd in bundle.descriptors.values())
        assert take("vfio-user:/two") is None and inherited() == {}
    """
    program = f"""
        import os, sys
        from nvme_async.keepalive.bundle import Bundle
        from nvme_async.keepalive.execute import replace
        bundles = []
        for name in ("one", "two"):
            pool = os.memfd_create(name)
            os.write(pool, name.encode())
            bundles.append(Bundle("vfio-user:/" + name, b"", {{"pool": pool, "irq.0": os.eventfd(0)}}))
        print("before", flush=True)
        command = [sys.executable, "-c", {textwrap.dedent(successor)!r}, str(os.getpid())]
        replace(bundles, command, {{**os.environ, "MARK": "kept"}})
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["before", "one ['vfio-user:/two'] ['irq.0', 'pool']"]


def test_a_child_does_not_inherit_its_parents_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    with bundle() as mine:
        value = json.loads(execute.describe([mine]))
        value["pid"] = os.getpid() + 1
        monkeypatch.setenv(execute.VARIABLE, json.dumps(value))
        assert execute.inherited() == {}
        assert execute.VARIABLE not in os.environ
        os.fstat(mine.descriptors["pool"])


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(version=99),
        lambda value: value.pop("controllers"),
        lambda value: value.update(controllers=[{}]),
        lambda value: value.update(controllers=7),
        lambda value: value["controllers"][0].update(descriptors={"pool": 0}),
        lambda value: value["controllers"][0].update(descriptors={"pool": 100_000}),
        lambda value: value["controllers"][0].update(descriptors={"pool": "3"}),
        lambda value: value["controllers"][0].update(descriptors={"pool": True}),
        lambda value: value["controllers"][0].update(descriptors=["pool"]),
        lambda value: value["controllers"][0].update(uri=None),
        lambda value: value["controllers"].append(value["controllers"][0]),
    ],
)
def test_an_invalid_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    with bundle() as mine:
        value = json.loads(execute.describe([mine]))
        change(value)
        monkeypatch.setenv(execute.VARIABLE, json.dumps(value))
        with pytest.raises(InvalidSavedState, match=execute.VARIABLE):
            execute.take(URI)
        assert execute.take(URI) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7"])
def test_a_variable_without_json_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(execute.VARIABLE, text)
    with pytest.raises(InvalidSavedState, match=execute.VARIABLE):
        execute.inherited()


class FakeController:
    depositor = None

    def __init__(self, uri: str, error: Exception | None = None) -> None:
        self.uri = uri
        self.error = error
        self.saved = False

    async def save(self) -> Bundle:
        if self.error is not None:
            raise self.error
        self.saved = True
        return bundle(self.uri)


async def test_a_missing_program_stops_nothing() -> None:
    controller = FakeController(URI)
    for argv in ([], ["/no/such/program"], ["no-such-program-anywhere"]):
        with pytest.raises(ConfigurationError):
            await execute.execute([controller], argv)
    assert not controller.saved


async def test_after_a_failed_exec_the_controllers_can_be_opened_again(tmp_path: Any) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF and nothing more")
    broken.chmod(0o755)
    with pytest.raises(OSError, match="Exec format error"):
        await execute.execute([FakeController(URI), FakeController("b:")], [str(broken)])
    for uri in (URI, "b:"):
        taken = execute.take(uri)
        assert taken is not None
        assert not any(os.get_inheritable(fd) for fd in taken.descriptors.values())
        assert os.pread(taken.descriptors["pool"], 10, 0) == b"content"
        taken.close()


async def test_after_a_failed_save_earlier_controllers_can_be_opened_again() -> None:
    good, bad = FakeController(URI), FakeController("b:", ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await execute.execute([good, bad], [sys.executable])
    [(uri, taken)] = execute.inherited().items()
    assert uri == URI
    taken.close()
