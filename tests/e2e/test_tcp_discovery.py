"""Discovery over NVMe/TCP: the log, referrals, the command line, and a controller that stays
connected.
"""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import subprocess
import sys

import pytest
from click.testing import CliRunner
from driving import eventually

import nvme_async
from nvme_async.cli.connect_all import _follow
from nvme_async.cli.main import cli
from nvme_async.driver.options import Options
from nvme_async.driver.tcp.address import Address
from nvme_async.driver.tcp.discovery import subsystem_uris
from nvme_async.driver.tcp.host import this_host
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ConfigurationError, ControllerGone
from nvme_async.spec.discovery import DiscoveryEntry, decode_header

NQN = "nqn.2024-01.io.example:"


@pytest.fixture
def services():
    """Two targets; the first refers to the second, which refers back."""
    with EmulatedController("size=1MiB") as one, EmulatedController("size=1MiB,serial=TWO") as two:
        port_two = two.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN + "two"))[0][1]
        config = TcpConfig(nqn=NQN + "one", referrals=(("127.0.0.1", port_two), ("127.0.0.1", 1)))
        ports = [port for _, port in one.serve_tcp(("127.0.0.1", 0), ("0.0.0.0", 0), config=config)]
        yield ports, port_two


def uris(entries):
    return sorted(entry.uri for entry in entries if entry.uri)


@pytest.mark.parametrize("digests", [False, True])
async def test_the_log_lists_every_port_and_follows_referrals(services, digests):
    ports, port_two = services
    entries = await nvme_async.discover(f"tcp:127.0.0.1:{ports[0]}", hdr_digest=digests, data_digest=digests)
    assert uris(entries) == sorted(
        [*(f"tcp:127.0.0.1:{port}/{NQN}one" for port in ports), f"tcp:127.0.0.1:{port_two}/{NQN}two"]
    )
    for uri in uris(entries):
        async with nvme_async.open(uri) as controller:
            await controller.namespaces[1].read(0)


async def test_referrals_can_be_ignored(services):
    ports, port_two = services
    entries = await nvme_async.discover(f"tcp:127.0.0.1:{ports[0]}", referrals=False)
    assert {entry.trsvcid for entry in entries if entry.subtype == 1} == {str(port_two), "1"}
    assert len(uris(entries)) == 2


def test_the_command_line(services):
    ports, _ = services
    runner = CliRunner()
    result = runner.invoke(cli, ["discover", "--traddr", "127.0.0.1", "--trsvcid", str(ports[0]), "-o", "json"])
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)["records"]
    assert {"trtype", "adrfam", "subtype", "treq", "portid", "trsvcid", "subnqn", "traddr", "eflags", "sectype"} == set(
        records[0]
    )
    result = runner.invoke(cli, ["discover", f"tcp:127.0.0.1:{ports[0]}"])
    assert f"uri:     tcp:127.0.0.1:{ports[0]}/{NQN}one" in result.stdout
    assert runner.invoke(cli, ["discover"]).exit_code == 2


async def test_the_loss_of_a_persistent_controller_is_reported(services):
    from nvme_async.driver.tcp.discovery import watch_discovery

    ports, _ = services
    logs = watch_discovery(f"tcp:127.0.0.1:{ports[0]}", keep_alive_tmo=1.5)
    assert len(uris(await anext(logs))) == 2
    waiting = asyncio.ensure_future(anext(logs))
    done, _ = await asyncio.wait([waiting], timeout=2.0)  # longer than the Keep Alive Timeout
    assert not done
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await logs.aclose()


async def test_discovery_without_a_listener_is_an_error():
    with pytest.raises(ControllerGone):
        await nvme_async.discover("tcp:127.0.0.1:1")
    with pytest.raises(ConfigurationError):
        await nvme_async.discover("pci:0000:01:00.0")


def test_an_entry_byte_by_byte():
    """As nvmet of Linux 6.1 fills one in (drivers/nvme/target/discovery.c), written out by hand."""
    raw = bytearray(1024)
    raw[0:4] = bytes([3, 1, 2, 0x04])
    struct.pack_into("<HHHH", raw, 4, 1, 0xFFFF, 32, 0)
    raw[32:36] = b"4420"
    raw[256:279] = b"nqn.2024-01.io.linux:t1".ljust(23)
    raw[512:521] = b"192.0.2.7"
    entry = DiscoveryEntry.decode(bytes(raw))
    assert entry.uri == "tcp:192.0.2.7:4420/nqn.2024-01.io.linux:t1"
    assert (entry.cntlid, entry.asqsz, entry.portid, entry.treq) == (0xFFFF, 32, 1, 4)
    assert decode_header(struct.pack("<QQH", 7, 1, 0)) == (7, 1)
    with pytest.raises(ValueError, match="format 3"):
        decode_header(struct.pack("<QQH", 7, 1, 3))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7/nqn.x", "192.0.2.7", 4420),
        ("host.example:1/nqn.x", "host.example", 1),
        ("[2001:db8::1]:9/nqn.x", "2001:db8::1", 9),
        ("[::1]/nqn.x", "::1", 4420),
    ],
)
def test_addresses(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert Address.parse(str(address)) == address


def test_hostnqn_and_hostid_of_this_host(tmp_path, monkeypatch):
    import nvme_async.driver.tcp.host as module

    monkeypatch.setattr(module, "FOLDER", tmp_path)
    own = this_host()
    assert own == this_host()
    assert own.nqn.startswith("nqn.2014-08.org.nvmexpress:uuid:")
    uuid = "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5"
    (tmp_path / "hostnqn").write_text(f"nqn.2014-08.org.nvmexpress:uuid:{uuid}\n")
    assert this_host().hostid.hex() == uuid.replace("-", "")
    (tmp_path / "hostid").write_text("11111111-2222-3333-4444-555555555555\n")
    assert this_host().hostid.hex() == "11111111222233334444555555555555"
    assert this_host("nqn.x", uuid).nqn == "nqn.x"
    (tmp_path / "hostid").write_text("nonsense")
    with pytest.raises(ConfigurationError, match="hostid"):
        this_host()
    with pytest.raises(ConfigurationError, match="zeroes"):
        this_host(hostid="00000000-0000-0000-0000-000000000000")


@pytest.fixture
def several_ports(services):
    """A service that refers to `services`' first, whose subsystem has two ports."""
    ports, port_two = services
    return f"tcp:127.0.0.1:{ports[0]}", ports, port_two


def endpoints(uri: str) -> list[str]:
    return uri.partition(":")[2].partition("/")[0].split(",")


async def test_all_addresses_of_a_subsystem_are_paths_to_it(several_ports):
    service, ports, port_two = several_ports
    one, two = await nvme_async.discover_subsystems(service)
    assert endpoints(one) == [f"127.0.0.1:{port}" for port in ports]
    assert two == f"tcp:127.0.0.1:{port_two}/{NQN}two"
    async with nvme_async.open(one) as controller:
        assert [path["state"] for path in controller.inspect()["paths"]] == ["ready", "ready"]


def test_invalid_and_repeated_entries_cost_only_themselves():
    def entry(traddr: str, trsvcid: str = "4420", nqn: str = NQN + "x") -> DiscoveryEntry:
        return DiscoveryEntry(
            trtype=3,
            adrfam=1,
            subtype=2,
            treq=0,
            portid=1,
            cntlid=0xFFFF,
            asqsz=32,
            eflags=0,
            trsvcid=trsvcid,
            subnqn=nqn,
            traddr=traddr,
            sectype=0,
        )

    entries = [entry("192.0.2.1"), entry("192.0.2.1"), entry("::1"), entry("a,b"), entry("192.0.2.2", "x")]
    assert subsystem_uris([*entries, entry("192.0.2.3", nqn="no nqn")]) == [f"tcp:192.0.2.1:4420,[::1]:4420/{NQN}x"]
    many = [entry(f"192.0.2.{i}") for i in range(40)]
    assert len(endpoints(subsystem_uris(many)[0])) == 32


async def test_a_manager_connects_to_all_of_them(several_ports):
    service, _, _ = several_ports
    async with nvme_async.Manager(workers=1, connect_timeout=10.0) as manager:
        one, two = await manager.connect_all(service, latency=True)
        assert manager.devices == {one.uri: one, two.uri: two}
        for device in (one, two):
            await (await manager.namespace(device.uri, 1)).read(0)
        assert await manager.connect_all(service, latency=True) == [one, two]
        with pytest.raises(ControllerGone):
            await manager.connect_all("tcp:127.0.0.1:1")


def test_connect_all_shows_what_it_opened(several_ports):
    service, ports, _ = several_ports
    runner = CliRunner()
    result = runner.invoke(cli, ["connect-all", "-a", "127.0.0.1", "-s", str(ports[0]), "-k", "30", "-o", "json"])
    assert result.exit_code == 0, result.output
    one, two = json.loads(result.stdout)["subsystems"]
    assert [path["state"] for path in one["paths"]] == ["ready", "ready"]
    assert two["serial"] == "TWO"
    assert [namespace["nsid"] for namespace in two["namespaces"]] == [1]
    result = runner.invoke(cli, ["connect-all", service])
    assert "2 of 2 ready" in result.stdout
    assert f"{NQN}two" in result.stdout
    assert runner.invoke(cli, ["connect-all"]).exit_code == 2


def test_where_connections_are_made_from(services):
    ports, _ = services
    where = ("discover", f"tcp:127.0.0.1:{ports[0]}", "--no-referrals")
    runner = CliRunner()
    assert runner.invoke(cli, [*where, "-w", "127.0.0.3", "-f", "lo"]).exit_code == 0
    for words, said in (
        (("-w", "192.0.2.77"), "(from 192.0.2.77)"),
        (("-f", "none0"), "No such device (from none0)"),
        (("-w", "::1"), "no address (from ::1)"),
        (("-w", "here"), "host_traddr is 'here', not an IP address"),
        (("-f", "a-name-that-is-too-long"), "not the name of a network interface"),
    ):
        done = runner.invoke(cli, [*where, *words])
        assert done.exit_code
        assert said in f"{done.output}{done.exception}"


async def test_both_kinds_of_queues_are_connected_from_there(monkeypatch):
    with EmulatedController("size=1MiB") as target:
        port = target.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN + "from"))[0][1]
        peers = []
        connect = asyncio.get_running_loop().sock_connect

        async def watched(sock, where):
            await connect(sock, where)
            peers.append(sock.getsockname()[0])

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", watched)
        async with nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}from", host_traddr="127.0.0.9") as controller:
            await controller.namespaces[1].read(0)
        assert len(peers) >= 2
        assert set(peers) == {"127.0.0.9"}


def test_services_in_discovery_conf(services, tmp_path, monkeypatch):
    ports, port_two = services
    monkeypatch.setattr("nvme_async.cli.discover.FOLDER", tmp_path)
    conf = tmp_path / "discovery.conf"
    runner = CliRunner()
    assert "names none either" in runner.invoke(cli, ["discover"]).output
    conf.write_text(
        f"# of nvme-cli\n\n--transport=tcp --traddr=127.0.0.1 --trsvcid={ports[0]} --data-digest\n"
        f"-t tcp -a 127.0.0.1 -s {port_two} -k 5  # the other\n"
    )
    shown = runner.invoke(cli, ["discover", "--no-referrals"])
    assert shown.exit_code == 0, shown.output
    assert f"{NQN}one" in shown.stdout
    assert f"{NQN}two" in shown.stdout
    connected = json.loads(runner.invoke(cli, ["connect-all", "-o", "json"]).stdout)["subsystems"]
    assert len({record["device"] for record in connected}) == 2
    conf.write_text("--traddr=127.0.0.1 --nonsense=1\n")
    refused = runner.invoke(cli, ["discover"])
    assert refused.exit_code == 2
    assert "discovery.conf, line 1" in refused.output


def test_a_persistent_discovery_ends_on_request(services):
    ports, _ = services
    for words, said in ((("discover",), f"{NQN}one"), (("connect-all",), "connected")):
        command = [sys.executable, "-m", "nvme_async.cli.main", *words, "--persistent", f"tcp:127.0.0.1:{ports[0]}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            line = ""
            while said not in line:
                line = process.stdout.readline()
                assert line, "it ended by itself"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


async def test_what_a_service_lists_later_is_connected():
    with EmulatedController("size=1MiB") as one, EmulatedController("size=1MiB,serial=LATER") as later:
        at = [("127.0.0.1", 0)]
        port = later.serve_tcp(*at, config=TcpConfig(nqn=NQN + "later"))[0][1]
        first = one.serve_tcp(*at, config=TcpConfig(nqn=NQN + "now"))[0][1]
        logs = [[], []]  # the service's log changes between two turns

        async def watch(service, **options):
            for log in logs:
                yield log
            await asyncio.sleep(3600)

        said = []
        turns = iter([f"tcp:127.0.0.1:{first}", f"tcp:127.0.0.1:{port}"])
        async with nvme_async.Manager(workers=1, connect_timeout=10.0) as manager:
            real = manager.connect_all
            manager.connect_all = lambda service, **options: real(next(turns), **options)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("nvme_async.cli.connect_all.watch_discovery", watch)
                patch.setattr("nvme_async.cli.connect_all.click.echo", lambda text, err: said.append(text))
                following = asyncio.ensure_future(_follow(manager, f"tcp:127.0.0.1:{first}", {}))
                await eventually(lambda: len(said) == 2)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        assert said == [f"connected: tcp:127.0.0.1:{first}/{NQN}now", f"connected: tcp:127.0.0.1:{port}/{NQN}later"]


def test_without_a_limit_for_a_lost_controller():
    assert Options(ctrl_loss_tmo=-1).loss_limit == float("inf")
    assert Options().loss_limit == 600
    with pytest.raises(ConfigurationError, match="-1 means no limit"):
        Options(ctrl_loss_tmo=-2)
