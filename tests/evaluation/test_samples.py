"""The folder of a run: nothing is lost or repeated, another run is refused, and what is finished does not depend on the way."""

import itertools
import json
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.comparison import compare
from qwen3_jax.evaluation.plan import EvalConfig, Plan
from qwen3_jax.evaluation.reply import Reply
from qwen3_jax.evaluation.results import write_results
from qwen3_jax.evaluation.runner import run
from qwen3_jax.evaluation.samples import SampleFile, read_samples
from qwen3_jax.evaluation.task import Problem, Task
from tests.helpers.evaluation_runs import SUMS, engine_source, planned, sums

ROOT = Path(__file__).parents[2]


class Fake:
    """Answers without a model, in an odd order; fails after `most`."""

    def __init__(self, most: int | None = None, wrong: int = 3):
        self.most, self.wrong, self.asked = most, wrong, []

    def answers(self, families):
        items = [item for family in families for item in family]
        for place, item in enumerate(sorted(items, key=lambda item: zlib.crc32(str(item.key).encode()))):
            if place == self.most:
                raise UserError("the source ended")
            self.asked.append(item.key)
            right = int(item.key.problem) % self.wrong > 0
            text = f"<think>\nhm\n</think>\n\n{item.question.problem.reference if right else 'x'}"
            yield item, Reply(text, "hm", text[21:], (), "stop", 5, 9, 3, 0)

    def describe(self):
        return {"fake": 1}


TASK = Task("sums", "", lambda rows, options: (), "number", {"take": "first"}, samples=2, max_new_tokens=50)


def plan(**changes) -> Plan:
    return planned(sums(7), task=TASK, **{"budgets": (None, 4)} | changes)


def settings(of: Plan) -> dict:
    return {"model": {"fake": 1}, **of.settings()}


def evaluate(folder: Path, source: Fake, of: Plan | None = None) -> list[dict]:
    of = of or plan()
    with SampleFile(folder, of, settings(of)) as samples:
        out = list(run(of, source, samples, threads=3))
        if len(samples.done) == len(of):
            samples.sort()
    return out


def test_a_run_that_ends_anywhere_is_continued_with_nothing_lost_or_repeated(tmp_path):
    whole = tmp_path / "whole"
    assert len(evaluate(whole, Fake())) == len(plan()) == 28
    write_results(whole)
    assert [
        tuple(sample[name] for name in ("task", "problem", "mode", "budget", "sample"))
        for sample in read_samples(whole)
    ] == list(plan().keys())
    parts, asked = tmp_path / "parts", []
    for torn, most in ((b'{"task": "sums", "pro', 5), (b"", 0), (b"{}", 9), (b"\xff\xfe", 3)):
        source = Fake(most)
        with pytest.raises(UserError, match="the source ended"):
            evaluate(parts, source)
        asked += source.asked
        for name in ("samples.jsonl", "timings.jsonl"):
            with open(parts / name, "ab") as file:
                file.write(torn)  # a line that a killed process did not finish
    source = Fake()
    evaluate(parts, source)
    write_results(parts)
    asked += source.asked
    assert len(asked) == len(set(asked)) == 28
    for name in ("settings.json", "samples.jsonl", "problems.jsonl", "results.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    timed = [json.loads(line) for line in (parts / "timings.jsonl").read_text().splitlines()]
    assert len(timed) == 28
    assert all(line["verifier_seconds"] >= 0 for line in timed)
    again = Fake()
    assert evaluate(parts, again) == []
    assert again.asked == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (dict(budgets=(None, 5)), "thinking_budgets is [null, 4], and [null, 5] was asked for"),
        (dict(seed=1), "seed is 0, and 1 was asked for"),
        (dict(max_new_tokens=9), "tasks.sums.max_new_tokens is 50, and 9"),
        (dict(sampling={"top_k": 3}), "tasks.sums.sampling.thinking.top_k is 20, and 3"),
        (dict(samples=3), "tasks.sums.samples.thinking is 2, and 3"),
        (dict(limit=3), "tasks.sums.data is "),
        (dict(modes=("thinking", "non-thinking")), "tasks.sums.samples.non-thinking is null, and 2"),
        (dict(stop_text="enough</think>"), "thinking_stop_text is "),
    ],
)
def test_another_run_is_refused_by_the_setting_that_differs(tmp_path, changes, names):
    with pytest.raises(UserError, match="the source ended"):
        evaluate(tmp_path / "run", Fake(2))
    before = (tmp_path / "run/samples.jsonl").read_bytes()
    with pytest.raises(UserError) as error:
        evaluate(tmp_path / "run", Fake(), plan(**changes))
    assert f"--output {tmp_path / 'run'} holds another run: its {names}" in str(error.value)
    assert (tmp_path / "run/samples.jsonl").read_bytes() == before


def test_folders_that_are_no_run_or_in_use_are_refused(tmp_path):
    of = plan()
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for folder, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "full", "holds notes.txt and no evaluation"),
        (tmp_path / "none/run", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            SampleFile(folder, of, settings(of))
    with SampleFile(tmp_path / "run", of, settings(of)), pytest.raises(UserError, match="in use by another evaluation"):
        SampleFile(tmp_path / "run", of, settings(of))
    evaluate(tmp_path / "run", Fake())
    text = (tmp_path / "run/samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/samples.jsonl").write_text("".join([text[0], "nonsense\n", *text[2:]]))
    with pytest.raises(UserError, match=r"samples\.jsonl, line 2 is no sample"):
        SampleFile(tmp_path / "run", of, settings(of))
    with pytest.raises(UserError, match="no folder of `qwen3 eval --output`"):
        list(read_samples(tmp_path / "full"))


def test_digests_are_of_all_that_is_asked_and_judged():
    def digests(problem: Problem, task: Task = TASK) -> str:
        return planned([problem], task=task).settings()["tasks"]["sums"]["data"]

    base = dict(id="1", prompt=({"role": "user", "content": "1 + 1?"},), reference="2")
    first = digests(Problem(**base))
    assert digests(Problem(**base | {"prompt": ({"content": "1 + 1?", "role": "user"},)})) == first
    assert digests(Problem(**base, group="easy")) == first
    changed = [
        dict(id="2"), dict(prompt="1 + 1?"), dict(reference="3"), dict(tools=({"a": 1},)), dict(verifier="exact"),
        dict(settings={"take": "last"}), dict(enable_thinking=True),
    ]  # fmt: skip
    assert len({first, *(digests(Problem(**base | change)) for change in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Plan.of([(SUMS, [])], EvalConfig(), thinks=True, model="m"), "task sums has no problems"),
        (lambda: planned([*sums(2), sums(1)[0]]), "task sums has two problems with the id '0'"),
        (lambda: Plan.of([(SUMS, sums(1))] * 2, EvalConfig(), thinks=True, model="m"), "task sums is given twice"),
        (lambda: EvalConfig(modes=("thinkin",)), "no mode 'thinkin'.*Did you mean 'thinking'"),
        (lambda: EvalConfig(budgets=(4, 4)), "thinking budget 4 is given twice"),
        (lambda: EvalConfig(budgets=(-1,)), "budgets is -1"),
        (lambda: EvalConfig(budgets=()), "there is no thinking budget"),
        (lambda: EvalConfig(modes=("non-thinking",), budgets=(4,)), "needs the thinking mode"),
        (lambda: EvalConfig(sampling={"temperatur": 1}), "no sampling option 'temperatur'. Did you mean 'temperature'"),
        (lambda: EvalConfig(sampling={"temperature": -1}), "sampling option 'temperature' is -1"),
        (lambda: planned(samples=2, sampling={"temperature": 0}), "2 samples with temperature 0 are equal"),
        (lambda: planned(sums(1, verifier="nothing")), "task sums, problem 0: there is no verifier 'nothing'"),
        (lambda: planned(sums(1, settings={"tak": 1})), "task sums, problem 0: the verifier 'number' has no setting 'tak'"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_a_model_without_think_tags_is_asked_without_thinking_unless_thinking_was_asked_for():
    def of(task: Task = SUMS, **config) -> Plan:
        return Plan.of([(task, sums(1))], EvalConfig(**config), thinks=False, model="DIR")

    assert of().config.modes == ("non-thinking",)
    why = "DIR has no think tags in its vocabulary and chat template; leave"
    for message, build in (
        (f"the mode 'thinking' was asked for, and {why}", lambda: of(modes=("thinking",))),
        (f"a thinking budget was given, and {why}", lambda: of(budgets=(0, 8))),
        (
            f"the task flags measures thinking, and {why}",
            lambda: of(Task("flags", "", None, "thinking", needs_thinking=True)),
        ),
    ):
        with pytest.raises(UserError, match=message):
            build()


def test_problems_with_a_mode_of_their_own_keep_it_and_budgets_are_for_thinking():
    off, on = sums(1, enable_thinking=False)[0], sums(2, enable_thinking=True)[1]
    asked = [item for family in planned([off, on], samples=1, budgets=(0, 5, None)).families() for item in family]
    assert [(item.key.problem, item.budget, item.enable_thinking) for item in asked] == [
        ("0", None, False), ("1", None, True), ("1", 5, True), ("1", 0, None),
    ]  # fmt: skip
    assert {item.sampling.seed for item in asked[1:]} == {asked[1].sampling.seed}
    assert asked[0].sampling.seed != asked[1].sampling.seed


def test_a_verifier_that_cannot_run_ends_the_run_and_keeps_what_was_judged(tmp_path, monkeypatch):
    from qwen3_jax.evaluation import runner

    source, left = Fake(), []

    def broken(name, answer, reference, given, *, in_thinking):
        if len(source.asked) > 20 and reference == "4":
            left.append(answer)
            raise UserError("the verifier 'number' needs a package.")
        return verify(name, answer, reference, given, in_thinking=in_thinking)

    verify = runner.verify
    monkeypatch.setattr(runner, "verify", broken)
    with pytest.raises(UserError, match="the task sums, problem 2: the verifier 'number' needs a package"):
        evaluate(tmp_path / "run", source)
    kept = list(read_samples(tmp_path / "run"))
    assert 10 < len(kept) == len(source.asked) - len(left)


def test_runs_are_compared_over_the_questions_of_both(tmp_path):
    evaluate(tmp_path / "a", Fake(wrong=3))
    evaluate(tmp_path / "b", Fake(wrong=2), planned(sums(6), task=TASK, budgets=(4, 9)))
    (row,) = compare(tmp_path / "a", tmp_path / "b")
    # right in a: 1 2 4 5; in b: 1 3 5
    expected = dict(
        task="sums", mode="thinking", thinking_budget=4, questions=6, only_first=1, only_second=0, first=4 / 6, second=3 / 6,
        better=1, worse=2, p=1.0,
    )  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    other = [Problem(problem.id, problem.prompt, "0") for problem in sums(6)]
    evaluate(tmp_path / "c", Fake(), planned(other, task=TASK, budgets=(4,)))
    with pytest.raises(UserError, match=r"problem 1 of the task sums is asked or judged in two ways \(its prompt"):
        compare(tmp_path / "a", tmp_path / "c")
    evaluate(tmp_path / "d", Fake(), planned(sums(1), task=TASK, budgets=(7,)))
    with pytest.raises(UserError, match=r"no task, mode and thinking budget in common: .* has sums \(thinking, 4\)"):
        compare(tmp_path / "a", tmp_path / "d")


KILLED = """
    import os, sys, threading, time
    from pathlib import Path
    from tests.evaluation import test_samples as t

    class Slow(t.Fake):
        def answers(self, families):
            for place, pair in enumerate(super().answers(families)):
                print("answered", flush=True)
                time.sleep(0.002)
                yield pair

    t.evaluate(Path(sys.argv[1]), Slow())
"""


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_a_run_that_is_killed_gives_the_same_file(tmp_path, kills):
    """kill -9 in the middle of writing, wherever it hits."""
    evaluate(tmp_path / "whole", Fake())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "parts")]
    sizes = []
    for kill in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        for _ in range(1 + kill % 2):
            process.stdout.readline()
        process.kill()
        process.wait()
        file = tmp_path / "parts/samples.jsonl"
        sizes.append(file.stat().st_size if file.exists() else 0)
    assert sizes == sorted(sizes)
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "parts/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_a_run_on_the_engine_that_is_interrupted_often_gives_the_same_file(tmp_path, times):
    """Wherever it ends: thinking that budgets share is then generated anew for those that are left."""
    of = planned(sums(6), sampling={"temperature": 0.9, "top_k": 40}, budgets=(None, 0, 3, 64))

    def part(name: str, source, most: int | None) -> int:
        with SampleFile(tmp_path / name, of, settings(of)) as samples:
            stream = run(of, source, samples)
            count = sum(1 for _ in itertools.islice(stream, most))
            stream.close()
            if len(samples.done) == len(of):
                samples.sort()
            return count

    source = engine_source()
    assert part("whole", source, None) == len(of) == 48
    for number in range(times):
        part("parts", engine_source() if number % 7 == 3 else source, number % 3)
    part("parts", source, None)
    assert (tmp_path / "parts/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()
