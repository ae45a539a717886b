"""Functions of layers above, by name: a public method may lead there without its module importing upwards.

The name is registered where the package is put together (nvme_async._open), with the module that has the function,
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
    """The function's result. KeyError for a name that nobody has registered."""
    module, _, function = _functions[name].partition(":")
    return getattr(importlib.import_module(module), function)(*arguments, **options)
