"""What a run says of itself: time accounts that add up, lines without gaps, one page."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from qwen3_jax.cli import main as qwen3
from qwen3_jax.errors import UserError
from qwen3_jax.training import meter, metrics, report
from qwen3_jax.training.run_log import read_run


def test_the_accounts_of_time_add_up_and_tell_waiting_from_working(monkeypatch):
    """A device that takes 0.2 s a step, fed in 0.05 s and then in 0.4 s: only what it waits for counts as waiting."""

    class Device:
        """Works through the steps one after the other, 0.2 s each, as an accelerator behind an asynchronous queue."""

        free = 0.0

        def wait(self, result):
            start = max(started[result], self.free)
            self.free = start + 0.2
            time.sleep(max(self.free - time.perf_counter(), 0))

    device, started = Device(), {}
    clock = meter.Meter(tokens_per_step=100, flops_per_token=1e6, peak=1e9, devices=2)

    def take():
        result = object()
        started[result] = time.perf_counter()
        return None, result

    monkeypatch.setattr(jax, "block_until_ready", device.wait)
    with clock:

        def train(count, seconds):
            for _ in range(count):
                clock.fetch(lambda: time.sleep(seconds))
                clock.step(take)
            return clock.read_and_reset()

        first = train(1, 0.0)
        assert first["seconds_compile"] >= 0.2
        assert "tokens_per_second" not in first
        quick = train(4, 0.05)
        slow = train(4, 0.4)
        with clock.during("eval"):
            time.sleep(0.2)
        rest = clock.read_and_reset()
    for row in (first, quick, slow, rest):
        assert sum(row[f"seconds_{part}"] for part in meter.PARTS) == pytest.approx(row["seconds"])
    # Sleeping may take longer than asked for, on a busy machine: up to what a wrong account would say.
    assert 0.8 <= quick["seconds_step"] < 1.5
    assert 0.04 < quick["seconds_input"] < 4 * 0.05  # 0.05 before the first step
    assert 0.8 <= slow["seconds_step"] < 1.5
    assert 0.95 < slow["seconds_input"] < 4 * 0.4  # 0.4 before the first, and three times 0.4 - 0.2
    assert 0.2 <= rest["seconds_eval"] < 1.0
    training = quick["seconds_step"] + quick["seconds_input"] + quick["seconds_other"]
    assert quick["tokens_per_second"] == pytest.approx(400 / training)
    assert quick["tflops_per_device"] == pytest.approx(400 / training * 1e6 / 2 / 1e12)
    assert quick["mfu"] == pytest.approx(quick["tflops_per_device"] * 1e12 / 1e9)


def test_a_resumed_run_drops_the_lines_that_it_writes_again(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0, started=1.0)
    for step in range(1, 6):
        writer.write(step, {"train.x": float(step), "train.bad": float("nan")})
        writer.write_routers(step, np.full((2, 4), step, np.float32))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "trai')  # killed while it wrote
    again = metrics.MetricsWriter(tmp_path, 3, started=2.0)
    for step in range(4, 7):
        again.write(step, {"train.x": float(step)})
    again.close()
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["train.bad"] is None
    assert [row["step"] for row in metrics.read(tmp_path / "router.jsonl")] == [1, 2, 3]
    history = metrics.read(tmp_path / "history.jsonl")
    assert [(row["event"], row["step"]) for row in history] == [("start", 0), ("start", 3), ("end", 6)]
    shown = {}
    for path in sorted((tmp_path / "tensorboard").glob("events*")):
        for event in tensorboard_events(path):
            if event.session_log.status == event.session_log.START:  # what TensorBoard does then
                shown = {step: values for step, values in shown.items() if step < event.step}
            if event.summary.value:
                shown[event.step] = {value.tag: value.simple_value for value in event.summary.value}
    assert {step: values["train/x"] for step, values in shown.items()} == {step: float(step) for step in range(1, 7)}


def tensorboard_events(path: Path) -> Iterator[event_pb2.Event]:
    """TFRecord: length, its checksum, the event, its checksum."""
    with open(path, "rb") as file:
        while header := file.read(12):
            yield event_pb2.Event.FromString(file.read(struct.unpack("<Q", header[:8])[0]))
            assert len(file.read(4)) == 4


def made_up_run(folder: Path) -> Path:
    """A run of two stages and 4 experts that was killed once: 100 s, of which 60 went to steps it still has."""
    folder.mkdir()
    stage = {"name": "one", "steps": 10, "batch_size": None, "sequence_length": 32}
    config = {
        "steps": None,
        "stages": [stage, stage | {"name": "two"}],
        "data": {"batch_size": 4, "sequence_length": 16},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows = []
    for step in range(1, 21):
        layers = {f"train.router_max_load.{layer:02}": 1.0 + step / 20 for layer in range(3)}
        rows.append({
            "step": step, "time": 1000.0 + 5 * step, "train.cross_entropy": 3 - step / 10 if step != 7 else None,
            "train.gradient_norm": 1.0, "train.parameter_norm": 9.0, "train.learning_rate": 1e-3, "train.skipped": 1.0,
            "tokens_per_second": 50.0, "tflops_per_device": 0.1, "seconds_step": 3.0, "seconds_eval": 0.5, **layers,
        })  # fmt: skip
        if step % 10 == 0:
            rows.append({
                "step": step, "time": 1000.0 + 5 * step, "eval.text": 2.5, "eval.text_unigram_entropy": 5.0,
                "position.0-16": 2.0, "position.16-32": 2.4,
            })  # fmt: skip
    history = [{"event": "start", "time": 1000.0, "step": 0}, {"event": "start", "time": 1040.0, "step": 6}]
    routers = [{"step": 20, "load": [[0.5, 1.5, 1.0, 1.0]] * 3}]
    for name, content in (("metrics", rows), ("history", history), ("router", routers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def test_the_page_shows_the_run_and_its_numbers_are_right(tmp_path, capsys):
    run = made_up_run(tmp_path / "a <run>")
    numbers = report.summary(run)
    assert numbers["goodput"] == pytest.approx(0.6)
    assert numbers["seconds"]["rest"] == pytest.approx(30)
    assert (numbers["step"], numbers["steps"], numbers["starts"]) == (20, 20, 2)
    assert numbers["held_out_loss"] == {"text": 2.5}
    assert qwen3(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    for text in (
        "a &lt;run&gt;",
        "1 step skipped",
        "started 2 times",
        "goodput 60%",
        "after two",
        "busiest expert",
        "<svg",
    ):
        assert text in page, text
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert qwen3(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["goodput"] == pytest.approx(0.6)
    with pytest.raises(UserError, match="it has no config"):
        read_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no metrics yet"):
        read_run(run)
