"""Records what nvme-cli prints about the drive of nvme_cli_pages.py, and its options:

    python tests/e2e/record_nvme_cli.py NVME > tests/data/nvme-cli-2.13.json

NVME is nvme-cli's program, of the version in the file's name.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from nvme_bridge import Bridge, build_shim, run_nvme
from nvme_cli_cases import CASES
from nvme_cli_pages import answer


def options_of(nvme: str, *command: str) -> dict[str, str | None]:
    """Long option → short one, from the help."""
    done = subprocess.run([nvme, *command, "--help"], capture_output=True, text=True, check=False, timeout=30)
    found: dict[str, str | None] = {}
    for row in re.finditer(r"\[\s+(.*?)\s*\]\s+---", done.stdout + done.stderr):
        parts = [part.strip() for part in re.sub(r"=<[^>]*>| <[^>]*>", "", row[1]).split(",")]
        short = next((part[1:] for part in parts if re.fullmatch("-[^-]", part)), None)
        found |= {part[2:]: short for part in parts if part.startswith("--")}
    return found


def commands_of(nvme: str, *group: str) -> list[str]:
    done = subprocess.run([nvme, *group, "help"], capture_output=True, text=True, check=False, timeout=30)
    rows = done.stdout.split("implemented sub-commands:\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [" ".join((*group, row.split()[0])) for row in rows if row.split()[0] not in ("help", "version")]


def main() -> None:
    nvme = sys.argv[1]
    names = [name for group in ((), ("zns",), ("fdp",)) for name in commands_of(nvme, *group)]
    result: dict[str, Any] = {"options": {name: options_of(nvme, *name.split()) for name in names}, "json": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        library = build_shim(folder)
        assert library is not None, "needs a C compiler"

        async def handler(
            admin: bool, opcode: int, nsid: int, dwords: dict[str, int], sent: bytes, nbytes: int
        ) -> tuple[int, int, bytes]:
            return answer(admin, opcode, nsid, dwords, nbytes)

        bridge = Bridge(folder / "s", handler)
        bridge.start()
        assert bridge.ready.wait(10)
        for line in CASES:
            name, arguments = line.split(" /dev/nvme0 ")
            done = run_nvme([nvme, *name.split(), "/dev/nvme0", *arguments.split()], library, bridge.path)
            try:
                # Some print a line before and after it.
                text = re.sub(r"^[^\[{]*\n", "", done.stdout) if done.returncode == 0 else ""
                result["json"][line] = json.JSONDecoder().raw_decode(text)[0]
            except ValueError:
                print(f"{line}: {done.returncode} {done.stdout[:300]!r} {done.stderr!r}", file=sys.stderr)
        bridge.close()
    # One case a line, so that a difference between recordings can be read.
    for part in ("options", "json"):
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result[part].items())
        print(f'{"{" if part == "options" else ","}"{part}": {{\n{rows}\n}}')
    print("}")


if __name__ == "__main__":
    main()
