"""Qwen-Agent and real MCP servers, against a real server with a model that has learnt to call their tools."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from qwen_agent.agents import Assistant
from qwen_agent.llm.base import ModelServiceError
from qwen_agent.tools.mcp_manager import MCPManager

from qwen3_jax.text import STOP_TEXT, Tokenizer
from tests.helpers import trained_agent
from tests.helpers.served import ROOT, SMALL, Running, serve

PAGE = ROOT / "docs/agents.md"
MODES = {"nous": {}, "raw": {"use_raw_api": True}}
STEPS = "What is (2 + 3) * 4?"
BOTH = "What are 2 + 3 and 5 * 4?"
FINISH = {"nous": [["stop"]] * 3, "raw": [["tool_calls"], ["tool_calls"], ["stop"]]}
BUDGET = 3  # thinking tokens; the thinking below is longer


def call(tool: str, a: int, b: int) -> str:
    return f'<tool_call>\n{{"name": "calculator-{tool}", "arguments": {{"a": {a}, "b": {b}}}}}\n</tool_call>'


def thinking(text: str, then: str) -> str:
    return f"<think>\n{text}\n</think>\n\n{then}"


# What the model is to write, question by question, with the calls that come of it.
ANSWERS = {
    STEPS: [
        thinking("The sum comes first.", call("add", 2, 3)),
        thinking("Now the product of both.", call("multiply", 5, 4)),
        thinking("There is nothing left to do.", "(2 + 3) * 4 is 20."),
    ],
    BOTH: [
        thinking("Neither needs the other.", call("add", 2, 3) + "\n" + call("multiply", 5, 4)),
        thinking("Both are there.", "They are 5 and 20."),
    ],
}
CALLS = [["add", 2, 3], ["multiply", 5, 4]]
THOUGHTS = {q: [a.split("\n</think>")[0].removeprefix("<think>\n") for a in of] for q, of in ANSWERS.items()}


def mcp(calls: Path) -> dict:
    """The configuration of an MCP server that notes its calls in a file."""
    arguments = [str(ROOT / "examples/agent_tools.py"), str(calls)]
    return {"mcpServers": {"calculator": {"command": sys.executable, "args": arguments}}}


def run(agent: Assistant, question: str) -> list[dict]:
    *_, messages = agent.run([{"role": "user", "content": question}])
    return messages


class Taught(NamedTuple):
    server: Running
    requests: dict[str, list[tuple]]  # of the lessons, by mode: (messages, tools, answer)
    tokenizer: Tokenizer
    tools: list  # of the MCP server
    calls: Path  # which that server notes


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """Agents create a folder `workspace` in the working directory."""
    with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
        yield


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Iterator[Taught]:
    """A model that has learnt the answers in both modes, and what to write when a budget cuts its thinking."""
    work = tmp_path_factory.mktemp("agents")
    tools = list(Assistant(llm=trained_agent.Teacher([]), function_list=[mcp(work / "calls")]).function_map.values())

    def lesson(question: str, answers: list[str], mode: str) -> list[tuple]:
        teacher = trained_agent.Teacher(answers, **MODES[mode])
        run(Assistant(llm=teacher, function_list=tools), question)
        return teacher.seen

    seen = {mode: [step for q, answers in ANSWERS.items() for step in lesson(q, answers, mode)] for mode in MODES}
    tokenizer = trained_agent.tokenizer_for(seen["nous"] + seen["raw"])
    for mode in MODES:
        seen[mode] += lesson(STEPS, [trained_agent.cut(answer, BUDGET, tokenizer) for answer in ANSWERS[STEPS]], mode)
    folder = work / "Qwen3-0.6B"  # its name in the page
    trained_agent.train(seen["nous"] + seen["raw"], tokenizer, folder)
    with serve(folder, work, *SMALL, "--no-warm-up") as running:
        yield Taught(running, seen, tokenizer, tools, work / "calls")
        assert "Traceback" not in running.log, running.log[-5000:]
        running.wait_until_idle()
    # At exit Qwen-Agent would do it, and write to pytest's closed streams.
    MCPManager().shutdown()
    MCPManager._instance = None


@pytest.fixture
def server(taught) -> Running:
    return taught.server


@pytest.fixture
def calls(taught) -> Path:
    taught.calls.write_text("")
    return taught.calls


def assistant(taught: Taught, mode: str, **generate_cfg) -> Assistant:
    """An agent with the tools of the one MCP server; that agents start their own is seen in the page's blocks."""
    server = taught.server
    llm = {
        "model": server.model,
        "model_server": f"{server.url}/v1",
        "api_key": "any",
        "generate_cfg": MODES[mode] | generate_cfg,
    }
    return Assistant(llm=llm, function_list=taught.tools)


def noted(calls: Path) -> list[list]:
    """The calls that the MCP server's process did, in order."""
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def kinds(messages: list[dict]) -> list[str]:
    """What each message of Qwen-Agent is."""
    return [
        "call" if message.get("function_call") else
        "result" if message["role"] == "function" else
        "thinking" if message.get("reasoning_content") else
        "answer"
        for message in messages
    ]  # fmt: skip


def test_the_model_sees_the_same_text_in_both_modes(taught):
    for (nous, nothing, _), (raw, tools, _) in zip(*taught.requests.values(), strict=True):
        assert nothing is None  # the tools are in the system message
        assert len(tools) == 2
        text = taught.tokenizer.apply_chat_template(raw, tools=tools)
        assert text == taught.tokenizer.apply_chat_template(nous)
        for body in (dict(messages=nous), dict(messages=raw, tools=tools)):
            shown = taught.server.post("/detokenize", tokens=taught.server.post("/tokenize", **body).json()["tokens"])
            assert shown.json()["prompt"] == text


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_works_step_by_step(taught, server, calls, mode):
    agent = assistant(taught, mode)
    assert list(agent.function_map) == ["calculator-add", "calculator-multiply"]
    before = len(server.log)
    views = [[dict(m) for m in view] for view in agent.run([{"role": "user", "content": STEPS}])]
    messages = views[-1]
    assert kinds(messages) == ["thinking", "call", "result"] * 2 + ["thinking", "answer"]
    assert [m["reasoning_content"] for m in messages if m.get("reasoning_content")] == THOUGHTS[STEPS]
    asked = [m["function_call"] for m in messages if m.get("function_call")]
    assert [(c["name"], json.loads(c["arguments"])) for c in asked] == [
        ("calculator-add", {"a": 2, "b": 3}),
        ("calculator-multiply", {"a": 5, "b": 4}),
    ]
    assert [m["content"] for m in messages if m["role"] == "function"] == ["5", "20"]
    assert messages[-1]["content"] == "(2 + 3) * 4 is 20."
    assert noted(calls) == CALLS
    # It came in pieces, not all at once.
    thoughts = {view[0]["reasoning_content"] for view in views if view and view[0].get("reasoning_content")}
    assert len(thoughts) > 2
    log = server.log_entries("/v1/chat/completions", count=len(FINISH[mode]), start=before)
    assert [entry["finish"] for entry in log] == FINISH[mode]


@pytest.mark.parametrize("mode", MODES)
def test_two_calls_in_one_answer(taught, calls, mode):
    messages = run(assistant(taught, mode), BOTH)
    assert kinds(messages) == ["thinking", "call", "call", "result", "result", "thinking", "answer"]
    ids = [m["extra"]["function_id"] for m in messages if kinds([m]) in (["call"], ["result"])]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2
    assert noted(calls) == CALLS
    assert messages[-1]["content"] == "They are 5 and 20."


@pytest.mark.parametrize("mode", MODES)
def test_a_thinking_budget_holds_in_every_step(taught, calls, mode):
    agent = assistant(taught, mode, extra_body={"thinking_budget": BUDGET})
    messages = run(agent, STEPS)
    assert kinds(messages) == ["thinking", "call", "result"] * 2 + ["thinking", "answer"]
    thoughts = [m["reasoning_content"] for m in messages if m.get("reasoning_content")]
    for thought, whole in zip(thoughts, THOUGHTS[STEPS], strict=True):
        begun, stop, rest = thought.partition(STOP_TEXT.partition("\n</think>")[0])
        assert stop
        assert not rest
        assert whole.startswith(begun)
        assert len(begun) < len(whole)
    assert noted(calls) == CALLS
    assert messages[-1]["content"] == "(2 + 3) * 4 is 20."


def test_an_error_of_the_server_reaches_the_agent(taught, calls):
    agent = assistant(taught, "raw", extra_body={"thinking_budgets": 3})
    with pytest.raises(ModelServiceError, match="Did you mean 'thinking_budget'"):
        run(agent, STEPS)
    assert noted(calls) == []


def test_the_python_blocks_of_the_page_run(server):
    Path("examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    source = "\n".join(blocks).replace("http://127.0.0.1:8000", server.url)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(source, f"<python blocks of {PAGE.name}>", "exec"), {})
    printed = re.search(r"writes:\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    assert output.getvalue() == printed + "(2 + 3) * 4 is 20.\n" * 2
