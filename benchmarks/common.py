"""Timing two functions in turn, so that other load on the machine affects both, and tables of results."""

import argparse
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3_jax.progress import progress_bar
from sharding.hardware import GPUS


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    label: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Call every contestant once to warm up, then in turn `rounds` times; return each one's median seconds.

    Args:
        contestants: functions by name; each returns when its work is done.
        rounds: calls of each that are timed.
        label: of the progress bar.
        clock: seconds; `time.process_time` counts CPU seconds instead of wall-clock seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with progress_bar(label, (rounds + 1) * len(contestants)) as bar:
        for turn in range(rounds + 1):
            for name, call in contestants.items():
                started = clock()
                call()
                if turn:
                    seconds[name].append(clock() - started)
                bar.advance(1, name)
    return {name: statistics.median(values) for name, values in seconds.items()}


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training step that is measured beside others: rows, length, rounds."""
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=10, help="measurements of each side, in turn (default: %(default)s)"
    )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add the number of devices of the CPU that our rows are divided over; see `cpu_mesh`."""
    parser.add_argument(
        "--devices", type=int, default=1, help="divide our rows over this number of devices of the CPU (default: 1)"
    )


def cpu_mesh(devices: int) -> Any:
    """Return a mesh that divides the batch over devices of the CPU, None for one; the first call comes before JAX starts."""
    if devices == 1:
        return None
    import jax

    import sharding

    jax.config.update("jax_num_cpu_devices", devices)
    return sharding.make_mesh(data=devices)


def card_of_kind(kind: str) -> str | None:
    """Return the card of plans ("h100") that JAX calls by this name; None if it is not one of them."""
    names = {prefix: gpu.name for gpu in GPUS.values() for prefix in gpu.kinds}
    matching = [prefix for prefix in names if re.match(rf"{re.escape(prefix)}(?![A-Za-z0-9])", kind)]
    return names[max(matching, key=len)] if matching else None


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, and the device and versions it was measured with."""
    import jax

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    device = jax.devices()[0]
    console.print(
        f"{device.device_kind} ({platform.machine()}), Python {platform.python_version()}, jax {jax.__version__}"
    )
