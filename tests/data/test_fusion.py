"""Conversations with flags: every answer follows the last flag before it, and nothing of a record is lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import DataError, Record, documents
from qwen3_jax.data.fusion import FusionConfig, chat_of, fuse, prompt_of
from qwen3_jax.text import soft_switch
from tests.helpers import byte_tokenizer

TEXTS = st.sampled_from(
    ["What is 2 + 2?", "Name a river", "see /usr/think", "really? /think", "short /no_think please", ""]
)


def answer(thinks, text="4", inside=False):
    if inside:
        return {"role": "assistant", "content": f"<think>\n{'hm' if thinks else ''}\n</think>\n\n{text}"}
    return {"role": "assistant", "content": text, "reasoning_content": "hm" if thinks else ""}


@st.composite
def records(draw):
    head = draw(
        st.sampled_from(
            [[], [], [{"role": "system", "content": "Be brief. /no_think"}], [{"role": "system", "content": "Hi"}]]
        )
    )
    turns = draw(st.lists(st.tuples(TEXTS, st.booleans(), st.booleans()), min_size=1, max_size=3))
    messages = list(head)
    for text, thinks, inside in turns:
        messages += [{"role": "user", "content": text}, answer(thinks, inside=inside)]
    return {"messages": messages}


SHARES = st.sampled_from([0.0, 0.3, 1.0])
CONFIGS = st.builds(
    FusionConfig, turns=st.integers(1, 4), flagged=SHARES, system=SHARES, several=SHARES, front=SHARES,
    thinking=st.sampled_from([None, 0.0, 0.5, 1.0]), seed=st.integers(0, 3),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(records(), min_size=1, max_size=12), CONFIGS)
def test_every_answer_follows_the_last_flag_and_every_question_is_there_once(bodies, config):
    chats = [chat_of(Record(f"r{i}", body)) for i, body in enumerate(bodies)]
    written, report = fuse(chats, config)
    assert (written, report) == fuse(chats, config)
    turns = 0
    for record in written:
        messages = record["messages"]
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            turns += 1
            thinks = bool(message["reasoning_content"].strip())
            assert (soft_switch(messages[:place]) is not False) == thinks
            assert "<think>" not in message["content"]
        asked = prompt_of(record)
        assert asked["messages"] + [messages[-1]] == messages
        assert asked["thinks"] == bool(messages[-1]["reasoning_content"].strip())
    assert turns + report.left_over == sum(len(chat.turns) for chat in chats)
    assert sum(report.answers.values()) == turns == sum(n * count for n, count in report.conversations.items())
    assert report.flags["user"] + report.flags["none"] + report.flags["record"] == turns
    if config.thinking is None:
        assert not report.left_over
        said, expected = (
            sorted(_plain(text) for one in some for text in _questions(one)) for some in (written, bodies)
        )
        assert said == expected


def _questions(record):
    return [message["content"] for message in record["messages"] if message["role"] == "user"]


def _plain(text):
    """A question without flags."""
    return " ".join(word for word in text.split() if word not in ("/think", "/no_think"))


def test_shares_of_what_is_written():
    """Of many answers the shares are those that were asked for, and without shares only what must be flagged is."""
    chats = [
        chat_of(Record(f"r{i}", {"messages": [{"role": "user", "content": f"q{i}"}, answer(i % 4 > 0)]}))
        for i in range(4000)
    ]
    written, report = fuse(chats, FusionConfig(turns=1, thinking=0.5, flagged=0.25, system=0.2, several=0))
    assert report.answers == {"thinking": 1000, "non_thinking": 1000}
    assert report.left_over == 2000
    thinking = [record for record in written if record["messages"][-1]["reasoning_content"]]
    unflagged = sum(soft_switch(record["messages"]) is None for record in thinking)
    assert 0.66 < unflagged / 1000 < 0.78  # (1 - 0.25) of those without a flag in the system message, 0.2 x 0.25
    assert 0.1 < report.flags["system"] / 2000 < 0.15
    _, report = fuse(chats, FusionConfig(turns=4, flagged=0, system=0, several=0))
    assert set(report.conversations) == {1, 2, 3, 4}
    assert max(report.conversations.values()) < 1.25 * min(report.conversations.values())
    assert report.flags["several"] == report.flags["system"] == 0
    written, _ = fuse(chats, FusionConfig(turns=4, flagged=0, system=0, several=0))
    for record in written:
        messages = record["messages"]
        for place, message in enumerate(messages):
            if message["role"] == "user" and soft_switch([message]) is not None:
                mode = soft_switch([message])
                before = soft_switch(messages[:place]) if place else None
                assert (before is not False) != mode  # each flag is needed


def test_tools_systems_and_turns_of_a_record_stay_together():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    body = {
        "tools": tools,
        "messages": [
            {"role": "system", "content": "Be exact."}, {"role": "user", "content": "1 + 1?"}, call,
            {"role": "tool", "content": "2"}, answer(True, "2"), {"role": "user", "content": "And 2 + 2?"}, answer(False),
        ],
    }  # fmt: skip
    single = {"messages": [{"role": "user", "content": "Hello"}, answer(False, "Hi")]}
    chats = [chat_of(Record("a", body)), *(chat_of(Record("b", single)) for _ in range(4))]
    written, _ = fuse(chats, FusionConfig(flagged=0, system=0, several=0, front=0))
    [one] = [record for record in written if "tools" in record]
    assert one["tools"] == tools
    assert [m["role"] for m in one["messages"]] == [m["role"] for m in body["messages"]]
    assert [m["content"] for m in one["messages"] if m["role"] == "user"] == ["1 + 1?", "And 2 + 2? /no_think"]
    assert all("Be exact." not in json.dumps(record) for record in written if record is not one)
    tokenizer = byte_tokenizer.ByteTokenizer()
    learned = documents(Record("w", one), tokenizer)
    assert [s.text for s in learned[-1].segments if s.loss][-1] == "<think>\n\n</think>\n\n4<|im_end|>"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": "plain"}, "it is no chat"),
        ({"prompt": "a", "completion": "b"}, "it is no chat"),
        ({"messages": [{"role": "user", "content": "a"}], "completion": "b"}, "its answer is a completion"),
        ({"messages": [{"role": "user", "content": "a"}]}, "has no answer"),
        (
            {"messages": [{"role": "user", "content": "a"}, {**answer(False), "weight": 0}]},
            "which messages are learned",
        ),
        ({"messages": [answer(False), {"role": "user", "content": "a"}, answer(False)]}, "before any question"),
        ({"messages": [{"role": "user", "content": "a"}, answer(True)], "enable_thinking": False}, "enable_thinking"),
    ],
)
def test_what_cannot_be_flagged_is_named(body, words):
    with pytest.raises(DataError, match=words) as error:
        chat_of(Record("file.jsonl:3", body))
    assert str(error.value).startswith("file.jsonl:3: ")


def test_the_command(tmp_path, capsys):
    from qwen3_jax.cli.data import main

    path = tmp_path / "answers.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"q{i}"}, answer(i % 2 == 0)]} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "fusion.jsonl"
    assert main(["fuse", "--path", str(path), "--output", str(out), "--turns", "3"]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(len(_questions(record)) for record in written) == 40
    counts = json.loads(capsys.readouterr().out)
    assert counts["answers"] == {"thinking": 20, "non_thinking": 20}
    assert main(["fuse", "--path", str(path), "--output", str(out), "--prompts"]) == 0
    asked = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(one["messages"][-1]["role"] == "user" for one in asked)
    before = out.read_bytes()
    path.write_text('{"text": "plain"}\n' + path.read_text())
    assert main(["fuse", "--path", str(path), "--output", str(out)]) == 2
    assert "answers.jsonl:1: it is no chat" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["fuse", "--path", str(path), "--output", str(out), "--max-malformed", "1"]) == 0
    assert main(["fuse", "--path", str(path), "--output", str(out), "--flagged", "2"]) == 2
    assert "flagged" in capsys.readouterr().err


def test_what_is_written_does_not_depend_on_the_name_of_the_folder(tmp_path):
    """Else a recipe in another folder would hold other conversations out, by where they begin in the file."""
    from qwen3_jax.cli.data import main

    written = []
    for name in ("here", "some/other/folder"):
        folder = tmp_path / name
        (folder / "answers").mkdir(parents=True)
        lines = [json.dumps({"messages": chat(number)}) + "\n" for number in range(20)]
        (folder / "answers" / "records.jsonl").write_text("".join(lines))
        out = folder / "fused.jsonl"
        assert main(["fuse", "--path", str(folder / "answers" / "records.jsonl"), "--output", str(out)]) == 0
        written.append(out.read_text())
    assert written[0] == written[1]
    assert "answers/records.jsonl:7" in written[0]


def chat(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say {number}"}, {"role": "assistant", "content": str(number)}]
