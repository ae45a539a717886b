"""nvme-async bench: the program of benchmarks/fio.py, whose command line is fio's and not
click's.
"""

from __future__ import annotations

import sys

import click

from nvme_async.fio.main import main


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure a device with fio's job files and options (bench --help lists them)."""
    sys.exit(main(arguments))
