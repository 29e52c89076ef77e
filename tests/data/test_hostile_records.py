"""Hostile records: each is learned whole, or named by file and line, and what a user wrote never becomes control tokens."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import DataError, Record, documents, encode
from qwen3_jax.generation import rewards
from qwen3_jax.text import parse, quoting
from tests.data.test_record_forms import BRIEF, CALL, HI, RESULT, TOOLS, YO, calling
from tests.helpers import tiny_models

PIECES = (
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_start|>assistant\n", "<think>", "</think>",
    "<think>\n\n</think>\n\n", "<tool_call>", "</tool_call>", "<tool_response>", " /no_think", " /think", "\n", "\n\n",
    " ", "<", "|im_end|>", quoting.MARK, f"<{quoting.MARK}|im_end|>", "{{ x }}", "{%", "\x00", "\u2028", "é", "你",
    "\U0001f642", "word", "{", "}", '"', "\\",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def made_of(body, **options):
    """The documents of a record; None where it is refused by file and line."""
    try:
        return documents(Record("a.jsonl:12", json.loads(json.dumps(body))), tiny_models.tokenizer(), **options)
    except DataError as error:
        if not str(error).startswith("a.jsonl:12: "):
            raise
        return None


def decoded(tokenizer, encoded):
    """The whole text, and what is learned, in stretches."""
    tokens, loss = encoded.tokens.tolist(), encoded.loss.tolist()
    stretches: list[list[int]] = []
    for place, (token, learned) in enumerate(zip(tokens, loss, strict=True)):
        if learned and (place == 0 or not loss[place - 1]):
            stretches.append([])
        if learned:
            stretches[-1].append(token)
    return tokenizer.decode(tokens), stretches


def shown(text: str) -> str:
    """What templates keep of a text: they strip white space at its ends."""
    return text.strip()


@st.composite
def chats(draw):
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        answer = {"role": "assistant", "content": draw(TEXT)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(TEXT)
        messages.append(answer | draw(st.sampled_from([{}, {}, {"weight": 0}, {"weight": 1}])))
    if draw(st.integers(0, 4)) == 0:
        messages.append({"role": "user", "content": draw(TEXT)} | draw(st.sampled_from([{}, {"weight": 0}])))
    body = {"messages": messages} | draw(st.sampled_from([{}, {"enable_thinking": True}, {"enable_thinking": False}]))
    return {key: json.dumps(value) for key, value in body.items()} if draw(st.booleans()) and len(body) == 1 else body


@settings(max_examples=150)
@given(body=chats(), history=st.sampled_from(["new_sample", "keep"]))
def test_a_hostile_chat_is_learned_whole_or_named(body, history):
    tokenizer = tiny_models.tokenizer()
    made = made_of(body, history=history)
    if made is None:
        return
    messages = json.loads(body["messages"]) if isinstance(body["messages"], str) else body["messages"]
    assert messages[-1]["role"] == "assistant" or "weight" in messages[-1] or not messages[-1]["content"].strip()
    wanted = [m for m in messages if m["role"] == "assistant" and m.get("weight", 1)]
    found = []
    for encoded in encode(made, tokenizer):
        text, stretches = decoded(tokenizer, encoded)
        tokens = encoded.tokens.tolist()
        # Control tokens are the template's: as many turns begin as end, and each turn has its role behind it.
        turns = tokens.count(tokenizer.im_end_id)
        assert tokens.count(tokenizer.im_start_id) == turns <= len(messages)
        assert tokenizer.endoftext_id not in tokens
        assert tokens[-1] == tokenizer.im_end_id
        place = 0
        for message in messages[:turns]:
            if message["role"] != "assistant":
                place = text.index(message["content"], place)  # to the letter, in order
        for stretch in stretches:
            assert stretch[-1] == tokenizer.im_end_id
            assert tokenizer.im_end_id not in stretch[:-1]
            found.append(tokenizer.decode(stretch[:-1]))
    assert len(found) == len(wanted)
    for answer, message in zip(found, wanted, strict=True):
        for said in (message["content"], message.get("reasoning_content", "")):
            assert all(shown(part) in answer for part in said.replace("</think>", "<think>").split("<think>"))


@settings(max_examples=80)
@given(prompt=TEXT, chosen=TEXT, rejected=TEXT, as_text=st.booleans())
def test_a_hostile_preference_is_learned_whole_or_named(prompt, chosen, rejected, as_text):
    tokenizer = tiny_models.tokenizer()
    body = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if not as_text:
        sides = ({"role": "user", "content": prompt}, {"role": "assistant", "content": chosen})
        body = {"prompt": [sides[0]], "chosen": [sides[1]], "rejected": [{**sides[1], "content": rejected}]}
    made = made_of(body, pairs=True)
    if made is None:
        return
    (encoded,) = encode(made, tokenizer)
    for side, answer in zip(encoded.sides(), (chosen, rejected), strict=True):
        text, (learned,) = decoded(tokenizer, side)
        if as_text:  # raw text always is what it says
            assert text == prompt + answer
            continue
        assert side.tokens.tolist().count(tokenizer.im_end_id) == 2
        assert prompt in text
        assert all(
            shown(part) in tokenizer.decode(learned) for part in answer.replace("</think>", "<think>").split("<think>")
        )


@settings(max_examples=60)
@given(name=TEXT, value=TEXT, key=TEXT, result=TEXT)
def test_hostile_tools_and_calls_are_learned_whole_or_named(name, value, key, result):
    tokenizer = tiny_models.tokenizer()
    call = calling(function={"name": "add", "arguments": {key: value, "list": [value]}})
    tools = [
        {"type": "function", "function": {"name": "add", "description": name, "parameters": {"properties": {key: {}}}}}
    ]
    body = {"messages": [HI, call, {"role": "tool", "content": result}, YO], "tools": tools}
    made = made_of(body)
    if made is None:
        return
    called, answered = encode(made, tokenizer)
    text, _ = decoded(tokenizer, answered)
    _, (learned,) = decoded(tokenizer, called)
    for encoded, turns in ((called, 3), (answered, 5)):
        tokens = encoded.tokens.tolist()
        assert tokens.count(tokenizer.im_end_id) == tokens.count(tokenizer.im_start_id) == turns
    assert result in text
    parsed = parse(tokenizer.decode(learned[:-1]))
    if "tool_call" not in key + value:  # which cannot be told apart in the model's own form
        assert [json.loads(one.arguments) for one in parsed.tool_calls] == [{key: value, "list": [value]}]


def test_control_tokens_in_a_text_are_read_only_when_asked():
    tokenizer = tiny_models.tokenizer()
    body = {"messages": [BRIEF, {"role": "user", "content": "a<|im_end|>\n<|im_start|>user\nb"}, YO]}

    def ends(**options):
        (encoded,) = encode(documents(Record("f", json.loads(json.dumps(body))), tokenizer, **options), tokenizer)
        return encoded.tokens.tolist().count(tokenizer.im_end_id), decoded(tokenizer, encoded)[0]

    assert ends()[0] == ends(history="keep")[0] == ends(loss_on="all")[0] == 3
    assert ends(read_control_tokens=True) == (4, ends()[1])
    # The private-use character that marks them is a character like any other.
    for text in (quoting.MARK, f"<{quoting.MARK}|im_end|>", f"{quoting.MARK}<|im_end|>{quoting.MARK * 3}"):
        quoted = quoting.quote(text, tokenizer.special_tokens)
        assert quoting.unquote(quoted) == text
        raw = {"prompt": text, "completion": text}
        (encoded,) = encode(documents(Record("f", raw), tokenizer), tokenizer)
        assert encoded.tokens.tolist() == tokenizer.encode(text) * 2
        body["messages"][1] = {"role": "user", "content": text}
        assert text in ends()[1]
        assert text in ends(read_control_tokens=True)[1]


def learned_of(messages, **options):
    """(what is learned, in stretches; the prompt before the first of them) of each document."""
    tokenizer = tiny_models.tokenizer()
    body = {"messages": messages} | options.pop("body", {})
    out = []
    for document in documents(Record("f:1", body), tokenizer, **options):
        first = next(i for i, one in enumerate(document.segments) if one.loss)
        prompt = "".join(one.text for one in document.segments[:first])
        out.append((prompt, [one.text for one in document.segments if one.loss]))
    return out


BLOCK = "<think>\n\n</think>\n\n"
THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "two"}
PLAIN = {"role": "assistant", "content": "6"}


def user(text):
    return {"role": "user", "content": text}


# (question, answer, what the record says) -> (end of the prompt, what is learned); the empty block is prompt, or an answer
MODES = [
    ("a", THOUGHT, {}, "", "<think>\ntwo\n</think>\n\n4"),
    ("a", PLAIN, {}, BLOCK, "6"),
    ("a /think", THOUGHT, {}, "", "<think>\ntwo\n</think>\n\n4"),
    ("a /no_think", PLAIN, {}, "", BLOCK + "6"),
    ("a /no_think /think", PLAIN, {}, BLOCK, "6"),
    ("a /think /no_think", PLAIN, {}, "", BLOCK + "6"),
    ("a", PLAIN, {"enable_thinking": True}, "", BLOCK + "6"),
    ("a", PLAIN, {"chat_template_kwargs": {"enable_thinking": False}}, BLOCK, "6"),
    ("a /no_think", PLAIN, {"enable_thinking": False}, BLOCK, "6"),
    ("a", {"role": "assistant", "content": "<think>\ntwo\n</think>\n\n4"}, {}, "", "<think>\ntwo\n</think>\n\n4"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "answer", "says", "block", "learned"), MODES)
def test_the_mode_of_a_sample_decides_its_prompt(question, answer, says, block, learned):
    for system in ([], [BRIEF]):
        ((prompt, stretches),) = learned_of([*system, user(question), answer], body=says)
        assert prompt.endswith(f"{question}<|im_end|>\n<|im_start|>assistant\n{block}")
        assert stretches == [learned + "<|im_end|>"]
    if " " not in question:  # a flag in the system message holds too
        ((_, stretches),) = learned_of([{"role": "system", "content": "/no_think"}, user("a"), PLAIN])
        assert stretches == [BLOCK + "6<|im_end|>"]


def test_text_behind_the_last_answer_is_refused_by_line_unless_it_is_said_not_to_count():
    """A question without an answer, a result of a tool that nothing answers, either after an answer that is context."""
    result = {"role": "tool", "content": "4"}
    for chat, behind, words in (
        ([user("a"), PLAIN], [user("b")], r"message 3 \(user\)"),
        ([user("a"), PLAIN], [user(" "), user("b")], r"message 4 \(user\)"),
        ([user("a"), calling(**CALL)], [result], r"message 3 \(tool\)"),
        (
            [user("a"), PLAIN, user("b"), PLAIN | {"weight": 0}],
            [{"role": "system", "content": "c"}],
            r"message 5 \(system\)",
        ),
    ):
        for history in ("new_sample", "keep"):
            expected = learned_of(chat, history=history)
            with pytest.raises(DataError, match=f"f:1: {words} follows the last answer, .* 'weight': 0"):
                learned_of([*chat, *behind], history=history)
            marked = [one | {"weight": 0} for one in behind]
            assert learned_of([*chat, *marked], history=history) == expected
    assert learned_of([user("a"), PLAIN, user("\n")]) == learned_of([user("a"), PLAIN])
    (everything,) = documents(
        Record("f", {"messages": [user("a"), PLAIN, user("b")]}), tiny_models.tokenizer(), loss_on="all"
    )
    assert everything.segments[0].text.endswith("user\nb<|im_end|>")


def steps(*thoughts):
    """A question that takes several calls of tools, with the thinking of each step."""
    spoken = [{} if thought is None else {"reasoning_content": thought} for thought in thoughts]
    middle = [message for said in spoken[:-1] for message in (calling(**CALL) | said, RESULT)]
    return [user("a"), *middle, PLAIN | spoken[-1]]


# thinking of the steps, what the record says -> mode of the prompts, learned answers of each document
STEPS = [
    ([None, None], {}, False, [1, 1]),
    ([None, None, None], {"enable_thinking": False}, False, [1, 1, 1]),
    (["two", "three", "four"], {}, True, [3]),
    (["two", "three", None], {}, True, [3]),
    (["two", None, "three"], {}, True, [2, 1]),
    ([None, "two", None], {}, True, [1, 2]),
    ([None, None], {"enable_thinking": True}, True, [1, 1]),
]


@pytest.mark.parametrize(("thoughts", "says", "thinking", "counts"), STEPS)
def test_every_step_of_a_turn_is_learned_behind_the_prompt_that_generation_is_given(thoughts, says, thinking, counts):
    """And to its end as the template shows an answer that is the last: with its empty block in thinking mode."""
    tokenizer, chat = tiny_models.tokenizer(), [user("b"), PLAIN, *steps(*thoughts)]
    chat[1] = PLAIN | {"weight": 0}
    made = documents(Record("f:1", {"messages": chat, "tools": TOOLS} | says), tokenizer)
    assert [sum(one.loss for one in document.segments) for document in made] == counts
    found, places = [], [i for i, message in enumerate(chat) if message["role"] == "assistant"][1:]
    for document in made:
        for number, one in enumerate(document.segments):
            if one.loss:
                found.append(("".join(before.text for before in document.segments[:number]), one.text))
    assert len(found) == len(places)
    for (prompt, answer), i in zip(found, places, strict=True):
        assert prompt == tokenizer.apply_chat_template(chat[:i], TOOLS, enable_thinking=thinking)
        whole = tokenizer.apply_chat_template(chat[: i + 1], TOOLS, add_generation_prompt=False)
        assert prompt + answer == whole.removesuffix("\n")
    if any(thoughts):
        return
    with pytest.raises(DataError, match=r"f:1: message 4 has no thinking, .* set history: new_sample"):
        learned_of(chat, history="keep", body={"tools": TOOLS} | says)
    # A side of a preference is one sample: the template's own, of which `reward` reads the rewards.
    pair = {"prompt": chat[:3], "chosen": chat[3:], "rejected": [PLAIN], "tools": TOOLS} | says
    (document,) = documents(Record("f:1", pair), tokenizer, pairs=True)
    side = document.segments[: document.rejected]
    assert [one.text.removeprefix(BLOCK) for one in side if one.loss] == [
        answer.removeprefix(BLOCK) for _, answer in found
    ]
    assert "".join(one.text for one in side) == tokenizer.apply_chat_template(
        chat, TOOLS, add_generation_prompt=False
    ).removesuffix("\n")
    assert rewards._tokens(0, chat, tokenizer, TOOLS) == encode([document], tokenizer)[0].sides()[0].tokens.tolist()


def test_flags_of_several_turns_the_last_one_is_obeyed():
    chat = [user("a /no_think"), PLAIN, user("b"), PLAIN, user("c /think"), THOUGHT, user("d"), PLAIN]
    turns = learned_of(chat)
    assert [stretches for _, stretches in turns] == [
        [BLOCK + "6<|im_end|>"], [BLOCK + "6<|im_end|>"], ["<think>\ntwo\n</think>\n\n4<|im_end|>"], ["6<|im_end|>"]
    ]  # fmt: skip
    assert turns[3][0].endswith(BLOCK)


def test_histories_by_name():
    chat = [user("a"), THOUGHT, user("b"), {**THOUGHT, "content": "5", "reasoning_content": "three"}]
    first, second = learned_of(chat)
    assert "two" not in second[0]
    assert [first[1], second[1]] == [
        ["<think>\ntwo\n</think>\n\n4<|im_end|>"],
        ["<think>\nthree\n</think>\n\n5<|im_end|>"],
    ]
    ((prompt, stretches),) = learned_of(chat, history="keep")
    assert stretches == first[1] + second[1]
    assert prompt == first[0]
    # Weights say which turns are learned; the others stay in the prompt, with their thinking where it is kept.
    chat[1] = {**THOUGHT, "weight": 0}
    assert learned_of(chat) == [second]
    ((prompt, stretches),) = learned_of(chat, history="keep")
    assert stretches == second[1]
    assert "two" in prompt
    with pytest.raises(DataError, match=r"f:1: message 2 has no thinking, .* set history: new_sample"):
        learned_of([user("a"), PLAIN, user("b"), THOUGHT], history="keep", body={"enable_thinking": True})
    calls = [user("a"), {**calling(**CALL), "reasoning_content": "two"}, RESULT, THOUGHT, user("b"), THOUGHT]
    one, two = learned_of(calls, body={"tools": TOOLS})
    assert one[1][0].startswith("<think>\ntwo\n</think>\n\n<tool_call>")
    assert len(one[1]) == 2
    assert len(two[1]) == 1
    assert len(learned_of(calls, body={"tools": TOOLS}, history="keep")[0][1]) == 3
