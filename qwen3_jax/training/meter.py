"""Throughput of a run, and what its time went to."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax

from qwen3_jax.json_fields import read_json
from qwen3_jax.paths import replace_file
from sharding.hardware import peak_flops

PARTS = ("step", "input", "compile", "eval", "checkpoint", "other")
T = TypeVar("T")
U = TypeVar("U")


def device_peak(run_dir: Path) -> float | None:
    """Return the peak FLOP/s of a device of this run; None if unknown.

    A CPU's is measured, with some spread: it is kept in RUN/cpu_peak.json, so that MFU is comparable over all starts on one
    kind of machine.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return peak_flops(device)
    machine, path = (
        f"{_processor()}, {os.cpu_count()} cores, {jax.local_device_count()} devices",
        run_dir / "cpu_peak.json",
    )
    known = read_json(path) if path.exists() else {}
    if known.get("machine") != machine:
        known = {"machine": machine, "flops": peak_flops(device)}
        if jax.process_index() == 0:
            replace_file(path, json.dumps(known) + "\n")
    return known["flops"]


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Meter:
    """Throughput and time by activity between two readings.

    Steps are dispatched asynchronously. A thread waits for each result and notes the time, so that the device's computation and
    its wait for input are measured independently of what the host does.

    Args:
        tokens_per_step: tokens of the global batch.
        flops_per_token: FLOPs of forward and backward pass.
        peak: FLOP/s of one device; None if unknown.
        devices: number of devices of the run.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float, peak: float | None, devices: int):
        self._tokens, self._flops, self._peak, self._devices = tokens_per_step, flops_per_token, peak, devices
        self._watcher = ThreadPoolExecutor(1, "meter")
        self._last: Future[None] | None = None
        self._done = self._since = self._asked = time.perf_counter()
        self._compiled = False
        self._begin(self._since)

    def _begin(self, now: float) -> None:
        self._since, self._steps, self._spent = now, 0, dict.fromkeys(PARTS[:-1], 0.0)
        self._steady, self._before = now, dict(self._spent)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown()

    def fetch(self, get: Callable[[], T]) -> T:
        """Get the input of the next step from `get`."""
        self._asked = time.perf_counter()
        return get()

    def step(self, take: Callable[[], tuple[T, U]]) -> tuple[T, U]:
        """Dispatch a step that returns (state, metrics)."""
        fetched = time.perf_counter()
        out = take()
        self._last = self._watcher.submit(self._finish, self._asked, fetched, out[1])
        return out

    def _finish(self, asked: float, fetched: float, result: Any) -> None:
        jax.block_until_ready(result)
        now = time.perf_counter()
        self._spent["input"] += max(fetched - max(asked, self._done), 0.0)
        self._spent["step" if self._compiled else "compile"] += now - max(fetched, self._done)
        self._steps += self._compiled
        if not self._compiled:  # what came before is the start's: the speed of a resumed run does not begin low
            self._steady, self._before = now, dict(self._spent)
        self._compiled, self._done = True, now

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    @contextlib.contextmanager
    def during(self, what: Literal["eval", "checkpoint"]) -> Iterator[None]:
        """Measure the time of evaluation or of a checkpoint."""
        self._wait()
        started = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - started

    def read_and_reset(self) -> dict[str, float]:
        """Return the measurements since the last reading and start the next interval.

        `seconds` is the sum of `seconds_step` (computation), `_input` (the device waited for a batch), `_compile` (the first
        step of a stage), `_eval`, `_checkpoint` (while it blocked the run) and `_other` (the rest). If a step ended in the
        interval: `tokens_per_second` without compilation and what precedes it, evaluation and checkpoints,
        `tflops_per_device`, `mfu` (if `peak` is known), and `input_wait_share`.
        """
        self._wait()
        now = time.perf_counter()
        seconds, steps, spent = now - self._since, self._steps, self._spent
        steady = {name: spent[name] - self._before[name] for name in spent}
        steady["other"] = max(now - self._steady - sum(steady.values()), 0.0)
        self._begin(now)
        spent["other"] = max(seconds - sum(spent.values()), 0.0)
        out = {"seconds": seconds} | {f"seconds_{name}": spent[name] for name in PARTS}
        if steps == 0:
            return out
        training = steady["step"] + steady["input"] + steady["other"]
        tokens = self._tokens * steps / training
        flops = tokens * self._flops / self._devices
        out |= {
            "tokens_per_second": tokens,
            "tflops_per_device": flops / 1e12,
            "input_wait_share": steady["input"] / training,
        }
        return out if self._peak is None else out | {"mfu": flops / self._peak}
