"""Servers with OpenAI's API: one that is asked through HTTP as the engine is in this process, and ones that fail."""

import contextlib
import http.server
import json
import threading

import pytest

from qwen3_jax.endpoints import Endpoint
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.endpoint_source import EndpointSource
from qwen3_jax.evaluation.metrics import Scored
from qwen3_jax.evaluation.runner import run
from qwen3_jax.evaluation.samples import SampleList
from qwen3_jax.evaluation.task import Problem
from tests.helpers import loopback
from tests.helpers.evaluation_runs import SUMS, planned, samples_of, sums

MODELS = {"data": [{"id": "m"}]}
TOOLS = ({"type": "function", "function": {"name": "add"}},)


@contextlib.contextmanager
def serving(answer):
    """A server whose POST requests `answer(path, body)` answers with (status, JSON or bytes, headers)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, MODELS, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((self.path, body, self.headers.get("authorization")))
            out = answer(self.path, body)
            if out is None:
                self.close_connection = True  # a lost connection
                return
            self.reply(*out)

        def reply(self, status, body, headers):
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(raw) + 5 * isinstance(body, bytes)))
            self.end_headers()
            self.wfile.write(raw)  # bytes are cut off before their end

        def log_message(self, *_):
            pass

    with loopback.serving(Handler) as address:
        yield address, seen


def message(content, finish="stop", tokens=7, thinking=0, **fields):
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": tokens,
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }
    return 200, {"choices": [{"message": {"content": content, **fields}, "finish_reason": finish}], "usage": usage}, {}


def source_of(url, retries=6, **options):
    return EndpointSource(Endpoint(url, **options), retries=retries, first_pause=0.002)


def test_a_request_has_the_fields_of_its_sample_and_a_reply_becomes_the_text_that_a_model_writes():
    def answer(path, body):
        if path == "/v1/completions":
            usage = {"prompt_tokens": 5, "completion_tokens": 2}
            return 200, {"choices": [{"text": " 5", "finish_reason": "length"}], "usage": usage}, {}
        if "tools" in body:
            call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
            return message(None, "tool_calls", tool_calls=[call])
        if "chat_template_kwargs" in body:
            return message("4")
        if "thinking_budget" in body:
            return message("It is 5", thinking=3, reasoning_content="2 and 3")
        return message("<think>\nhm\n</think>\n\n5", thinking=1)

    problems = [Problem("sum", ({"role": "user", "content": "2 + 3?"},), "5"), Problem("text", "2 + 3 =", "5")]
    problems.append(Problem("tools", problems[0].prompt, "5", tools=TOOLS))
    plan = planned(
        problems,
        modes=("thinking", "non-thinking"),
        budgets=(None, 0, 3),
        samples=1,
        sampling={"top_k": 9, "stop": "x"},
    )
    with serving(answer) as (url, seen):
        source = source_of(url, api_key="secret", concurrency=1)
        assert source.describe() == {"endpoint": f"{url}/v1", "model": "m"}
        samples = samples_of(plan, source)
    assert {header for *_, header in seen} == {"Bearer secret"}
    bodies = [(path, body) for path, body, _ in seen]
    items = [item for family in plan.families() for item in family]
    thinking, text = items[0], next(item for item in items if item.key.problem == "text")
    common = {"model": "m", "max_tokens": 120, "top_k": 9, "stop": ["x"]}
    shaped = {"temperature": 0.6, "top_p": 0.95, "seed": thinking.sampling.seed, "messages": list(problems[0].prompt)}
    assert bodies[0] == ("/v1/chat/completions", common | shaped)
    assert bodies[1][1] == common | shaped | {"thinking_budget": 3}
    assert bodies[2][1] == common | shaped | {"chat_template_kwargs": {"enable_thinking": False}}
    assert bodies[3][1]["presence_penalty"] == 1.5
    assert bodies[3][1]["chat_template_kwargs"] == {"enable_thinking": False}
    raw = {"temperature": 0.7, "top_p": 0.8, "presence_penalty": 1.5, "seed": text.sampling.seed, "prompt": "2 + 3 ="}
    assert bodies[4] == ("/v1/completions", common | raw)
    assert bodies[5][1]["tools"] == list(TOOLS)

    def shown(key):
        sample = samples[("sums", *key, 0)]
        return [sample[name] for name in ("text", "thinking", "content", "finish_reason", "thinking_tokens")]

    assert shown(("sum", "thinking", 3)) == ["<think>\n2 and 3\n</think>\n\nIt is 5", "2 and 3", "It is 5", "stop", 3]
    assert shown(("sum", "thinking", None)) == ["<think>\nhm\n</think>\n\n5", "hm", "5", "stop", 1]
    assert shown(("text", "text", None)) == [" 5", None, " 5", "length", 0]
    call = samples["sums", "tools", "thinking", None, 0]
    assert call["tool_calls"] == [{"name": "add", "arguments": '{"a": 1}'}]
    assert call["text"] == '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert samples["sums", "sum", "thinking", 3, 0]["verdict"]["status"] == "right"


def test_failures_that_pass_are_tried_again():
    tries = {}
    failures = [
        (429, {"error": {"message": "slow down"}}, {"retry-after": "0"}), (503, b"", {}), None, (200, b'{"choices"', {}),
        (200, [], {}), (500, {"detail": "?"}, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]  # fmt: skip

    def answer(path, body):
        count = tries[body["seed"]] = tries.get(body["seed"], 0) + 1
        return failures[count - 1] if count <= len(failures) else message("1")

    with serving(answer) as (url, _):
        samples = samples_of(planned(sums(3), budgets=(None,)), source_of(url + "/v1/", concurrency=3))
    assert len(samples) == 6
    assert set(tries.values()) == {7}


def test_a_server_that_dies_ends_the_run_in_one_sentence_and_what_it_answered_is_kept():
    count = threading.Semaphore(9)
    kept = SampleList()

    def answer(path, body):
        return message("1") if count.acquire(blocking=False) else None

    plan = planned(sums(20), budgets=(None,))
    with serving(answer) as (url, _):
        with pytest.raises(UserError) as error:
            list(run(plan, source_of(url, concurrency=4, retries=2), kept))
        assert str(error.value).startswith(f"{url}/v1 does not answer any more (")
        assert "; asked 3 times)" in str(error.value)
        assert len(kept.done) == 9
        for _ in range(100):
            count.release()
        rest = list(run(plan, source_of(url), kept))
    assert len(rest) == len(plan) - 9
    assert len(kept.done) == len(plan)


def test_prompts_that_the_context_does_not_hold_are_asked_without_a_limit_and_then_named():
    words = "This model's maximum context length is 40 tokens. However, you requested 99 tokens"

    def answer(path, body):
        first = body["messages"][0]["content"]
        if "long" in first or ("near" in first and "max_tokens" in body):
            return 400, {"error": {"message": words, "code": None}}, {}
        return message("5")

    problems = [Problem(name, ({"role": "user", "content": name},), "5") for name in ("long", "near", "short")]
    with serving(answer) as (url, seen):
        samples = samples_of(planned(problems, budgets=(None,), samples=1), source_of(url))
    verdicts = {key[1]: (sample["finish_reason"], sample["verdict"]["status"]) for key, sample in samples.items()}
    assert verdicts == {"long": ("too_long", "error"), "near": ("stop", "right"), "short": ("stop", "right")}
    assert words in samples["sums", "long", "thinking", None, 0]["verdict"]["reason"]
    assert len(seen) == 5


INVALID = 400, {"error": {"message": "There is no field seed.", "code": "invalid_request"}}, {}
KEY = 401, {"error": {"message": "Invalid key.", "code": "invalid_api_key"}}, {}
IGNORED = "does not keep the thinking budget: an answer has 9 thinking tokens under 3, given as 'thinking_budget'"


@pytest.mark.parametrize(
    ("answer", "message_"),
    [
        (INVALID, r"refuses the task sums, problem 0 \(HTTP 400: There is no field seed\)"),
        (KEY, r"does not accept requests for the model 'm' \(HTTP 401: Invalid key\)"),
        ((404, {}, {}), r"does not accept requests for the model 'm' \(HTTP 404\)"),
        (message("5", thinking=9), IGNORED),
    ],
)
def test_what_no_repetition_mends_ends_the_run_at_once(answer, message_):
    with serving(lambda path, body: answer) as (url, seen), pytest.raises(UserError, match=message_):
        list(run(planned(sums(4), budgets=(3,)), source_of(url, concurrency=1), SampleList()))
    assert len(seen) == 1


@pytest.mark.parametrize("body", [{"error": "?"}, {"choices": [{"text": "?"}]}])
def test_replies_that_are_no_answers_end_the_run_when_they_stay_so(body):
    said = r"does not answer any more \(the reply is no chat completion \(KeyError: .*\); asked 3 times\)"
    with serving(lambda path, _: (200, body, {})) as (url, seen), pytest.raises(UserError, match=said):
        list(run(planned(sums(4), budgets=(3,)), source_of(url, concurrency=1, retries=2), SampleList()))
    assert len(seen) == 3


def test_a_filtered_answer_is_judged_and_ends_no_run():
    with serving(lambda path, body: message("", "content_filter")) as (url, _):
        samples = samples_of(planned(sums(1), budgets=(None,), samples=1), source_of(url))
    assert [sample["finish_reason"] for sample in samples.values()] == ["content_filter"]


def test_tokens_that_a_server_does_not_report_are_unknown_not_zero():
    body = {"choices": [{"message": {"role": "assistant", "content": "5"}, "finish_reason": "stop"}]}
    with serving(lambda path, _: (200, body, {})) as (url, _):
        samples = samples_of(planned([Problem("p", ({"role": "user", "content": "2 + 3?"},), "5")]), source_of(url))
    sample = next(iter(samples.values()))
    assert sample["verdict"]["status"] == "right"
    assert (Scored.of(sample).thinking_tokens, Scored.of(sample).answer_tokens) == (None, None)


def test_budget_fields_of_other_servers():
    with serving(lambda path, body: message("5", reasoning="hm")) as (url, seen):
        source = source_of(url, budget_field="thinking_token_budget")
        samples = samples_of(planned(sums(1), budgets=(3,), samples=1, task=SUMS), source)
    assert seen[0][1]["thinking_token_budget"] == 3
    assert next(iter(samples.values()))["thinking"] == "hm"
