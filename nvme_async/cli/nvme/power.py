"""nvme-async power: power states. No command of nvme-cli's, but with its options."""

from __future__ import annotations

from typing import Any

import click

from nvme_async.cli.nvme.build import COMMANDS, command, execute
from nvme_async.cli.nvme.output import show
from nvme_async.driver.power import Power
from nvme_async.errors import ConfigurationError

_HEAD = ("state", "most", "idle", "entry", "exit", "after", "to")


def _watts(value: float | None) -> str:
    return "-" if not value else f"{value:g} W"


@command(
    "power",
    (("-s", "--state"), "state", int, None, "Change to this power state."),
    (("-w", "--workload"), "workload", click.IntRange(0, 7), 0, "With --state: workload hint."),
    (("-S", "--save"), "save", bool, False, "With --state: also after a power cycle."),
    (("-l", "--latency"), "latency", int, None, "Autonomous transitions to states left in so many us; 0: none."),
    output=True,
)
def _power(
    device: str | None,
    state: int | None,
    workload: int,
    save: bool,
    latency: int | None,
    output: str,
    human: bool,
) -> None:
    """Show the power states of DEVICE, or change the present one.

    A change without --save lasts until the controller's reset: so it needs --attach, as DEVICE is
    reset when this program closes it.
    """
    if state is None and (workload or save):
        raise click.UsageError("--workload and --save need --state")

    async def operation(controller: Any) -> dict[str, Any]:
        power = Power(controller)
        if latency is not None:
            await power.set_latency(latency)
        if state is not None:
            await power.set(state, workload=workload, save=save)
        now = await power.get()
        apst = await power.autonomous() if controller.identify.apsta & 1 else None
        rows = []
        for number, one in enumerate(power.states):
            entry = apst.transitions[number] if apst is not None and apst.enabled else None
            goes = entry is not None and entry.itpt > 0
            rows.append(
                {
                    "state": number,
                    "operational": one.operational,
                    "max_power_watts": one.max_power_watts,
                    "idle_power_watts": one.idle_power_watts,
                    "active_power_watts": one.active_power_watts,
                    "entry_latency_us": one.enlat,
                    "exit_latency_us": one.exlat,
                    "idle_ms": entry.itpt if entry is not None and goes else None,
                    "next_state": entry.itps if entry is not None and goes else None,
                }
            )
        return {
            "state": now.state,
            "workload": now.workload,
            "max_power_watts": now.watts,
            "autonomous": None if apst is None else apst.enabled,
            "states": rows,
        }

    try:
        found = execute(device, operation)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error

    def text() -> str:
        rows = [
            (
                f"{row['state']}{'' if row['operational'] else ' (no I/O)'}" + " *" * (row["state"] == found["state"]),
                _watts(row["max_power_watts"]),
                _watts(row["idle_power_watts"]),
                f"{row['entry_latency_us']} us",
                f"{row['exit_latency_us']} us",
                "-" if row["idle_ms"] is None else f"{row['idle_ms']} ms",
                "-" if row["next_state"] is None else str(row["next_state"]),
            )
            for row in found["states"]
        ]
        widths = [max(len(row[i]) for row in (_HEAD, *rows)) for i in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (_HEAD, *rows)
        )

    show(output, None, found, text=text)


power: click.Command = COMMANDS.pop("power")
