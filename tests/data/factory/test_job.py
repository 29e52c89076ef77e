"""A job of the data factory: what it promises when all goes well, when replies fail, and when settings change."""

import dataclasses
import json

import pytest

from qwen3_jax.data import Cleaning, Source
from qwen3_jax.data.factory import AskOptions, Limits, Recipe, RecipeTask, run
from qwen3_jax.data.factory.parsing import Parser
from qwen3_jax.endpoints import Endpoint
from qwen3_jax.errors import UserError
from tests.helpers.fake_endpoint import answer_of, fake_endpoint

RECIPE = Recipe(
    "summary", 1, "a summary", "Summarise:\n{{text}}", Parser("text"), {"text": "{{answer.text}}", "of": "{{record.id}}"},
    max_new_tokens=64, sampling={"temperature": 0.7}, samples=2,
)  # fmt: skip


def corpus(folder, count=40, special=()):
    lines = []
    for i in range(count):
        text = f"Document {i} says that {i} and {i + 1} are {2 * i + 1}."
        lines.append(json.dumps({"id": i, "text": dict(special).get(i, "") + text}))
    path = folder / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return Source("in", str(path))


def made(folder):
    return [json.loads(line) for file in sorted((folder / "records").glob("*")) for line in file.open()]


def rejects(folder):
    return [json.loads(line) for line in (folder / "rejects.jsonl").open()]


def test_records_in_order_with_counts_equal_to_the_endpoints(tmp_path):
    source = corpus(tmp_path, special={3: "REFUSE ", 5: "REPEAT "})
    with fake_endpoint() as endpoint:
        backend = Endpoint(endpoint.url, "m", concurrency=8)
        done = run(source, RecipeTask(RECIPE), tmp_path / "out", backend, split_bytes=500)
        assert (done.counts.read, done.counts.made) == (40, 76)
        assert done.counts.rejected == {"refused": 2, "truncated": 2}
        assert [one["of"] for one in made(tmp_path / "out")] == [
            i for i in range(40) if i not in (3, 5) for _ in range(2)
        ]
        texts = [one["text"] for one in made(tmp_path / "out")]
        assert len(set(texts)) == len(texts), "samples have seeds of their own"
        assert {(one["outcome"], one["sample"]) for one in rejects(tmp_path / "out")} == {
            (outcome, sample) for outcome in ("refused", "truncated") for sample in (0, 1)
        }
        cost = done.cost
        assert (cost["prompt_tokens"], cost["completion_tokens"]) == endpoint.total()
        assert cost["discarded_completion_tokens"] == 2 * RECIPE.max_new_tokens
        assert cost["without_counts"]["requests"] == 0
        sent = len(endpoint.requests)
        again = run(source, RecipeTask(RECIPE), tmp_path / "out", backend, split_bytes=500)
        assert again.asking is None
        assert len(endpoint.requests) == sent


def test_text_that_no_file_can_hold_is_one_rejection(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = ['{"text": "half \\ud83d of a pair", "id": 0}', '{"text": "whole", "id": 1}', '{"text": "answer", "id": 2}']
    path.write_text("\n".join(lines) + "\n")
    with fake_endpoint(answer=lambda body: "\ud83d" if "answer" in str(body["messages"]) else "fine") as endpoint:
        done = run(Source("in", str(path)), RecipeTask(RECIPE), tmp_path / "out", Endpoint(endpoint.url, "m"))
    assert [one["of"] for one in made(tmp_path / "out")] == [0, 0, 1, 1]
    assert done.counts.rejected == {"invalid": 1}
    assert "surrogate" in rejects(tmp_path / "out")[0]["reason"]


def test_faults_are_tried_again_and_what_may_be_paid_is_counted(tmp_path):
    source = corpus(tmp_path)
    with fake_endpoint(faulty=0.5, stall_seconds=6) as endpoint:
        backend = Endpoint(endpoint.url, "m", concurrency=16, timeout=4.0)  # a busy machine takes a second to reply
        done = run(source, RecipeTask(RECIPE), tmp_path / "out", backend, options=AskOptions(tries=20, wait=0.01))
        assert done.counts.made == 80
        assert min(endpoint.faults.values()) > 0, endpoint.faults
        assert len(endpoint.faults) == 7, endpoint.faults
        assert (done.cost["prompt_tokens"], done.cost["completion_tokens"]) == endpoint.total(once=True)
        # On a busy machine a reply may come after the time limit: `repeated`.
        doubtful = (
            sum(endpoint.faults[what] for what in ("stall", "garbage", "cut off", "no reply")) + endpoint.repeated
        )
        assert done.cost["without_counts"]["requests"] == doubtful
        assert done.asking.retries == doubtful + endpoint.faults["HTTP 500"] + endpoint.faults["HTTP 429"]
    with fake_endpoint() as endpoint:
        clean = Endpoint(endpoint.url, "m", fingerprint=backend.fingerprint)
        run(source, RecipeTask(RECIPE), tmp_path / "clean", clean)
    assert made(tmp_path / "clean") == made(tmp_path / "out")


def test_a_changed_reading_asks_nothing_and_a_changed_asking_asks_all(tmp_path, capsys):
    source = corpus(tmp_path)
    with fake_endpoint() as endpoint:
        backend = Endpoint(endpoint.url, "m")

        def sent(recipe, of=backend, **more):
            before = len(endpoint.requests)
            run(source, RecipeTask(recipe), tmp_path / "out", of, **more)
            return len(endpoint.requests) - before, capsys.readouterr().err

        assert sent(RECIPE) == (80, "")
        changed = dataclasses.replace(RECIPE, parser=Parser("regex", pattern="Answer (?P<text>[0-9a-f]+)"))
        count, said = sent(changed)
        assert count == 0
        assert "parser is" in said
        assert "recorded answers" in said
        assert all(len(one["text"]) == 16 for one in made(tmp_path / "out"))
        for field, value in (("prompt", "Shorten:\n{{text}}"), ("sampling", {"temperature": 0.2}), ("version", 2)):
            count, said = sent(dataclasses.replace(RECIPE, **{field: value}))
            assert count == 80
            assert f"{field if field != 'version' else 'recipe'} is" in said
            assert "requests that this changes are asked again" in said
        count, said = sent(RECIPE, Endpoint(endpoint.url, "other"))
        assert count == 80
        assert "the model is" in said
        count, said = sent(RECIPE)  # as at first: its answers are still there
        assert count == 0
        recipe = dataclasses.replace(RECIPE, samples=3)
        assert sent(recipe)[0] == 40
        # A corpus that has grown and is split otherwise asks what is new alone.
        path = tmp_path / "in.jsonl"
        path.write_text(json.dumps({"id": 99, "text": "new"}) + "\n" + path.read_text())
        count, said = sent(recipe, split_bytes=300)
        assert (count, "the files have changed" in said) == (3, True)
        assert [one["of"] for one in made(tmp_path / "out")] == [99] * 3 + [i for i in range(40) for _ in range(3)]
        total = json.loads((tmp_path / "out/cost.json").read_text())
        assert (total["prompt_tokens"], total["completion_tokens"]) == endpoint.total()


def test_a_budget_is_never_exceeded_and_a_larger_one_goes_on(tmp_path):
    from decimal import Decimal

    source = corpus(tmp_path)
    with fake_endpoint() as endpoint:
        backend = Endpoint(endpoint.url, "m", concurrency=4)
        done = run(source, RecipeTask(RECIPE), tmp_path / "out", backend, limits=Limits(tokens=2000))
        assert 0 < done.counts.made < 80
        assert done.counts.rejected == {"over budget": 80 - done.counts.made}
        assert sum(endpoint.total()) <= 2000
        assert "tokens are used" in done.asking.over_budget
        limits = Limits(usd=Decimal("0.003"), price_in=Decimal("0.5"), price_out=Decimal(2))
        more = run(source, RecipeTask(RECIPE), tmp_path / "out", backend, limits=limits)
        assert done.counts.made < more.counts.made < 80
        prompt, completion = endpoint.total()
        assert Decimal(more.cost["usd"]) == (Decimal("0.5") * prompt + 2 * completion) / 1_000_000 <= limits.usd
        rest = run(source, RecipeTask(RECIPE), tmp_path / "out", backend)
        assert rest.counts.made == 80
        assert len(endpoint.requests) == 80
    for wrong in (dict(tokens=0), dict(usd=Decimal(1)), dict(price_in=Decimal(1)), dict(price_in=Decimal("nan"))):
        with pytest.raises(UserError):
            Limits(**wrong)


def test_an_endpoint_that_counts_more_than_it_was_asked_is_named(tmp_path, capsys):
    def more(body):
        body["messages"].insert(0, {"role": "system", "content": "hidden " * 2000})
        return answer_of(body)

    with fake_endpoint(answer=more) as endpoint:
        run(corpus(tmp_path, 3), RecipeTask(RECIPE), tmp_path / "out", Endpoint(endpoint.url, "m"))
    assert capsys.readouterr().err.count("budgets cannot hold what it adds by itself") == 1


def test_a_wrong_endpoint_ends_the_job_with_one_sentence(tmp_path):
    source = corpus(tmp_path, 60, special=dict.fromkeys(range(60), "REFUSE "))
    with fake_endpoint() as endpoint:
        backend = Endpoint(endpoint.url, "m", concurrency=2)
        reason = "100 requests in a row have failed; the last: refused: HTTP 400: the prompt is"
        with pytest.raises(UserError, match=reason):
            run(source, RecipeTask(RECIPE), tmp_path / "out", backend)
        assert len(endpoint.requests) < 110
        with pytest.raises(UserError, match="3 requests have failed, --max-failed allows 2"):
            run(source, RecipeTask(RECIPE), tmp_path / "out", backend, options=AskOptions(max_failed=2))
    closed = Endpoint(endpoint.url, "m", fingerprint=backend.fingerprint)
    with pytest.raises(UserError, match="20 requests in a row have failed; the last: unreachable: no reply in 1 tries"):
        run(source, RecipeTask(RECIPE), tmp_path / "none", closed, options=AskOptions(tries=1))
    bad = tmp_path / "in.jsonl"
    bad.write_text("{broken\n" + bad.read_text())
    with fake_endpoint() as endpoint, pytest.raises(UserError, match=r"in\.jsonl:1"):
        run(source, RecipeTask(RECIPE), tmp_path / "bad", Endpoint(endpoint.url, "m"))
    assert Cleaning().max_malformed == 0
