"""nvme-async: the command line. Subcommands live in separate modules and are imported on demand."""

from __future__ import annotations

import sys

import click

from nvme_async._version import __version__
from nvme_async.cli.grouped import LazyGroup
from nvme_async.cli.nvme.names import NVME
from nvme_async.cli.quirks import HELP, use_quirks
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.keepalive import config

# name → module:attribute
COMMANDS = {
    "bench": "nvme_async.cli.bench:bench",
    "bind": "nvme_async.cli.pci:bind",
    "check-tls-key": "nvme_async.cli.tls_keys:check_tls_key",
    "connect-all": "nvme_async.cli.connect_all:connect_all",
    "discover": "nvme_async.cli.discover:discover",
    "doctor": "nvme_async.cli.doctor:doctor",
    "emulate": "nvme_async.cli.emulate:emulate",
    "export": "nvme_async.cli.export:export",
    "flush": "nvme_async.cli.io:flush",
    "gen-tls-key": "nvme_async.cli.tls_keys:gen_tls_key",
    "keeper": "nvme_async.cli.keeper:keeper",
    "inspect": "nvme_async.cli.inspect:inspect",
    "list": "nvme_async.cli.pci:list_devices",
    "power": "nvme_async.cli.nvme.power:power",
    "read": "nvme_async.cli.io:read",
    "selftest": "nvme_async.cli.selftest:selftest",
    "share": "nvme_async.cli.share:share",
    "top": "nvme_async.cli.inspect:top",
    "unbind": "nvme_async.cli.pci:unbind",
    "write": "nvme_async.cli.io:write",
    **{name: f"nvme_async.cli.nvme.commands:{name}" for name in NVME},
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--keep-alive", metavar="SETTING", help="[disabled,](host|nohost),(privatepool|noprivatepool), enabled or disabled."
)
@click.option(
    "--disable-keep-alive/--no-disable-keep-alive", default=None, help="Disable keepalive, whatever other settings say."
)
@click.option(
    "--pool-pages",
    metavar="COUNT",
    help="Pages of 4 KiB in the private pool; off; or release or debug: computed from processors and queue depth.",
)
@click.option("--pool-numa", metavar="split", help="Spread the pool over the NUMA nodes.")
@click.option("--vfio/--no-vfio", default=None, help="Allow pci: devices.")
@click.option("--always-flr/--no-always-flr", default=None, help="Do a function level reset at each open.")
@click.option("--attach", metavar="SOCKET", help="Send nvme-cli's commands through the manager at this socket.")
@click.option(
    "--fused/--no-fused", default=None, help="No admin command after a device's bring-up; else its class decides."
)
@click.option("--quirks", metavar="QUIRKS", help=HELP)
@click.option(
    "--keeper", metavar="PATH", help="Deposit controllers with this keeper, and take over those that it holds."
)
@click.pass_context
def cli(
    ctx: click.Context,
    keep_alive: str | None,
    disable_keep_alive: bool | None,
    pool_pages: str | None,
    pool_numa: str | None,
    vfio: bool | None,
    always_flr: bool | None,
    fused: bool | None,
    quirks: str | None,
    attach: str | None,
    keeper: str | None,
) -> None:
    """Drive NVMe controllers from this process, without the kernel's block layer.

    A DEVICE is a URI: pci:0000:01:00.0, kernel:/dev/ng0n1, file:/path,
    vfio-user:/run/controller.sock, tcp:192.0.2.7:4420/nqn.… or emulated:size=1GiB.
    `nvme-async list` shows those of this machine.

    Options that aren't given come from the environment, or are inferred (see
    docs/keepalive-keeper.md); `nvme-async doctor` shows the result.
    """
    try:
        options = config.CommandLine(
            keepalive=None if keep_alive is None else config.parse_setting(keep_alive),
            pool_pages=None if pool_pages is None else config.parse_pool_pages(pool_pages),
            vfio=vfio,
            keeper=keeper,
            disable_keepalive=disable_keep_alive,
            pool_numa=None if pool_numa is None else config.parse_numa(pool_numa),
            always_flr=always_flr,
            fused=fused,
        )
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    ctx.with_resource(config.with_command_line(options))
    use_quirks(ctx, quirks)
    ctx.meta["nvme_async.attach"] = attach


def in_one_line(error: click.ClickException) -> str:
    """click's message on one line, with a reference to the help."""
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" (see {error.ctx.command_path} --help)"
    return f"nvme-async: {message}"


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the device or the operation failed, 2 the command line
    was invalid, 130 interrupted.

    Errors are one line on stderr.
    """
    try:
        cli(prog_name="nvme-async", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        print(in_one_line(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ConfigurationError as error:
        print(f"nvme-async: {error}", file=sys.stderr)
        sys.exit(2)
    except (NvmeError, OSError) as error:
        print(f"nvme-async: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
