"""Substitutions in a job file's text: ${VAR}, $ncpus and other keywords, (arithmetic)."""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable

from nvme_async.errors import ConfigurationError

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.BitXor: operator.pow,  # fio's ^, as in bc
    ast.Pow: operator.pow,
}
_LARGEST = 2.0**64
_SCALED = re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)([kmgtp])(?:i?b)?(?![\w.])", re.IGNORECASE)


def _pages() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def _keywords() -> dict[str, int]:
    return {
        "ncpus": len(os.sched_getaffinity(0)),
        "pagesize": _pages(),
        "mb_memory": os.sysconf("SC_PHYS_PAGES") * _pages() >> 20,
    }


def substitute(text: str) -> str:
    """${VAR} by the environment, nothing if it isn't set; $ncpus, $pagesize, $mb_memory, and
    arithmetic with them (8*$mb_memory), by their values. All as in fio.
    """
    text = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], ""), text)
    found = False

    def value(match: re.Match[str]) -> str:
        nonlocal found
        found = True
        return str(_keywords()[match[1]])

    replaced = re.sub(r"\$(ncpus|pagesize|mb_memory)\b", value, text)
    if found and re.fullmatch(r"[0-9\s.+*/%^()-]+", replaced):
        return evaluate(replaced)
    return replaced


def evaluate(text: str) -> str:
    """The value of an expression of numbers, + - * / % ^ and parentheses: "4096" for 4*1024, or
    4*1k.

    Raises ConfigurationError for anything else.
    """
    scaled = _SCALED.sub(lambda match: f"({match[1]}*{1024 ** ('kmgtp'.index(match[2].lower()) + 1)})", text)
    try:
        value = _value(ast.parse(scaled.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        raise ConfigurationError(f"{text!r} is not an expression of numbers, + - * / % ^ and parentheses") from None
    return str(int(value)) if value == int(value) else repr(value)


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.BitXor | ast.Pow) and abs(right) * max(1, int(abs(left))).bit_length() > 64:
            raise ValueError
        value = _OPERATORS[type(node.op)](left, right)
        if abs(value) > _LARGEST:
            raise ValueError
        return value
    raise ValueError
