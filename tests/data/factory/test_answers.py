"""Recorded answers: what a line keeps, a torn tail, a damaged line, spending, and the lock of a folder."""

import dataclasses
import json

import pytest

from qwen3_jax.data import Source
from qwen3_jax.data.factory import RecipeTask, load_recipe, run
from qwen3_jax.data.factory.answers import AnswerLog
from qwen3_jax.data.factory.budget import Budget, Limits
from qwen3_jax.data.factory.job import open_job
from qwen3_jax.data.records import DataError
from qwen3_jax.endpoints import Endpoint, Reply, Tokens
from qwen3_jax.errors import UserError
from tests.helpers.fake_endpoint import fake_endpoint

REPLIES = {
    "a" * 32: Reply("ok", "Grüße \ud800 \u2028\n", "thought", ({"id": "1"},), Tokens(3, 4, 1, 2), forced_tokens=1),
    "b" * 32: Reply("refused", reason="too long"),
    "c" * 32: Reply("truncated", "x", tokens=None, may_cost=True),
}


def filled(path):
    log = AnswerLog(path, write=True)
    for key, reply in REPLIES.items():
        log.sent(key, Tokens(10, 20))
        log.answer(key, reply)
    log.sent("d" * 32, Tokens(10, 20))
    log.lost("d" * 32, "it broke off")
    log.sent("d" * 32, Tokens(10, 20))
    log.free("d" * 32, "HTTP 429")
    log.failed("d" * 32, "given up")
    log.sent("e" * 32, Tokens(10, 20))
    log.close()


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "log"
    filled(path)
    for write in (False, True):
        log = AnswerLog(path, write=write)
        assert {key: log.get(key) for key in REPLIES} == REPLIES
        assert sorted(log) == sorted(REPLIES)
        assert log.get("d" * 32) is None
        assert log.failure("d" * 32) == "given up"
        assert log.failure("a" * 32) is None
        spending = log.spending
        assert (spending.requests, spending.prompt, spending.completion, spending.cached, spending.thinking) == (
            1,
            3,
            4,
            1,
            2,
        )
        # No counts came of c, d was lost once, e was in flight.
        assert (spending.doubtful_requests, spending.at_most) == (3, Tokens(3 + 30, 4 + 60))
        log.close()


def test_a_torn_tail_is_cut_at_any_byte_and_a_damaged_line_is_refused(tmp_path):
    path = tmp_path / "log"
    filled(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for end in [*range(len(whole) - len(lines[-1]), len(whole)), len(whole) - len(lines[-1]) - 3]:
        path.write_bytes(whole[:end])
        log = AnswerLog(path, write=True)
        kept = b"".join(line for line in lines if whole[:end].count(line))
        log.sent("f" * 32, Tokens(1, 1))
        log.close()
        assert path.read_bytes().startswith(kept)
        assert AnswerLog(path, write=False).get("a" * 32) == REPLIES["a" * 32]
    place = whole.index(b"thought")
    path.write_bytes(whole[:place] + b"T" + whole[place + 1 :])
    with pytest.raises(DataError, match=r"log:2 is damaged .* delete that line, and its request is asked again"):
        AnswerLog(path, write=False)
    path.write_bytes(b"".join(line for line in lines if b"thought" not in line))
    assert AnswerLog(path, write=False).get("a" * 32) is None


def test_reservations_are_settled_with_what_was_spent(tmp_path):
    path = tmp_path / "log"
    filled(path)
    budget = Budget(Limits(tokens=110), AnswerLog(path, write=False).spending)  # 97 are used at most
    assert not budget.reserve(Tokens(10, 4))
    assert "97 of 110 tokens are used, and the next request may take 14" in budget.reason(Tokens(10, 4))
    assert budget.reserve(Tokens(10, 3))
    assert not budget.reserve(Tokens(0, 1))
    budget.settle(Tokens(10, 3), Tokens(5, 1))
    assert budget.reserve(Tokens(0, 7))
    assert not Budget(Limits(hours=1.0), AnswerLog(path, write=False).spending).out_of_time


def corpus(folder):
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document {i % 30}."}) + "\n" for i in range(40)))
    return Source("in", str(path))


def test_a_folder_is_for_one_process_and_one_task(tmp_path):
    source, task = corpus(tmp_path), RecipeTask(load_recipe("faq"))
    with open_job(source, task, tmp_path / "out", "m"):  # noqa: SIM117
        with (
            pytest.raises(UserError, match="another process is at work"),
            open_job(source, task, tmp_path / "out", "m"),
        ):
            pass
    with (
        pytest.raises(UserError, match="belongs to the task synthesize, not annotate"),
        open_job(source, dataclasses.replace(task, name="annotate"), tmp_path / "out", "m"),
    ):
        pass
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds nothing of the data factory"), open_job(source, task, other, "m"):
        pass
    assert (other / "notes.txt").read_text() == "mine"


def test_processes_and_equal_records_change_nothing(tmp_path):
    source, recipe = corpus(tmp_path), dataclasses.replace(load_recipe("distill"), samples=2)
    task = RecipeTask(recipe)
    with fake_endpoint(answer=lambda body: f"A text about {body['messages'][0]['content'][-4:]} " * 9) as endpoint:
        backend = Endpoint(endpoint.url, "m")
        one = run(source, task, tmp_path / "one", backend, split_bytes=300)
        assert len(endpoint.requests) <= 2 * 40
        whole = run(source, task, tmp_path / "whole", backend)
        assert whole.cost["requests"] == 2 * 30, "equal records of a split share their answers"
        assert whole.cost["discarded_completion_tokens"] == 0
        several = run(source, task, tmp_path / "several", backend, split_bytes=300, processes=2)
    assert one.counts.made == several.counts.made == 80
    for folder in ("one", "several"):
        files = sorted((tmp_path / folder / "records").glob("*"))
        assert b"".join(file.read_bytes() for file in files) == (tmp_path / "whole/records/00000.jsonl").read_bytes()
    assert len(list((tmp_path / "one/records").glob("*"))) > 2
