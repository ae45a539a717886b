"""The connection between a worker and the owner is lost after a request was executed, and before
its answer has arrived.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import faults, pattern, within
from sharing_kit import owner, worker

from nvme_async.errors import ControllerError
from nvme_async.sharing import Share
from nvme_async.sharing.lease import QueueIs
from nvme_async.spec import commands
from nvme_async.spec.opcodes import AdminOpcode


def lose_the_first_answer(
    share: Share, monkeypatch: pytest.MonkeyPatch, kind: str, then: Callable[[Any], None] = lambda lease: None
) -> list[str]:
    """The requests of that kind, as they come. then: called with the lease when the first was
    executed.
    """
    handlers: Any = share._requests._handlers
    real, seen = handlers[kind], []

    async def lossy(connection: Any, message: Any) -> Any:
        seen.append(kind)
        answer = await real(connection, message)
        if len(seen) == 1:
            then(connection.lease)
            connection.channel._sock.shutdown(socket.SHUT_RDWR)
        return answer

    monkeypatch.setitem(handlers, kind, lossy)
    return seen


def forget(lease: Any) -> None:
    """As another owner finds it."""
    lease.created.clear()


def doubt(lease: Any) -> None:
    """As another owner finds it, if the first was killed in the middle of the request."""
    forget(lease)
    lease.queues = dict.fromkeys(lease.queues, QueueIs.UNCERTAIN)


@pytest.mark.parametrize(("then", "created"), [(lambda lease: None, 1), (forget, 2), (doubt, 2)])
async def test_queues_are_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: Callable[[Any], None], created: int
) -> None:
    async with owner(tmp_path / "s") as (own, share):
        seen = lose_the_first_answer(share, monkeypatch, "create", then)
        before = faults(own).counters()["admin"][AdminOpcode.CREATE_IO_SQ]
        async with worker(share) as controller:
            assert len(seen) == 2
            assert faults(own).counters()["admin"][AdminOpcode.CREATE_IO_SQ] == before + created
            await controller.namespaces[1].write(0, pattern(4096))
            assert await controller.namespaces[1].read(0) == pattern(4096)
        assert own.state == "ready"


async def test_a_format_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with owner(tmp_path / "s", admin="all") as (own, share), worker(share) as controller:
        seen = lose_the_first_answer(share, monkeypatch, "admin")
        with pytest.raises(ControllerError, match="may have been executed"):
            await within(20, controller.admin(commands.format_nvm(1, 0)))
        assert len(seen) >= 1
        assert faults(own).counters()["admin"][AdminOpcode.FORMAT_NVM] == 1
        assert (await within(20, controller.admin(commands.get_log_page(2, 512)))).data
        assert controller.state == "ready"


async def test_a_log_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with owner(tmp_path / "s") as (_, share), worker(share) as controller:
        seen = lose_the_first_answer(share, monkeypatch, "admin")
        assert (await within(20, controller.admin(commands.get_log_page(2, 512)))).data
        assert len(seen) >= 2
