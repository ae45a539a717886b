"""What a stranger meets first: one version, links that work, workflows that call what there is."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import nvme_async

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert importlib.metadata.version("nvme_async") == nvme_async.__version__
    places = [
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.py"), *ROOT.glob("nvme_async/**/*.py")]
        if re.search(r"""\bversion\w*\s*=\s*["']\d+\.\d+\.\d+["']""", path.read_text().replace("__", ""))
    ]
    assert places == ["nvme_async/_version.py"]


def test_each_python_of_the_classifiers_is_built_and_tested() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), re.MULTILINE)
    assert [f"cp{version.replace('.', '')}-*" for version in classifiers] == PROJECT["tool"]["cibuildwheel"]["build"]
    assert f"python: {classifiers}".replace("'", '"') in (ROOT / ".github/workflows/ci.yml").read_text()


def test_workflows_call_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    called = set()
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text()
        called |= set(re.findall(r"run: make ([\w-]+)", text))
        called |= {name for names in re.findall(r"target: \[(.*)\]", text) for name in names.split(", ")}
    called |= set(re.findall(r"^make ([\w-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert {"lint", "test", "sanitize", "test-vm", "test-interop", "man", "docs"} <= called
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        found = (path.parent / place).resolve()
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


def test_the_long_description_has_no_relative_links() -> None:
    description = importlib.metadata.metadata("nvme_async").get_payload()
    assert len(description) > 1000  # links into the tree lead to NVME_ASYNC_SOURCE_URL, or are text without it
    assert re.findall(r"\]\((?!https?:|#)", description) == []


SDIST = """
import runpy
import Cython.Build
Cython.Build.cythonize = lambda *arguments, **more: []  # what is built doesn't matter here, and takes seconds
runpy.run_path("setup.py", run_name="__main__")
"""


def test_an_archive_of_sources_has_what_the_makefile_and_a_build_need(tmp_path: Path) -> None:
    """`make man` puts man pages into share/, which an archive has if they were made before."""
    tree = tmp_path / "tree"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the archive is not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    page = tree / "share/man/man1/nvme-async.1"
    page.parent.mkdir(parents=True)
    page.write_text(".TH\n")
    command = [sys.executable, "-c", SDIST, "--quiet", "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        members = {name.partition("/")[2] for name in opened.getnames()}
    assert "share/man/man1/nvme-async.1" in members

    assert set(listed.stdout.splitlines()) <= members
