"""The layers of nvme_async, and the check of `make lint` that each module imports downwards only.

Every import statement counts, also late ones and those under TYPE_CHECKING. Within a layer modules
may import each other, but not in a circle; the transports do not import each other. docs/design.md
draws the packages as they are.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

PACKAGE = "nvme_async"

# From the bottom up: a module may import its own entry and those before it.
LAYERS = (
    ("errors", "native", "_version"),
    ("spec",),
    ("runtime",),
    ("dma",),
    ("device",),
    ("driver",),
    ("keepalive",),
    ("sharing",),
    ("manager",),
    ("emulator",),
    ("export",),
    ("_open", "management", ""),  # what `import nvme_async` offers
    ("fio",),
    ("cli", "__main__"),
)
# The transports. Their shared code is in driver/; only the registry of URI schemes names one.
TRANSPORTS = tuple(f"{PACKAGE}.driver.{name}" for name in ("pcie", "tcp", "kernel"))
NAMES_TRANSPORTS = f"{PACKAGE}.driver.schemes"
# The modules at the top, drawn as one.
FACE = ("_open", "management", "")
# The keeper runs alone, without the rest of the package: it must import nothing of it.
ALONE = f"{PACKAGE}.keepalive.keeper"
ALONE_BUT = (f"{PACKAGE}.keepalive.keeper.client",)


def modules(root: Path) -> dict[str, Path]:
    """Module name → file, for every module of the package."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def statements(text: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The import statements of a source text, wherever they stand."""
    return tuple(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom))


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a module names in its import statements."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    named: set[str] = set()
    for node in statements(path.read_text()):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        else:
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                named.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module)
    found = set()
    for target in named:
        while target and target not in known:
            target = target.rpartition(".")[0]
        if target and target != name:
            found.add(target)
    return found


def layer(name: str) -> int:
    """The position of a module's layer. ValueError for a module that no layer holds."""
    head = name.split(".")[1] if "." in name else ""
    for position, heads in enumerate(LAYERS):
        if head in heads:
            return position
    raise ValueError(f"{name} belongs to no layer of tests/layers.py")


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One import circle, or nothing."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        stack = [(start, iter(edges[start]))] if start not in done else []
        path += [start] if stack else []
        while stack:
            module, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                done.add(module)
                stack.pop()
                path.pop()
            elif target in path:
                return [*path[path.index(target) :], target]
            elif target not in done:
                path.append(target)
                stack.append((target, iter(edges[target])))
    return []


def transport(name: str) -> str:
    """The transport that a module is part of, or ""."""
    return next((one for one in TRANSPORTS if name == one or name.startswith(f"{one}.")), "")


def problems(root: Path) -> list[str]:
    """The violations in the package below `root`, one per line."""
    known = modules(root)
    edges = {name: imports(name, path, known) for name, path in known.items()}
    found = []
    for name, targets in edges.items():
        for target in sorted(targets):
            try:
                if layer(target) > layer(name):
                    found.append(f"{name} imports {target}, which is of a higher layer")
            except ValueError as error:
                found.append(str(error))
            foreign = transport(target) not in ("", transport(name))
            if foreign and name.startswith(f"{PACKAGE}.driver.") and name != NAMES_TRANSPORTS:
                found.append(f"{name} imports {target}, which is part of a transport")
            if name.startswith(ALONE) and name not in ALONE_BUT and not target.startswith(ALONE):
                found.append(f"{name} imports {target}: the keeper runs without the rest of the package")
    around = circle(edges)
    if around:
        found.append("import circle: " + " → ".join(around))
    return found


def package(name: str) -> str:
    """The node of the graph that a module is drawn in."""
    head = name.split(".")[1] if "." in name else ""
    return "nvme_async" if head in FACE else "cli" if head == "__main__" else head


def graph(root: Path) -> str:
    """Which package imports which, for Mermaid. What follows from other arrows is left out."""
    known = modules(root)
    edges: dict[str, set[str]] = {package(name): set() for name in known}
    for name, path in known.items():
        edges[package(name)] |= {package(target) for target in imports(name, path, known)} - {package(name)}

    def reached(start: str) -> set[str]:
        return {start}.union(*(reached(target) for target in edges[start]))

    arrows = [
        f"    {name} --> {target}"
        for name in sorted(edges)
        for target in sorted(edges[name])
        if not any(target in reached(other) for other in edges[name] - {target})
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def drawn(page: str) -> str:
    """The graph that docs/design.md has."""
    start = page.index("```mermaid\ngraph TD")
    return page[start : page.index("\n```\n", start) + 4]


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    found = problems(root)
    page = root / "docs" / "design.md"
    text = page.read_text()
    if not found and drawn(text) != graph(root):
        if "--draw" in sys.argv:
            page.write_text(text.replace(drawn(text), graph(root)))
        else:
            found.append("docs/design.md draws another import graph: python tests/layers.py --draw")
    print("\n".join(found) if found else f"{len(LAYERS)} layers, no upward import, no circle")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
