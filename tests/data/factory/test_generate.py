"""`qwen3 data generate`: answers of both backends, verified, as records that training reads as they are."""

import dataclasses
import json

import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.data import Source, documents, prepare
from qwen3_jax.data.factory import GenerateTask, run
from qwen3_jax.data.records import Record
from qwen3_jax.endpoints import ChatRequest, Endpoint, Reply, Tokens
from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine
from qwen3_jax.generation.backend import EngineBackend
from qwen3_jax.text import STOP_TEXT
from tests.helpers import tiny_models
from tests.helpers.byte_tokenizer import ByteTokenizer
from tests.helpers.engine_runs import SHAPE
from tests.helpers.fake_endpoint import fake_endpoint


def queries(folder, count=12):
    path = folder / "queries.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"What is {i} + {i}?", "answer": str(2 * i)}) + "\n" for i in range(count))
    )
    return Source("queries", str(path))


def made(folder):
    return [json.loads(line) for file in sorted((folder / "records").glob("*")) for line in file.open()]


def thinker(body):
    """Thinks where it may; right for every second seed, and never for 3 + 3."""
    prompt = body["messages"][-1]["content"]
    number = int(prompt.split()[2])
    right = 2 * number if body["seed"] % 2 and number != 3 else 1000 + body["seed"] % 7
    off = body.get("chat_template_kwargs", {}).get("enable_thinking") is False
    return (
        f"The answer is {right}."
        if off
        else f"<think>\nAdd {number} twice: {right}.\n</think>\n\nThe answer is {right}."
    )


def test_right_answers_in_both_modes_with_flags_and_queries_never_solved(tmp_path):
    task = GenerateTask(samples=6, modes=("thinking", "non-thinking"), verifier="number")
    with fake_endpoint(answer=thinker) as endpoint:
        done = run(queries(tmp_path), task, tmp_path / "out", Endpoint(endpoint.url, "m"))
        sent = len(endpoint.requests)
        assert sent == 12 * 6 * 2
        # More samples ask only what is new, and another verdict nothing.
        more = dataclasses.replace(task, samples=7, keep="all")
        everything = run(queries(tmp_path), more, tmp_path / "out", Endpoint(endpoint.url, "m"))
        assert len(endpoint.requests) == sent + 12 * 2
        assert everything.counts.made == 12 * 7 * 2
        verdicts = [one["generated"]["verdict"] for one in made(tmp_path / "out")]
        run(queries(tmp_path), task, tmp_path / "out", Endpoint(endpoint.url, "m"))
        assert len(endpoint.requests) == sent + 12 * 2
    records = made(tmp_path / "out")
    assert set(verdicts) == {"right", "wrong"}
    assert len(records) == done.counts.made
    assert done.counts.rejected["never solved"] >= 1
    kinds = {}
    for record in records:
        user, answer = record["messages"]
        mode, question = record["generated"]["mode"], user["content"].removesuffix(" /think").removesuffix(" /no_think")
        assert answer["content"].endswith(f"{2 * int(question.split()[2])}.")
        assert bool(answer["reasoning_content"]) == (mode == "thinking")
        kinds.setdefault(mode, set()).add(user["content"].removeprefix(question))
        # Training reads it; the query is never learned.
        (document,) = documents(Record("r", record), ByteTokenizer(), loss_on="assistant")
        learned = "".join(segment.text for segment in document.segments if segment.loss)
        assert learned.startswith("<think>\n")
        assert learned.endswith(answer["content"] + "<|im_end|>")
        assert question not in learned
    assert kinds == {"thinking": {"", " /think"}, "non-thinking": {" /no_think"}}
    source = Source("answers", str(tmp_path / "out/records"))
    assert len(prepare(source, ByteTokenizer(), tmp_path / "prepared", visible=False)) == len(records)


@pytest.mark.slow
def test_the_engine_gives_the_same_answers_again_and_a_forced_text_is_not_learned(tmp_path):
    def backend():
        return EngineBackend(Engine(tiny_models.model(27), **SHAPE), tiny_models.tokenizer(), "tiny")

    free = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    task = GenerateTask(samples=2, budgets=(4, None), max_new_tokens=200, sampling=free)
    whole = run(queries(tmp_path, 8), task, tmp_path / "out", backend())
    records = made(tmp_path / "out")
    assert whole.counts.made == len(records) > 0
    halted = [record for record in records if "completion" in record]
    assert halted, "no budget ended the thinking"
    for record in halted:
        _, forced, answer = record["completion"]
        assert (forced["text"], forced["loss"]) == (STOP_TEXT, False)
        (document,) = documents(Record("r", record), tiny_models.tokenizer(), loss_on="assistant")
        assert STOP_TEXT not in "".join(segment.text for segment in document.segments if segment.loss)
        assert answer["text"].endswith("<|im_end|>")
        assert record["generated"]["budget"] == 4
    assert {record["generated"]["budget"] for record in records if record not in halted} <= {4, None}
    run(queries(tmp_path, 8), task, tmp_path / "again", backend())
    assert made(tmp_path / "again") == records


def test_an_engine_refuses_one_request_and_goes_on():
    engine = Engine(tiny_models.model(27), **SHAPE)
    backend = EngineBackend(engine, tiny_models.tokenizer(), "tiny")
    message = {"role": "user", "content": "What is 2 + 3?"}
    backend.submit(0, ChatRequest(({"role": "user", "content": "long " * 2000},), 20, seed=1))
    backend.submit(1, ChatRequest((message,), 20, seed=1))
    backend.submit(2, ChatRequest(({"role": "user", "content": None},), 20))
    backend.submit(3, ChatRequest((message,), 20, schema={"type": "object"}))
    backend.submit(4, ChatRequest(({"role": "user", "content": "half \ud800"},), 20))
    backend.submit(5, ChatRequest(({"role": "user", "content": "What?"},), 20, {"temperature": -1.0}))
    replies = {}
    while len(replies) < 6:
        replies.update(backend.collect())
    assert {number: reply.outcome for number, reply in replies.items() if number != 1} == dict.fromkeys(
        (0, 2, 3, 4, 5), "refused"
    )
    assert "context" in replies[0].reason
    assert replies[1].outcome in ("ok", "truncated")
    assert replies[1].tokens.completion > 0
    assert backend.collect() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(modes=()), "modes are"),
        (dict(modes=("thinking", "thinking")), "modes are"),
        (dict(budgets=(0,)), "budgets is 0"),
        (dict(modes=("non-thinking",), budgets=(8,)), "needs the mode thinking"),
        (dict(verifier="maths"), "Did you mean 'math'"),
        (dict(settings={"x": 1}), "need its name"),
        (dict(sampling={"temprature": 1}), "Did you mean 'temperature'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        GenerateTask(**options)


def test_a_stop_text_that_cannot_be_told_from_the_thinking_is_rejected():
    task = GenerateTask(budgets=(4,))
    record = Record("r", {"question": "What?"})
    reply = Reply("ok", "5", "so ... stop now", tokens=Tokens(3, 5), forced_tokens=4)
    result = task.made(record, [[reply]])
    assert not result.records
    assert "another stop text" in result.rejected[0].reason


def test_the_command_asks_estimates_and_says_what_it_did(tmp_path, capsys):
    queries(tmp_path, 40)
    with fake_endpoint(answer=thinker) as endpoint:
        command = [
            "data", "generate", "--path", str(tmp_path / "queries.jsonl"), "--output", str(tmp_path / "out"), "--samples", "2",
            "--verifier", "number", "--model", endpoint.url, "--endpoint-model", "m", "--price-in", "0.1", "--price-out", "0.4",
        ]  # fmt: skip
        assert main([*command, "--estimate", "10"]) == 0
        shown = capsys.readouterr().out
        assert "10 of 40 records asked" in shown
        assert len(endpoint.requests) == 20
        assert main(command) == 0
        said = capsys.readouterr().err
        assert "60 requests answered, 20 recorded before" in said
        assert len(endpoint.requests) == 80
        prompt, completion = endpoint.total()
        assert f"{prompt:,} prompt and {completion:,} answer tokens, $" in said
        assert main([*command, "--quantize", "int8"]) == 2
        assert "--quantize has no effect on a server" in capsys.readouterr().err
    total = json.loads((tmp_path / "out/cost.json").read_text())
    assert total["prompt_tokens"] == prompt
