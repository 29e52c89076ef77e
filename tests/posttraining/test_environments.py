"""Environments: tools of classes, of the sandbox and of MCP servers; what is read and refused."""

import json
import sys
import time

import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.posttraining.environment_source import EnvironmentSource
from qwen3_jax.posttraining.environments import ToolEnvironment, ToolError, tool
from qwen3_jax.posttraining.jobs import TimeIsUp
from qwen3_jax.posttraining.timed_calls import TimedCalls
from qwen3_jax.training.environment_config import EnvironmentConfig
from qwen3_jax.training.reward_config import RewardPart
from qwen3_jax.training.rl_config import PromptSource, RlConfig
from tests.helpers.episodes import HERE, SERVER


class Values(ToolEnvironment):
    """Keeps values behind keys."""

    def reset(self, record, seed):
        self.values = record["values"]
        return super().reset(record, seed)

    @tool
    def get(self, key: str) -> str:
        """Return the value of a key."""
        if key not in self.values:
            raise ToolError(f"there is no key {key!r}")
        return self.values[key]

    @tool
    def add(self, a: int, b: int = 1) -> int:
        """Add."""
        return a + b


def step_of(environment, *calls):
    message = {"role": "assistant", "content": ""}
    made = [{"type": "function", "function": {"name": name, "arguments": json.dumps(given)}} for name, given in calls]
    return environment.step(message | ({"tool_calls": made} if made else {}))


@pytest.fixture(scope="module")
def python_tool():
    return EnvironmentSource(EnvironmentConfig(tools=["python"], seconds_per_call=3.0, settings={"memory_mb": 256}))


def test_tools_of_a_class_are_described_and_what_the_model_did_wrong_is_told():
    environment = Values()
    tools = environment.reset({"values": {"a": "7"}}, 0).tools
    assert [each["function"]["name"] for each in tools] == ["get", "add"]
    assert tools[0]["function"]["description"] == "Return the value of a key."
    assert tools[1]["function"]["parameters"] == {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"],
    }  # fmt: skip
    step = step_of(
        environment, ("get", {"key": "a"}), ("get", {"key": "b"}), ("put", {}), ("get", {}), ("get", {"key": 1}),
        ("get", {"key": "a", "x": 1}), ("add", {"a": 2}), ("add", {"a": True}),
    )  # fmt: skip
    assert [message["content"] for message in step.messages] == [
        "7", "Error: there is no key 'b'", "Error: there is no tool 'put'; there is get, add",
        "Error: the argument 'key' is missing", "Error: the argument 'key' must be of type string",
        "Error: there is no argument 'x'; there is key", "3", "Error: the argument 'a' must be of type integer",
    ]  # fmt: skip
    assert (step.failed, step.done) == (6, False)
    assert step_of(environment).done
    step = environment.step({"role": "assistant", "content": "<tool_call>\n{get a}\n</tool_call>"})
    assert step.messages[0]["content"].startswith("Error: the call could not be read")
    assert (step.failed, step.done) == (1, False)


def test_the_tool_python_runs_programs_in_the_sandbox(python_tool):
    assert "namespaces by" in python_tool.note or "bubblewrap" in python_tool.note
    environment = python_tool.make()
    (described,) = environment.reset({}, 0).tools
    assert described["function"]["name"] == "python"
    step = step_of(
        environment, ("python", {"code": "print(6 * 7)"}), ("python", {"code": "x = 1\nprint('a')\nprint(1 / 0)"}),
        ("python", {"code": "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)"}),
        ("python", {"code": "open('/etc/passwd')"}), ("python", {}), ("bash", {"code": "ls"}),
        ("python", {"code": "while True: pass"}),
    )  # fmt: skip
    results = [message["content"] for message in step.messages]
    assert results[0] == "42\n"
    assert results[1].startswith("Error: it ended with exit code 1: ZeroDivisionError")
    assert results[1].endswith("It printed:\na\n")
    assert "Error: it ended with exit code 1" in results[2]
    assert "Error: it ended with exit code 1" in results[3]
    assert results[4] == "Error: python takes one argument, the text 'code'"
    assert results[5] == "Error: there is no tool 'bash'; there is python"
    assert results[6].startswith("Error: it ran longer than 3 s") or "processor time" in results[6]
    assert step.failed == 6


def test_settings_are_read_or_refused():
    refused = {
        "one of python, mcp, tools; it has none": {},
        "it has python and mcp": dict(python="a:B", mcp="x"),
        "it must be module:Class": dict(python="a.b"),
        "must be the command": dict(mcp=""),
        "No closing quotation": dict(mcp="a 'b"),
        "there is python": dict(tools=["bash"]),
        "must be .python.": dict(tools=[]),
        "settings is read with": dict(mcp="a", settings={"b": 1}),
        "shared is read with": dict(python="a:B", shared=True),
        "history is read with": dict(tools=["python"], history="new_sample"),
        "max_turns": dict(tools=["python"], max_turns=0),
    }
    for text, fields in refused.items():
        with pytest.raises(UserError, match=text):
            EnvironmentConfig(**fields)
    sources = {
        "memory_gb.*Did you mean 'memory_mb'": dict(tools=["python"], settings={"memory_gb": 1}),
        "isolation is 'jail'": dict(tools=["python"], settings={"isolation": "jail"}),
        "memory_mb": dict(tools=["python"], settings={"memory_mb": -1}),
        "cannot be imported": dict(python="no_such_module:Class"),
        "no class with the methods": dict(python="json:JSONDecoder"),
        "does not take them": dict(python=f"{HERE}:Talk", settings={"turn": 1}),
        "did not start": dict(mcp=[sys.executable, "-c", "print('no server')"]),
        "No such file|did not start": dict(mcp="/no/such/server"),
    }
    for text, fields in sources.items():
        with pytest.raises(UserError, match=text):
            EnvironmentSource(EnvironmentConfig(**fields))
    with pytest.raises(UserError, match=r"there is no rl\.environment"):
        RlConfig([PromptSource("a", "b")], rewards=[RewardPart(environment=True)])


@pytest.mark.parametrize("shared", [False, True])
def test_the_tools_of_an_mcp_server(tmp_path, shared):
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    source = EnvironmentSource(EnvironmentConfig(mcp=[sys.executable, str(path)], shared=shared, seconds_per_call=5.0))
    one, other = source.make(), source.make()
    try:
        tools = one.reset({}, 0).tools
        assert [each["function"]["name"] for each in tools] == ["add", "fail", "die", "hang"]
        assert tools[0]["function"]["parameters"]["properties"]["a"]["type"] == "integer"
        step = step_of(one, ("add", {"a": 2, "b": 3}), ("fail", {"text": "by intent"}), ("add", {"a": "x"}), ("no", {}))
        results = [message["content"] for message in step.messages]
        assert results[0] == "5 at call 1"
        assert "by intent" in results[1]
        assert results[2].startswith("Error: ")
        assert results[3] == "Error: there is no tool 'no'"
        assert step.failed == 3
        # An own server knows nothing of other episodes.
        assert step_of(other, ("add", {"a": 1, "b": 1})).messages[0]["content"] == f"2 at call {2 if shared else 1}"
        with pytest.raises(Exception, match=r"failed|ended"):
            step_of(one, ("die", {}))
        fresh = source.make()  # the next episode has a server again
        assert step_of(fresh, ("add", {"a": 4, "b": 4})).messages[0]["content"] == "8 at call 1"
        started = time.perf_counter()
        with pytest.raises(Exception, match=r"did not answer|failed"):
            step_of(fresh, ("hang", {}))
        assert time.perf_counter() - started < 40
        after = source.make()
        assert step_of(after, ("add", {"a": 5, "b": 4})).messages[0]["content"] == "9 at call 1"
        after.close()
        fresh.close()
    finally:
        one.close()
        other.close()
        source.close()


def test_calls_run_beside_each_other_and_a_hanging_one_is_replaced():
    calls = TimedCalls(2, "test")
    started = time.perf_counter()
    for tag in range(4):
        calls.start(tag, lambda tag=tag: time.sleep(60 if tag < 2 else 0.01) or tag, 0.3)
    got = {}
    while calls.open:
        got |= {ended.tag: ended.value for ended in calls.ended(wait=True)}
    assert time.perf_counter() - started < 30
    assert isinstance(got[0], TimeIsUp)
    assert isinstance(got[1], TimeIsUp)
    assert (got[2], got[3]) == (2, 3)
    calls.start("again", lambda: 1 / 0, 1)
    (ended,) = calls.ended(wait=True)
    assert isinstance(ended.value, ZeroDivisionError)
    calls.stop()
