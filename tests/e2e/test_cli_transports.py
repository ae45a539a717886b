"""The command line says the same of one controller over NVMe/TCP as over PCIe (vfio-user), except
where the specification demands a difference.
"""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from nvme_async.cli.main import cli
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig

NQN = "nqn.2024-01.io.example:both"


@pytest.fixture(scope="module")
def uris(tmp_path_factory):
    path = tmp_path_factory.mktemp("both") / "socket"
    with EmulatedController("size=16MiB,namespaces=2") as emulator:
        emulator.listen(path)
        port = emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        yield f"vfio-user:{path}", f"tcp:127.0.0.1:{port}/{NQN}"


def run(*words: str) -> dict:
    done = CliRunner().invoke(cli, [*words, "-o", "json"])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return json.loads(done.output)


def different(pcie: dict, tcp: dict) -> set[str]:
    return {name for name in {*pcie, *tcp} if pcie.get(name) != tcp.get(name)}


def test_id_ctrl_differs_where_fabrics_demand_it(uris):
    """Base 2.0, figure 275. Over TCP there are capsules (IOCCSZ, IORCSZ, MSDBD), SGLs and MAXCMD,
    no Doorbell Buffer Config (OACS bit 8), and several controllers of one named subsystem.
    """
    pcie, tcp = (run("id-ctrl", uri) for uri in uris)
    fabrics = {"ioccsz", "iorcsz", "msdbd", "maxcmd", "sgls"}
    assert different(pcie, tcp) == {*fabrics, "oacs", "cmic", "cntlid", "subnqn"}
    assert pcie["oacs"] ^ tcp["oacs"] == 1 << 8
    assert (pcie["cmic"], tcp["cmic"] & 2) == (0, 2)
    assert tcp["subnqn"].rstrip("\0") == NQN
    assert all(tcp[name] and not pcie[name] for name in fabrics)


def test_id_ns_differs_in_being_shared(uris):
    """NMIC bit 0: several controllers may have a namespace over TCP."""
    for nsid in ("1", "2"):
        pcie, tcp = (run("id-ns", uri, "-n", nsid) for uri in uris)
        assert different(pcie, tcp) == {"nmic"}
        assert (pcie["nmic"], tcp["nmic"]) == (0, 1)


def test_effects_differ_in_the_commands_of_queues_in_memory(uris):
    """Base 2.0, 3.1.2.1.2: queues are made by Connect over fabrics, and have no doorbells."""
    for pcie, tcp in zip(*(run("effects-log", uri) for uri in uris), strict=True):  # a page for each command set
        assert pcie["io_cmd_set"] == tcp["io_cmd_set"]
        missing = different(pcie["admin_cmd_set"], tcp["admin_cmd_set"])
        numbers = {int(name.split("_")[1].split()[0]) for name in missing}
        assert {124} <= numbers <= {0, 1, 4, 5, 124}
        assert not missing & set(tcp["admin_cmd_set"])


@pytest.mark.parametrize(
    "words",
    [
        ("ns-descs", "-n", "1"),
        ("list-ns",),
        ("error-log",),
        ("fw-log",),
        ("changed-ns-list-log",),
        ("supported-log-pages",),
        *(("get-feature", "-f", str(feature)) for feature in (1, 2, 4, 7, 0xB)),
        ("get-feature", "-f", "5", "-n", "1"),
    ],
    ids=" ".join,
)
def test_logs_namespaces_and_features_are_the_same(uris, words):
    command, *options = words
    pcie, tcp = (run(command, uri, *options) for uri in uris)
    assert pcie == tcp
