"""For all tests: examples may take their time, the machine is shared; subprocesses keep what they
compiled; a test leaves the process as it was.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import process_state
import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

# Hundreds of subprocesses import the package: each would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).resolve().parents[1] / "build" / "pycache"))


@pytest.fixture(autouse=True)
def _process_stays_as_it_was() -> Iterator[None]:
    """Set up first and torn down last: monkeypatch and other fixtures have put back what they
    changed.
    """
    before = process_state.current()
    yield
    assert process_state.changes(before, process_state.current()) == []
