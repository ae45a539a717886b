"""An export whose process is killed: the next one takes the controller over from the keeper."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from keeper_site import Site, settings, site  # noqa: F401 - fixtures
from nbd_client import WRITE, NbdClient

BLOCK = 4096


async def _export(keeper: str, uri: str, path: str) -> asyncio.subprocess.Process:
    words = [sys.executable, "-m", "nvme_async", "--keeper", keeper, "export", uri, "--nbd", path]
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
