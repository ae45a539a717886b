"""Functions of layers above, by name: a public method may call them without an upward import.

The name is registered where the package is composed (nvme_async._open), with the function's module,
which is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_functions: dict[str, str] = {}


def register(name: str, where: str) -> None:
    """where: "module:function"."""
    _functions[name] = where


def call(name: str, *arguments: Any, **options: Any) -> Any:
    """The function's result. KeyError for an unregistered name."""
    module, _, function = _functions[name].partition(":")
    return getattr(importlib.import_module(module), function)(*arguments, **options)
