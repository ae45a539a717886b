"""Does an installed wheel work? Run by the Python that has it, from anywhere; exit code 0 if so."""

import asyncio
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import nvme_async

PROGRAM = Path(sys.executable).with_name("nvme-async")
SHARE = Path(sys.prefix) / "share"


async def io() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        await namespace.pwrite(b"hello, wheel", 1000)
        assert await namespace.pread(12, 1000) == b"hello, wheel"


def main() -> None:
    assert importlib.metadata.version("nvme_async") == nvme_async.__version__
    found = importlib.util.find_spec("nvme_async")
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).is_relative_to(sys.prefix), found.origin
    assert (Path(found.origin).parent / "py.typed").exists()
    asyncio.run(io())
    bench = [str(PROGRAM), "bench", "--name=try", "--filename=emulated:size=64MiB", "--rw=randread", "--iodepth=8"]
    done = subprocess.run(
        [*bench, "--number_ios=10000", "--output-format=json"], check=True, stdout=subprocess.PIPE, text=True
    )
    job = json.loads(done.stdout)["jobs"][0]
    assert job["read"]["total_ios"] == 10000, job["read"]
    page, completion = SHARE / "man/man1/nvme-async.1", SHARE / "bash-completion/completions/nvme-async"
    assert page.exists(), page
    assert completion.exists(), completion
    print(f"nvme_async {nvme_async.__version__} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
