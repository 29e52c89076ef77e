"""`--estimate`: what a sample says of a whole job is what the job then uses, on average and between the ends that it names."""

import json
import random
import re
from collections import Counter

import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.data import Source
from qwen3_jax.data.factory import FilterTask, GenerateTask, Limits, filter_records, filter_task, load_recipe, run
from qwen3_jax.data.factory.estimate import estimate
from qwen3_jax.data.factory.job import open_job
from qwen3_jax.data.records import DataError
from qwen3_jax.endpoints import Reply, Tokens
from tests.helpers.fake_endpoint import fake_endpoint, reply

JUDGES = (load_recipe("query_kind"), load_recipe("response_kind"))


def said(body):
    """A judge: queries with "elephant" have several parts; of "zebra" it says nothing that can be read, at first or ever."""
    prompt = body["messages"][-1]["content"]
    query = prompt.partition("Query:\n")[2]
    if "several_parts" not in body["response_format"]["json_schema"]["schema"]["properties"]:
        return json.dumps({"guessed": "luck" in query, "consistent": True})
    if "zebra" in query and body["seed"] % 3:
        return "I had rather not say. " * (body["seed"] % 5)
    return json.dumps({
        "verifiable": True, "several_parts": "elephant" in query, "general_writing": False, "domain": "other",
    })  # fmt: skip


class Scripted:
    """A backend in this process that answers at once; tokens are words, as those of the fake endpoint."""

    is_remote, slots = False, 4

    def __init__(self, answer):
        self.fingerprint, self._answer, self._waiting, self.sent = "scripted", answer, [], 0

    def submit(self, number, request, key=""):
        schema = {"json_schema": {"schema": request.schema}}
        body = {
            "messages": list(request.messages), "max_tokens": request.max_new_tokens, "seed": request.seed, "model": "m",
            "response_format": schema,
        }  # fmt: skip
        made = reply(body, self._answer(body))
        usage, text = made["usage"], made["choices"][0]["message"]["content"]
        self._waiting.append(
            (number, Reply("ok", text, tokens=Tokens(usage["prompt_tokens"], usage["completion_tokens"])))
        )
        self.sent += 1

    def collect(self, seconds=None):
        done, self._waiting = self._waiting, []
        return done

    def close(self):
        pass


def answers(path, rng, queries):
    """Answers to queries, in turn over the whole file; some wrong, some queries without reference, some with labels."""
    lines = []
    for i in range(queries):
        words = "word " * rng.randint(0, 40) + rng.choice(["elephant", "zebra", "apple", "apple", "apple"])
        reference = None if rng.random() < 0.1 else str(2 * i)
        more = {"query_labels": {"several_parts": False}} if rng.random() < 0.1 else {}
        for _ in range(rng.randint(1, 6)):
            right = rng.random() < 0.6
            thought = f"{i} and {i} make {2 * i}. " + "so " * rng.randint(0, 60)
            turns = [
                {"role": "user", "content": f"What is {i} + {i}, {words}?"},
                {"role": "assistant", "reasoning_content": thought, "content": f"It is {2 * i if right else 7777}."},
            ]
            lines.append(json.dumps({"messages": turns, "answer": reference, **more}) + "\n")
    lines += rng.sample(lines, len(lines) // 10)  # whole records twice
    if rng.random() < 0.5:  # a query's answers lie in several splits
        rng.shuffle(lines)
    path.write_text("".join(lines))
    return Source("answers", str(path))


def estimated(source, task, folder, backend, count, split_bytes):
    with open_job(source, task, folder, backend.fingerprint, split_bytes) as opened:
        return estimate(opened, backend, count, visible=False)


def used(cost):
    return cost["requests"], cost["prompt_tokens"], cost["completion_tokens"]


@pytest.mark.parametrize(
    "count", [2, pytest.param(16, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.soak)]
)
def test_estimates_of_judged_answers_hold_what_the_job_uses(count, tmp_path):
    """Intervals of 15 queries hold the use of the job in 95% of corpora, their mean is right; of all queries it is exact."""
    held, ratios = Counter(), []
    for seed in range(count):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        source = answers(folder / "in.jsonl", rng, 40)
        task, backend = FilterTask(verifier="number", judges=JUDGES), Scripted(said)
        found = estimated(source, task, folder / "out", backend, 15, 4000)
        assert (found.sampled, found.of_units, found.units) == (15, 40, "queries")
        sampled = backend.sent
        done = filter_records(source, task, folder / "out", backend, split_bytes=4000, visible=False)
        # Of the sample nothing is asked again, and the sample's share is what was asked of it.
        assert backend.sent == done.cost["requests"] > sampled
        for name, value in zip(("requests", "prompt", "completion"), used(done.cost), strict=True):
            interval = getattr(found, name)
            held[name] += interval.low <= value <= interval.high
            ratios.append(interval.middle / value)
        if seed < 2:
            every = estimated(source, task, folder / "all", backend, 40, 4000)
            whole = filter_records(source, task, folder / "all", backend, split_bytes=4000, visible=False)
            assert (
                (every.requests.middle, every.prompt.middle, every.completion.middle)
                == used(whole.cost)
                == used(done.cost)
            )
            assert every.requests.low == every.requests.high
            assert sum(of.requests.middle for of in every.purposes.values()) == every.requests.middle
    print(f"of {count} corpora: {dict(held)}; estimates are {sum(ratios) / len(ratios):.3f} times what was used")
    assert min(held.values()) >= 0.85 * count, held
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=3 * 0.16 / count**0.5)  # of one: 16%


def test_equal_records_cost_once_for_each_split_and_verification_leaves_unasked(tmp_path):
    def row(i, right=True, **more):
        turns = [
            {"role": "user", "content": f"What is {i} + {i}?"},
            {
                "role": "assistant",
                "reasoning_content": f"{i} and {i}.",
                "content": f"It is {2 * i if right else 7777}.",
            },
        ]
        return json.dumps({"messages": turns, "answer": str(2 * i), **more}) + "\n"

    labelled = {"query_labels": {"several_parts": False, "verifiable": True, "general_writing": False}}
    rows = [row(1), row(1), row(1, right=False), row(2, right=False), row(3, **labelled), row(4)]
    (tmp_path / "in.jsonl").write_text("".join(rows))
    source = Source("answers", str(tmp_path / "in.jsonl"))
    with fake_endpoint(answer=said) as endpoint:
        command = [
            "data", "filter", "--path", source.path, "--output", str(tmp_path / "out"), "--verifier", "number", "--model",
            endpoint.url, "--endpoint-model", "m", "--estimate", "4",
        ]  # fmt: skip
        assert main(command) == 0
        # Queries 1, 2 and 4; answers 1 (twice the same), 3 and 4.
        assert len(endpoint.requests) == 3 + 3
    task, backend = FilterTask(verifier="number", judges=JUDGES), Scripted(said)
    found = estimated(source, task, tmp_path / "again", backend, 4, 2**20)
    assert [(name, of.requests.middle, of.left_out.middle) for name, of in found.purposes.items()] == [
        ("query_kind", 3, 0), ("response_kind", 3, 2),
    ]  # fmt: skip
    # Of generated answers: equal queries are answered once in a split.
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"question": f"{i % 5} + 1?"}) + "\n" for i in range(20))
    )
    queries, task = Source("queries", str(tmp_path / "queries.jsonl")), GenerateTask(modes=("non-thinking",), samples=3)
    found = estimated(queries, task, tmp_path / "made", Scripted(lambda body: "5 " * 9), 5, 2**20)
    assert (found.records, found.of_units, found.requests.middle, list(found.purposes)) == (20, 5, 15, ["answers"])
    assert run(queries, task, tmp_path / "made", Scripted(lambda body: "5 " * 9)).cost["requests"] == 15


def test_the_command_shows_each_judge_and_what_is_not_asked(tmp_path, capsys):
    source = answers(tmp_path / "in.jsonl", random.Random(1), 30)
    with fake_endpoint(answer=said) as endpoint:
        # Not by a hash of the request's key, which has the endpoint's port: the first try of each request breaks off.
        endpoint.plan = lambda key, time_seen: "ok" if time_seen else "cut off"
        command = [
            "data", "filter", "--path", source.path, "--output", str(tmp_path / "out"), "--verifier", "number", "--model",
            endpoint.url, "--endpoint-model", "m", "--estimate", "10", "--price-in", "1", "--price-out", "2", "--retries", "20",
        ]  # fmt: skip
        assert main(command) == 0
    shown = capsys.readouterr().out
    assert "10 of 30 queries asked" in shown
    for line in (
        r"query_kind: requests", r"response_kind: prompt tokens", r"│ requests ", r"total tokens", r"dollars",
        r"response_kind: nothing is asked about [\d,]+ of [\d,]+ records \([\d,]+ to [\d,]+\)",
        r"replies that break off may cost [\d,]+ tokens more, at most \([\d,]+ to [\d,]+\)",
    ):  # fmt: skip
        assert re.search(line, shown), line


def test_every_answer_is_verified_once_with_a_judge_and_without(tmp_path, monkeypatch):
    calls = Counter()

    def counted(name, text, reference=None, settings=None):
        calls[text, reference] += 1
        return verify(name, text, reference, settings)

    verify = filter_task.verify
    monkeypatch.setattr(filter_task, "verify", counted)
    source = answers(tmp_path / "in.jsonl", random.Random(2), 20)
    records = sum(1 for _ in (tmp_path / "in.jsonl").open())
    for name, judges in (("rules", ()), ("judged", JUDGES), ("one", JUDGES[1:])):
        calls.clear()
        task = FilterTask(verifier="number", judges=judges)
        backend = Scripted(said) if judges else None
        done = filter_records(source, task, tmp_path / name, backend, split_bytes=1000, visible=False)
        assert done.counts.read == sum(calls.values()) == records, name
    # What was recorded is judged from there, and verified once again, as it may be with another verifier.
    calls.clear()
    again = FilterTask(verifier="number", judges=JUDGES, similarity=0.5)
    filter_records(source, again, tmp_path / "judged", None, split_bytes=1000, visible=False)
    assert sum(calls.values()) == records


def test_a_budget_that_ends_the_sample_leaves_what_is_whole(tmp_path):
    source = answers(tmp_path / "in.jsonl", random.Random(3), 30)
    task, backend = FilterTask(verifier="number", judges=JUDGES), Scripted(said)
    with open_job(source, task, tmp_path / "out", backend.fingerprint) as opened:
        found = estimate(opened, backend, 20, Limits(tokens=6000), visible=False)
        assert 0 < found.sampled < 20
        assert "tokens are used" in found.asking.over_budget
        assert found.total.low <= found.total.middle <= found.total.high
    with (
        open_job(source, task, tmp_path / "none", backend.fingerprint) as opened,
        pytest.raises(DataError, match="the budget holds none of the sample"),
    ):
        estimate(opened, backend, 20, Limits(tokens=1), visible=False)
