"""In-place exec and systemd's store, with a controller that counts how often it was enabled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nvme_async.emulator import FOREVER

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from keeper_site import Site, site
from test_systemd import Supervisor

__all__ = ["site"]

SERVICE = Path(__file__).parents[2] / "examples" / "systemd" / "service.py"

SUCCESSOR = """
import asyncio, os, sys
import nvme_async

async def main():
    uri, pid = sys.argv[1], int(sys.argv[2])
    assert os.getpid() == pid
    async with nvme_async.open(uri, keeper=sys.argv[3]) as controller:
        commands = [command async for command in controller.adopted]
        data = await controller.namespaces[1].read(0, 3)
        print([(command.name, command.lba, command.status) for command in commands], data[:1], data[-1:], flush=True)
        print(controller.decision, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.mark.parametrize("keeper", ["'none'", "keeper"])
def test_exec_keeps_the_controller_running(site: Site, keeper: str) -> None:
    driver = site.driver(f"""
        holder = {keeper}
        controller = await nvme_async.open(uri, keepalive="enabled", keeper=holder)
        namespace = controller.namespaces[1]
        await namespace.write(0, b"A" * 4096)
        report("up")
        await next_line()
        waiting = asyncio.ensure_future(namespace.write(1, b"B" * 8192))
        waiting.add_done_callback(lambda task: report(type(task.exception()).__name__))
        await asyncio.sleep(0.05)
        await controller.exec([sys.executable, "-c", {SUCCESSOR!r}, uri, str(os.getpid()), holder])
    """)
    assert driver.receive() == "up"
    lives = site.lives()
    rule = site.controller.faults.add(queue="io", delay=FOREVER, count=1)
    driver.send()
    assert driver.receive() == "HandedOver"
    rule.wait(timeout=60)
    site.controller.faults.release()
    assert driver.receive() == "[('Write', 1, 0)] b'A' b'B'"
    assert "keepalive on" in driver.receive()
    assert site.lives() == lives
    if keeper == "keeper":
        [deposit] = site.deposits()
        assert (deposit.state, deposit.pid) == ("owned", driver.pid)
    driver.send()
    driver.end()
    assert site.lives()["shutdowns"] == 1
    assert site.deposits() == []


def test_exec_of_a_missing_program_is_refused(site: Site) -> None:
    driver = site.driver(
        """
        async with nvme_async.open(uri, keepalive="enabled") as controller:
            try:
                await controller.exec(["/no/such/program"])
            except ConfigurationError as error:
                report(error)
            await controller.namespaces[1].write(0, bytes(4096))
            report(controller.state)
    """
    )
    assert "/no/such/program" in driver.receive()
    assert driver.receive() == "ready"
    driver.end()
    assert site.lives()["enables"] == 1


def test_a_failed_exec_can_be_restored(site: Site, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nothing more")
    broken.chmod(0o755)
    driver = site.driver(f"""
        controller = await nvme_async.open(uri, keepalive="enabled", keeper="none")
        try:
            await controller.exec([{str(broken)!r}])
        except OSError as error:
            report(type(error).__name__)
        async with nvme_async.open(uri, keeper="none") as controller:
            await controller.namespaces[1].write(0, bytes(4096))
            report(controller.state)
    """)
    assert driver.receive() == "OSError"
    assert driver.receive() == "ready"
    driver.end()
    assert site.lives()["enables"] == 1


def test_a_service_under_systemd(site: Site, tmp_path: Path) -> None:
    supervisor = Supervisor(str(tmp_path / "notify"))
    program = f"""
        import runpy, sys
        sys.argv = [{str(SERVICE)!r}, {site.uri!r}, "0"]
        END
        runpy.run_path({str(SERVICE)!r}, run_name="__main__")
    """
    # The first process ends by SIGTERM, the second by SIGKILL, the third closes its controller.
    end = """
        import os, signal
        from nvme_async.keepalive import systemd
        notify = systemd.notify
        def ends(state, *more, **named):
            sent = notify(state, *more, **named)
            if state == "READY=1":
                os.kill(os.getpid(), signal.{})
            return sent
        systemd.notify = ends
    """
    try:
        first = supervisor.run(program.replace("END", end.format("SIGTERM")))
        assert "start 1: keepalive on: systemd's descriptor store" in first
        lives = site.lives()
        assert lives["enables"] == 1
        assert len(supervisor.store) > 3
        second = supervisor.run(program.replace("END", end.format("SIGKILL")), kill=True)
        assert "start 2" in second
        third = supervisor.run(program.replace('"0"', '"0.1"').replace("END", "pass"))
        assert "start 3" in third
        assert supervisor.store == []
        now = site.lives()
        assert (now["enables"], now["identify"], now["shutdowns"]) == (1, lives["identify"], 1)
        assert ["READY=1"] in supervisor.messages
    finally:
        supervisor.close()
