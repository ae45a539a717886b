"""For all tests: examples may take their time, the machine is shared; subprocesses keep what they
compiled.
"""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

# Hundreds of subprocesses import the package: each would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).resolve().parents[1] / "build" / "pycache"))
