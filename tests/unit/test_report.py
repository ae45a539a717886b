"""benchmarks/report.py reads fio's own JSON as well as ours."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample(depth, iops):
    side = {"total_ios": 5, "iops": iops, "clat_ns": {"percentile": {"50.000000": 1000, "99.000000": 9000}}}
    return {
        "fio version": "fio-3.33",
        "global options": {"iodepth": str(depth)},
        "jobs": [{"jobname": "r", "job options": {"rw": "randread"}, "read": side, "write": {"total_ios": 0}}],
    }


def test_rows_come_from_every_direction_that_did_io(report, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("fio: a warning\n" + json.dumps(sample(8, 1234.5)))
    (row,) = report.rows([str(path)])
    assert (row["job"], row["direction"], row["depth"], row["iops"]) == ("r", "read", 8, 1234.5)
    assert row["percentiles"] == {50.0: 1.0, 99.0: 9.0}


def test_a_picture_is_drawn(report, tmp_path):
    pytest.importorskip("matplotlib")
    paths = []
    for depth in (1, 32):
        paths.append(str(tmp_path / f"qd{depth}.json"))
        Path(paths[-1]).write_text(json.dumps(sample(depth, depth * 1000)))
    report.main([*paths, f"--output={tmp_path / 'out.png'}"])
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}'])
def test_an_invalid_report_is_refused_by_name(report, tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"bad\.json"):
        report.main([str(path)])
