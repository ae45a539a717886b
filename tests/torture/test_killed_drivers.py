"""The long version of tests/e2e/test_killed_driver.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))
from test_killed_driver import kill_drivers


@pytest.mark.timeout(600)
def test_a_hundred_consecutive_kills(tmp_path):
    kill_drivers(tmp_path, 100)
