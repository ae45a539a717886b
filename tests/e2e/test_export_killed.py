"""An export whose process is killed: the next one takes the controller over from the keeper."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from keeper_site import Site, settings, site  # noqa: F401 - fixtures
from nbd_client import WRITE, NbdClient

import nvme_async
from nvme_async.emulator import FOREVER
from nvme_async.export import end_predecessor

BLOCK = 4096
# Where a server is killed that takes over from a dead one, in the order in which it gets there.
INSIDE = {
    "it has the descriptors": "nvme_async.keepalive.opening:restore",
    "the controller is restored": "nvme_async.keepalive.opening:settle_in",
    "the keeper knows it": "nvme_async.cli.export:end_predecessor",
    "the dead server's commands are over": "nvme_async.export.nbd:NbdServer.start",
    "its queue pairs exist": "nvme_async.export.nbd:ListeningSocket",
}
KILLED = """
import importlib, os, signal, sys
from nvme_async.cli.main import main

module, _, name = sys.argv[1].partition(":")
*path, last = name.split(".")
owner = importlib.import_module(module)
for part in path:
    owner = getattr(owner, part)
assert hasattr(owner, last)
setattr(owner, last, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
sys.argv[:2] = ["nvme-async"]
main()
"""


def _words(keeper: str, uri: str, path: str) -> list[str]:
    return ["--keeper", keeper, "export", uri, "--nbd", path]


async def _export(keeper: str, uri: str, path: str) -> asyncio.subprocess.Process:
    words = [sys.executable, "-m", "nvme_async", *_words(keeper, uri, path)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    assert b"namespace 1" in line, line
    return process


async def test_kills_lose_nothing_acknowledged(site: Site, tmp_path: Path) -> None:  # noqa: F811
    path = str(tmp_path / "disk.nbd")
    rng = random.Random(5)
    acknowledged: dict[int, bytes] = {}
    process = await _export(site.keeper_path, site.uri, path)
    lives = site.lives()
    for _ in range(3):
        client = await NbdClient.connect(path)
        for block, image in acknowledged.items():
            assert await client.read(block * BLOCK, BLOCK) == image
        sent: dict[int, tuple[bytes, asyncio.Future[bytes]]] = {}
        for block in rng.sample(range(1024), 64):
            image = rng.randbytes(BLOCK)
            sent[block] = image, client.send(WRITE, block * BLOCK, BLOCK, image)
        await sent[next(iter(sent))][1]
        process.kill()
        await process.wait()
        await client.close(politely=False)
        acknowledged |= {block: image for block, (image, answer) in sent.items() if answer.exception() is None}
        unanswered = {block: image for block, (image, answer) in sent.items() if answer.exception() is not None}
        process = await _export(site.keeper_path, site.uri, path)
        again = await NbdClient.connect(path)
        for block, image in unanswered.items():  # as a client has to
            await again.write(block * BLOCK, image)
        acknowledged |= unanswered
        await again.close()
    client = await NbdClient.connect(path)
    for block, image in acknowledged.items():
        assert await client.read(block * BLOCK, BLOCK) == image
    await client.close()
    assert site.lives() | {"create_cq": 0} == lives | {"create_cq": 0}
    process.terminate()
    assert await process.wait() == 0
    assert not os.path.exists(path)


async def test_kills_inside_a_recovery_lose_nothing_acknowledged(site: Site, tmp_path: Path) -> None:  # noqa: F811
    """Five servers, one after another, die while they take over from the one before."""
    path = str(tmp_path / "disk.nbd")
    rng = random.Random(6)
    images = {block: rng.randbytes(BLOCK) for block in rng.sample(range(1024), 32)}
    process = await _export(site.keeper_path, site.uri, path)
    lives = site.lives()
    client = await NbdClient.connect(path)
    *acknowledged, unanswered = images
    for block in acknowledged:
        await client.write(block * BLOCK, images[block])
    # Held by the controller until the last server has to wait for it.
    rule = site.controller.faults.add(queue="io", opcode=1, delay_post=FOREVER, count=1)
    answer = client.send(WRITE, unanswered * BLOCK, BLOCK, images[unanswered])
    await asyncio.to_thread(rule.wait, 1, 60.0)
    process.kill()
    await process.wait()
    await client.close(politely=False)
    assert answer.exception() is not None
    for stage, place in INSIDE.items():
        if place.endswith("start"):  # what is before it waits for the held command
            site.controller.faults.release()
        words = [sys.executable, "-c", KILLED, place, *_words(site.keeper_path, site.uri, path)]
        killed = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        output, _ = await asyncio.wait_for(killed.communicate(), 120)
        assert (killed.returncode, output) == (-signal.SIGKILL, b""), stage
        assert site.lives() | {"create_cq": 0} == lives | {"create_cq": 0}, stage
    process = await _export(site.keeper_path, site.uri, path)
    client = await NbdClient.connect(path)
    for block, image in images.items():
        assert await client.read(block * BLOCK, BLOCK) == image
    await client.close()
    process.kill()
    await process.wait()
    # What five dead servers had is free again.
    async with nvme_async.open(site.uri, keeper=site.keeper_path) as controller:
        await end_predecessor(controller)
        assert controller.unclaimed() == []
        assert site.lives() | {"create_cq": 0} == lives | {"create_cq": 0}
