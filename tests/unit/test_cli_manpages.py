"""Man pages and completion scripts are generated from the commands, and the tools that read them
report no errors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nvme_async.cli.main import COMMANDS
from nvme_async.cli.manpages import COMPLETIONS, completion, escaped, pages, write


def test_each_command_has_a_man_page_with_its_options(tmp_path: Path) -> None:
    write(tmp_path)
    found = {path.name for path in (tmp_path / "man/man1").iterdir()}
    assert found == {"nvme-async.1", *(f"nvme-async-{name}.1" for name in COMMANDS)}
    text = (tmp_path / "man/man1/nvme-async-read.1").read_text()
    assert "\\-\\-block\\-count" in text
    main = (tmp_path / "man/man1/nvme-async.1").read_text()
    assert "OPENHCL_NVME_KEEP_ALIVE" in main
    assert main.count("\\fR(1)") == len(COMMANDS)


def test_text_is_escaped_for_roff() -> None:
    assert escaped(".no request\n'nor this -\\") == "\\&.no request\n\\&'nor this \\-\\e"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", ["nvme-async.1", "nvme-async-read.1", "nvme-async-emulate.1"])
def test_groff_has_no_warning(name: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's
    command = ["groff", "-K", "utf8", "-man", "-Tutf8", "-ww"]
    done = subprocess.run(command, input=dict(pages())[name], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_the_shells_accept_the_completion_scripts(shell: str, tmp_path: Path) -> None:
    script = completion(shell)
    assert "_NVME_ASYNC_COMPLETE" in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        assert subprocess.run([shell, "-n", str(path)], capture_output=True).returncode == 0
