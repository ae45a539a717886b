"""NVMe/TCP over TLS with a pre-shared key, end to end: I/O, reconnection, discovery, refusals, and
what is released.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import ssl
import sys
import threading
from array import array
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from driving import eventually

sys.path.insert(0, str(Path(__file__).parents[1]))
from open_descriptors import open_descriptors

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.driver.tcp import tls
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ConfigurationError, ControllerError, ControllerGone, ControllerTimeout
from nvme_async.spec.tls_psk import InterchangeKey

NQN = "nqn.2024-01.io.example:tls"
KEY = InterchangeKey(bytes(range(32)), 1).text()
OTHER = InterchangeKey(bytes(32), 1).text()
LONG_KEY = InterchangeKey(bytes(48), 2).text()
needs_psk = pytest.mark.skipif(
    not getattr(ssl, "HAS_PSK", False), reason="this Python's ssl module has no pre-shared keys (3.13 has)"
)


def relays() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "TLS" in one.name]


@pytest.fixture
def target():
    with EmulatedController("size=64MiB,namespaces=2") as emulator:
        config = TcpConfig(nqn=NQN, tls_key=KEY)
        ports = [port for _, port in emulator.serve_tcp(("127.0.0.1", 0), ("127.0.0.1", 0), config=config)]
        emulator.ports = ports
        emulator.port = ports[0]
        emulator.uri = f"tcp:127.0.0.1:{ports[0]}/{NQN}"
        yield emulator
    assert not relays()


@needs_psk
@pytest.mark.parametrize("options", [{}, {"hdr_digest": True, "data_digest": True}, {"tls_identity": 0}])
async def test_io(target, options):
    async with nvme_async.open(target.uri, tls=True, tls_key=KEY, **options) as controller:
        namespace = controller.namespaces[1]
        size = namespace.block_size
        for blocks in (1, 3, 32, 256):
            data = os.urandom(blocks * size)
            await namespace.write(blocks * 10, data)
            assert await namespace.read(blocks * 10, blocks) == data
        await asyncio.gather(*(namespace.write(i, bytes([i]) * size) for i in range(64)))
        many = await namespace.read_many(array("Q", range(64)))
        assert bytes(many.data[::size]) == bytes(range(64))
    await eventually(lambda: target.tcp_stats()["open_connections"] == 0)


@needs_psk
async def test_nothing_is_left_after_close():
    before, threads = open_descriptors(), threading.active_count()
    with EmulatedController("size=1MiB") as emulator:
        port = emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN, tls_key=KEY))[0][1]
        for _ in range(2):
            async with nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}", tls=True, tls_key=KEY) as controller:
                await controller.namespaces[1].read(0)
                assert relays()
    await eventually(lambda: not relays())
    del controller  # which holds the links of its queues
    gc.collect()
    await eventually(lambda: not Counter(open_descriptors()) - Counter(before))
    assert threading.active_count() <= threads + 1  # the loop's executor


@needs_psk
async def test_a_cut_connection_is_made_again(target):
    async with nvme_async.open(target.uri, tls=True, tls_key=KEY) as controller:
        namespace = controller.namespaces[1]
        data = os.urandom(namespace.block_size)
        await namespace.write(5, data)
        for _ in range(3):
            target.drop_tcp()
            assert await namespace.read(5) == data
        assert controller.inspect()["association"]["reconnects"] >= 1


@needs_psk
async def test_cancelled_and_timed_out_commands(target):
    async with nvme_async.open(target.uri, tls=True, tls_key=KEY, command_timeout=0.2) as controller:
        namespace = controller.namespaces[1]
        await namespace.write(7, b"a" * namespace.block_size)
        target.faults.add(queue="io", opcode=2, delay=3600, count=2)
        reading = asyncio.ensure_future(namespace.read(7))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        target.faults.clear()
        assert await namespace.read(7) == b"a" * namespace.block_size


@needs_psk
async def test_discovery_and_several_paths(target):
    service = f"tcp:127.0.0.1:{target.port}"
    entries = await nvme_async.discover(service, tls=True, tls_key=KEY)
    assert {entry.uri for entry in entries if entry.uri} == {f"tcp:127.0.0.1:{port}/{NQN}" for port in target.ports}
    assert {(entry.sectype, entry.treq & 3) for entry in entries} == {(2, 1)}
    (uri,) = await nvme_async.discover_subsystems(service, tls=True, tls_key=KEY)
    async with nvme_async.open(uri, tls=True, tls_key=KEY) as controller:
        target.tcp_port(0, is_open=False)
        await controller.namespaces[1].read(0)


@needs_psk
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tls_key": OTHER}, "TLS handshake failed"),
        ({"tls_key": KEY, "hostnqn": "nqn." + "x" * 180}, "the limit of OpenSSL's callback is 255"),
        ({"tls_key": LONG_KEY}, "a key of 48 bytes, for SHA-384"),
        ({"tls_key": KEY[:-3] + "A:"}, "tls_key"),
        ({"tls_key": "/nowhere/key"}, "No such file"),
        ({}, "tls=True needs tls_key"),
    ],
)
async def test_what_cannot_be_used_is_refused(target, options, said):
    with pytest.raises((ControllerError, ConfigurationError)) as caught:
        async with nvme_async.open(target.uri, tls=True, **options):
            pass
    assert said in str(caught.value)
    assert KEY.split(":")[2] not in str(caught.value)
    await eventually(lambda: target.tcp_stats()["open_connections"] == 0)


@needs_psk
async def test_a_plain_host_and_a_plain_target_are_refused(target):
    with pytest.raises(ControllerError):
        async with nvme_async.open(target.uri):
            pass
    with EmulatedController("size=1MiB") as plain:
        port = plain.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        with pytest.raises((ControllerError, ControllerGone), match="TLS handshake"):
            async with nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}", tls=True, tls_key=KEY):
                pass


@needs_psk
async def test_a_target_that_says_nothing_is_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"tcp:127.0.0.1:{silent.getsockname()[1]}/{NQN}"
        with pytest.raises(ControllerTimeout):
            async with nvme_async.open(uri, tls=True, tls_key=KEY, connect_timeout=0.1):
                pass
    await eventually(lambda: not relays())


@needs_psk
async def test_a_certificate_in_place_of_the_key_is_not_accepted():
    """A server without the key answers with one of TLS's other ways."""
    context = tls.client_context(InterchangeKey.parse(KEY, "k").tls_psk("nqn.h", NQN, 1))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


@needs_psk
def test_the_command_line(target, tmp_path):
    file = tmp_path / "key"
    file.write_text(f"NVMe1R01 host subsystem {KEY}\n")
    words = ("--traddr", "127.0.0.1", "--trsvcid", str(target.port), "--nqn", NQN, "--tls")
    for key in (KEY, str(file)):
        done = CliRunner().invoke(cli, ["id-ctrl", *words, "--tls_key", key, "-o", "json"])
        assert done.exit_code == 0, (done.output, done.exception)
        assert json.loads(done.output)["subnqn"].rstrip("\0") == NQN
    done = CliRunner().invoke(
        cli, ["discover", "-a", "127.0.0.1", "-s", str(target.port), "--tls", "--tls-key", KEY, "-o", "json"]
    )
    assert {one["sectype"] for one in json.loads(done.output)["records"]} == {"tls13"}


@needs_psk
async def test_host_and_target_in_one_uri():
    async with nvme_async.open(f"emulated-tcp:size=1MiB,tls_key={KEY}", tls=True, tls_key=KEY) as controller:
        await controller.namespaces[1].read(0)
    assert not relays()


@needs_psk
def test_a_target_on_every_address_is_refused():
    with (
        EmulatedController("size=1MiB") as emulator,
        pytest.raises(ConfigurationError, match=r"0\.0\.0\.0 with tls_key"),
    ):
        emulator.serve_tcp(("0.0.0.0", 0), config=TcpConfig(nqn=NQN, tls_key=KEY))
    assert not relays()


@pytest.mark.skipif(getattr(ssl, "HAS_PSK", False), reason="this Python's ssl module has pre-shared keys")
def test_an_older_python_is_named_with_what_to_do_instead():
    words = ("--traddr", "127.0.0.1", "--trsvcid", "1", "--nqn", NQN, "--tls", "--tls-key", KEY)
    for command in (
        ("id-ctrl", *words),
        ("discover", "-a", "127.0.0.1", "-s", "1", "--tls", "--tls-key", KEY),
    ):
        done = CliRunner().invoke(cli, command)
        assert isinstance(done.exception, ConfigurationError)
        assert "needs Python 3.13" in str(done.exception)
        assert "dhchap_secret" in str(done.exception)
    with EmulatedController("size=1MiB") as emulator, pytest.raises(ConfigurationError, match=r"needs Python 3\.13"):
        emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(tls_key=KEY))


async def test_a_key_without_tls_is_refused_before_anything_is_sent():
    with pytest.raises(ConfigurationError, match="tls_key needs tls=True"):
        async with nvme_async.open(f"tcp:127.0.0.1:1/{NQN}", tls_key=KEY):
            pass


@needs_psk
async def test_keepalive_is_refused(target):
    with pytest.raises(ConfigurationError, match="keepalive needs a PCI function"):
        async with nvme_async.open(target.uri, keepalive=True, tls=True, tls_key=KEY):
            pass
