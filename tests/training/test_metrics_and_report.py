"""What a run says of itself: time accounts that add up, lines without gaps, one page."""

import json
import math
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.errors import UserError
from qwen3_jax.training import meter, metrics, report
from qwen3_jax.training.loss_plot import nan_for_null, plot_loss, running_mean
from qwen3_jax.training.run_log import read_run


class SimulatedTime:
    """A clock that only sleeping and waiting move, and a device that takes 0.2 s a step behind an asynchronous queue.

    Stands for the module `time` and the executor of `meter`: what waits for a result sees the time at which it was there.
    """

    def __init__(self):
        self.now, self.free, self.seen_by_watcher = 0.0, 0.0, None
        self.queue = []

    def perf_counter(self):
        return self.now if self.seen_by_watcher is None else self.seen_by_watcher

    def sleep(self, seconds):
        self.now += seconds

    def dispatch(self):
        self.free = max(self.now, self.free) + 0.2
        return None, self.free  # (state, metrics): the metrics are there at this time

    def block_until_ready(self, result):
        self.seen_by_watcher = result

    def __call__(self, *_):
        return self

    def submit(self, function, *args):
        self.queue.append((function, args))
        return self

    def result(self):
        for function, args in self.queue:
            function(*args)
            self.now, self.seen_by_watcher = max(self.now, self.seen_by_watcher), None
        self.queue.clear()

    def shutdown(self):
        pass


def test_the_accounts_of_time_add_up_and_tell_waiting_from_working(monkeypatch):
    """A device that takes 0.2 s a step, fed in 0.05 s and then in 0.4 s: only what it waits for counts as waiting."""
    time = SimulatedTime()
    monkeypatch.setattr(meter, "time", time)
    monkeypatch.setattr(meter, "ThreadPoolExecutor", time)
    monkeypatch.setattr(jax, "block_until_ready", time.block_until_ready)
    clock = meter.Meter(tokens_per_step=100, flops_per_token=1e6, peak=1e9, devices=2)

    def train(count, seconds):
        for _ in range(count):
            clock.fetch(lambda: time.sleep(seconds))
            clock.step(time.dispatch)
        return clock.read_and_reset()

    with clock:
        first = train(1, 0.0)
        quick = train(4, 0.05)
        slow = train(4, 0.4)
        with clock.during("eval"):
            time.sleep(0.3)
        with clock.during("checkpoint"):
            time.sleep(0.1)
        time.sleep(0.6)
        rest = clock.read_and_reset()
        clock.fetch(lambda: None)
        clock.step(time.dispatch)
        time.sleep(0.5)  # the device is done long before the host reads
        late = clock.read_and_reset()

    def account(seconds, **parts):
        return {"seconds": pytest.approx(seconds)} | {
            f"seconds_{part}": pytest.approx(parts.get(part, 0.0), abs=1e-9) for part in meter.PARTS
        }

    def speed(tokens, seconds, waited):
        rate = tokens / seconds
        return {
            "tokens_per_second": pytest.approx(rate), "tflops_per_device": pytest.approx(rate * 1e6 / 2 / 1e12),
            "mfu": pytest.approx(rate * 1e6 / 2 / 1e9), "input_wait_share": pytest.approx(waited / seconds, abs=1e-9),
        }  # fmt: skip

    assert first == account(0.2, compile=0.2)
    # 0.05 before the first step; the others were fetched while the device worked.
    assert quick == account(0.85, step=0.8, input=0.05) | speed(400, 0.85, 0.05)
    # 0.4 before the first, and three times 0.4 - 0.2.
    assert slow == account(1.8, step=0.8, input=1.0) | speed(400, 1.8, 1.0)
    assert rest == account(1.0, eval=0.3, checkpoint=0.1, other=0.6)
    assert late == account(0.5, step=0.2, other=0.3) | speed(100, 0.5, 0.0)
    unknown = meter.Meter(tokens_per_step=1, flops_per_token=1, peak=None, devices=1)
    unknown.step(time.dispatch)
    unknown.step(time.dispatch)
    assert "mfu" not in (reading := unknown.read_and_reset())
    assert "tflops_per_device" in reading


def test_the_running_mean_is_of_a_twentieth_and_leaves_out_what_is_not_finite():
    values = [float(i) for i in range(60)]
    means = running_mean(values)
    assert means[:5] == [0, 0.5, 1, 1.5, 2.5]  # of at most four: a value and the three before it
    assert means[59] == 57.5
    assert running_mean(nan_for_null([1.0, None, 4.0])) == [1, 1, 4]
    assert math.isnan(running_mean(nan_for_null([None, 1.0]))[0])


def test_a_resumed_run_drops_the_lines_that_it_writes_again(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0, started=1.0)
    for step in range(1, 6):
        writer.write(step, {"train.x": float(step), "train.bad": float("nan"), "train.worse": float("inf")})
        writer.write_routers(step, np.full((2, 4), step, np.float32))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "trai')  # killed while it wrote
    again = metrics.MetricsWriter(tmp_path, 3, started=2.0)
    for step in range(4, 7):
        again.write(step, {"train.x": float(step)})
    again.close()
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["train.bad"] is rows[0]["train.worse"] is None
    assert [row["step"] for row in metrics.read(tmp_path / "router.jsonl")] == [1, 2, 3]
    history = metrics.read(tmp_path / "history.jsonl")
    assert [(row["event"], row["step"]) for row in history] == [("start", 0), ("start", 3), ("end", 6)]
    metrics.MetricsWriter(tmp_path, 6, started=3.0).close("Diverged: lost")
    ended = metrics.read(tmp_path / "history.jsonl")[-1]
    assert (ended["event"], ended["step"], ended["reason"]) == ("end", 6, "Diverged: lost")
    assert "reason" not in history[-1]
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
            "train.gradient_norm": 1.0, "train.parameter_norm": 9.0, "train.learning_rate": 1e-3,
            "train.skipped": float(step > 12), "tokens_per_second": 40.0 + step, "tflops_per_device": 0.1, "seconds_step": 3.0,
            "seconds_eval": 0.5, **layers,
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
    assert numbers == {
        "step": 20, "steps": 20, "training_loss": 1.0, "held_out_loss": {"text": 2.5}, "skipped": 1.0, "starts": 2,
        "seconds": {"step": 60.0, "input": 0, "compile": 0, "eval": 10.0, "checkpoint": 0, "other": 0, "rest": 30.0},
        "goodput": pytest.approx(0.6), "tokens_per_second": 51.0, "tflops_per_device": 0.1,
    }  # fmt: skip
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
        "<tr><td>one</td><td>1 to 10</td><td>1,280</td><td>2.000</td><td>text 2.500</td><td>46</td></tr>",
        "<tr><td>two</td><td>11 to 20</td><td>1,280</td><td>1.000</td><td>text 2.500</td><td>56</td></tr>",
        "<tr><td>evaluation</td><td>10.0</td><td>10.0%</td></tr>",
    ):
        assert text in page, text
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    # A run that has not come to its second stage, whose last logged step was skipped for its loss.
    lines = (run / "metrics.jsonl").read_text().splitlines()[:7]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (run / "router.jsonl").unlink()
    numbers = report.summary(run)
    assert numbers["training_loss"] is None
    assert qwen3(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers
    page = (run / "report.html").read_text()
    assert "training loss not finite" in page
    assert "<tr><td>one</td><td>1 to 10</td><td>1,280</td><td>not finite</td><td></td><td>44</td></tr>" in page
    assert "<tr><td>two</td><td>11 to 20</td><td>1,280</td><td>not started</td><td></td><td></td></tr>" in page
    with pytest.raises(UserError, match=r"is not the folder of a training run, which has config\.json"):
        read_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no metrics yet"):
        read_run(run)


@pytest.mark.slow
def test_the_page_fits_a_phone_and_follows_a_dark_system(tmp_path):
    """In a browser: no sideways scrolling, one column on a phone and two on a screen, light on dark where the system is."""
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs chromium")
    page_file = report.write_report(made_up_run(tmp_path / "run")).as_uri()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for width, scheme, columns in ((390, "dark", 1), (1280, "light", 2)):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.goto(page_file)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            lefts = {round(box) for box in page.evaluate(
                "[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().left)"
            )}  # fmt: skip
            assert len(lefts) == columns
            colours = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
            )
            background, text = ([int(n) for n in re.findall(r"\d+", colour)[:3]] for colour in colours)
            assert (sum(text) > sum(background)) == (scheme == "dark"), colours
            assert abs(sum(text) - sum(background)) > 300
        browser.close()


def test_the_plot_of_a_run_that_ended_before_its_first_metrics(tmp_path, recwarn):
    (tmp_path / "metrics.jsonl").write_text("")
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", {})
    assert (tmp_path / "loss.png").stat().st_size > 0
    assert not recwarn.list
