"""Every form of a preference says the same, whatever it is written as; anything else is refused by name."""

import json

import pytest

from qwen3_jax.data import DataError, Record, Source, documents, encode, prepare
from qwen3_jax.data.records import texts
from tests.data.test_record_forms import BRIEF, CALL, CALLS, FUNCTION, HI, RESULT, TOOLS, YO, calling, turn
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()
NO = {"role": "assistant", "content": "no"}
PROMPT = {"prompt": [HI], "chosen": [YO], "rejected": [NO]}
SYSTEM = {"prompt": [BRIEF, HI], "chosen": [YO], "rejected": [NO]}
TOOL = {"prompt": CALLS[:3], "chosen": [YO], "rejected": [NO], "tools": TOOLS}
RAW = {"prompt": "Q: 1 + 1?\nA:", "chosen": " 2", "rejected": " 3"}

# name -> (a record, the record in TRL's form that says the same)
FORMS = {
    "messages as JSON text": ({key: json.dumps(value) for key, value in PROMPT.items()}, PROMPT),
    "answers as one message": ({"prompt": [HI], "chosen": YO, "rejected": NO}, PROMPT),
    "a prompt of messages, answers as texts": ({"prompt": [HI], "chosen": "yo", "rejected": "no"}, PROMPT),
    "columns of messages": (
        {key: {"role": [m["role"] for m in value], "content": [m["content"] for m in value]}
         for key, value in SYSTEM.items()}, SYSTEM,
    ),
    "an implicit prompt": ({"chosen": [BRIEF, HI, YO], "rejected": [BRIEF, HI, NO]}, SYSTEM),
    "an implicit prompt, system apart": ({"chosen": [HI, YO], "rejected": [HI, NO], "system": "Be brief."}, SYSTEM),
    "whole conversations beside their prompt": (
        {"prompt": [HI], "chosen": [HI, YO], "rejected": [HI, NO]}, PROMPT,
    ),
    "whole conversations beside their question": (
        {"prompt": "hi", "prompt_id": "7", "chosen": [HI, YO], "rejected": [HI, NO], "messages": None}, PROMPT,
    ),
    "an implicit prompt as text": (
        {"chosen": RAW["prompt"] + RAW["chosen"], "rejected": RAW["prompt"] + RAW["rejected"]}, RAW,
    ),
    "ShareGPT": (
        {"conversations": [turn("human", "hi")], "chosen": turn("gpt", "yo"), "rejected": turn("gpt", "no"),
         "system": "Be brief."}, SYSTEM,
    ),
    "ShareGPT, answers as lists": (
        {"conversations": [turn("human", "hi")], "chosen": [turn("gpt", "yo")], "rejected": [turn("gpt", "no")]}, PROMPT,
    ),
    "messages and answers": ({"messages": [BRIEF, HI], "chosen": YO, "rejected": NO}, SYSTEM),
    "Alpaca": ({"instruction": "hi", "input": "", "chosen": "yo", "rejected": "no"}, PROMPT),
    "Alpaca with a history": (
        {"instruction": "hi", "history": [["a", "b"]], "chosen": "yo", "rejected": "no"},
        PROMPT | {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, HI]},
    ),
    "a question": ({"question": "hi", "chosen": "yo", "rejected": "no", "system": "Be brief."}, SYSTEM),
    "a question, answers as messages": ({"question": "hi", "chosen": [YO], "rejected": [NO]}, PROMPT),
    "ms-swift, a response": ({"messages": [BRIEF, HI, YO], "rejected_response": "no"}, SYSTEM),
    "ms-swift, messages": ({"messages": [HI, YO], "rejected_messages": [NO]}, PROMPT),
    "ms-swift, whole messages": ({"messages": [HI, YO], "rejected_messages": [HI, NO]}, PROMPT),
    "OpenAI": (
        {"input": {"messages": [BRIEF, HI], "tools": [], "parallel_tool_calls": True}, "preferred_output": [YO],
         "non_preferred_output": [NO]}, SYSTEM,
    ),
    "OpenAI with tools": (
        {"input": {"messages": CALLS[:3], "tools": [FUNCTION]}, "preferred_output": [YO], "non_preferred_output": [NO]}, TOOL,
    ),
    "tools as JSON text": (TOOL | {"tools": json.dumps(TOOLS)}, TOOL),
    "null everywhere": (
        {"messages": None, "tools": None, "system": None, "margin": None,
         **{key: [{**m, "name": None, "tool_calls": None, "weight": None} for m in value] for key, value in PROMPT.items()}},
        PROMPT,
    ),
}  # fmt: skip


def sides(body, tokenizer=TOK, **options):
    """Both documents as (text, what is learned of it)."""
    (document,) = documents(Record("f:1", json.loads(json.dumps(body))), tokenizer, pairs=True, **options)
    (encoded,) = encode([document], tokenizer)
    return [
        (tokenizer.decode(one.tokens.tolist()), tokenizer.decode(one.tokens[one.loss].tolist()))
        for one in encoded.sides()
    ]


@pytest.mark.parametrize("name", FORMS)
def test_a_preference_in_another_form_gives_the_same_documents(name):
    body, same = FORMS[name]
    assert sides(body) == sides(same)
    assert [*texts(Record("f", body), pairs=True)] == [*texts(Record("f", same), pairs=True)]


def test_what_is_learned_of_a_preference_to_the_letter():
    block = "<think>\n\n</think>\n\n"
    head = f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{block}"
    assert sides(PROMPT) == [(head + "yo<|im_end|>", "yo<|im_end|>"), (head + "no<|im_end|>", "no<|im_end|>")]
    assert sides(RAW) == [(RAW["prompt"] + " 2", " 2"), (RAW["prompt"] + " 3", " 3")]
    # One side thinks, so both have the prompt of thinking mode, and the empty block is the other side's answer.
    thinks = {"prompt": [HI], "chosen": [{**YO, "reasoning_content": "hm"}], "rejected": [NO]}
    head = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    answers = ["<think>\nhm\n</think>\n\nyo<|im_end|>", block + "no<|im_end|>"]
    assert sides(thinks) == [(head + answer, answer) for answer in answers]
    assert sides(PROMPT | {"enable_thinking": True})[0] == (head + block + "yo<|im_end|>", block + "yo<|im_end|>")
    flagged = {**PROMPT, "prompt": [{"role": "user", "content": "hi /no_think"}]}
    assert [answer for _, answer in sides(flagged)] == [block + "yo<|im_end|>", block + "no<|im_end|>"]
    # Calls and their results within an answer: what the tool says is not learned.
    calls = {"prompt": [HI], "chosen": CALLS[1:], "rejected": [NO], "tools": TOOLS}
    (text, learned), _ = sides(calls)
    assert "<tool_response>\n4\n</tool_response>" in text
    assert "tool_response" not in learned
    assert learned.count("<tool_call>") == 1
    assert learned.endswith("yo<|im_end|>")


def test_columnar_files_and_lines_give_the_same_preferences(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    bodies = [SYSTEM, PROMPT, {"prompt": [HI], "chosen": [{**YO, "reasoning_content": "hm"}], "rejected": [NO]}]
    pq.write_table(arrow.Table.from_pylist(bodies), tmp_path / "a.parquet")
    pq.write_table(
        arrow.Table.from_pylist([{k: json.dumps(v) for k, v in body.items()} for body in bodies]),
        tmp_path / "b.parquet",
    )
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    (tmp_path / "d.json").write_text(json.dumps(bodies))
    expected = [encode(documents(Record("f", body), TOK, pairs=True), TOK)[0] for body in bodies]
    for file in sorted(tmp_path.iterdir()):
        corpus = prepare(Source("s", str(file), pairs=True), TOK, tmp_path / f"{file.stem}_out", processes=1)
        assert corpus.pairs
        read = corpus.read(range(len(corpus)))
        assert [(one.tokens.tolist(), one.loss.tolist(), one.rejected) for one in read] == [
            (one.tokens.tolist(), one.loss.tolist(), one.rejected) for one in expected
        ], file
    (tmp_path / "broken.jsonl").write_text(json.dumps(PROMPT) + "\n" + json.dumps({"chosen": [HI, YO]}) + "\n")
    with pytest.raises(DataError, match=r"broken\.jsonl:2: the record has 'chosen' and no 'rejected'"):
        prepare(Source("s", str(tmp_path / "broken.jsonl"), pairs=True), TOK, tmp_path / "out", processes=1)


# a record -> the message
REFUSED = [
    ({"prompt": [HI], "chosen": [YO], "rejected": [YO]}, "'chosen' and 'rejected' are the same answer"),
    (RAW | {"rejected": " 2"}, "are the same answer"),
    ({"prompt": [HI], "chosen": [YO]}, "'chosen' and no 'rejected'"),
    ({"prompt": [HI], "rejected": [YO]}, "'rejected' and no 'chosen'"),
    ({"messages": [HI, YO]}, "no preference: it has"),
    (PROMPT | {"margin": 0.5}, "'margin' is not read"),
    (PROMPT | {"rejected_response": "no"}, "keep one of them"),
    (PROMPT | {"weight": 0.5}, "'weight' is not read"),
    (PROMPT | {"images": ["a.png"]}, "Qwen3 reads only text"),
    ({"prompt": [HI], "chosen": [YO], "rejected": "no"}, "must both be texts, or both messages"),
    ({"prompt": [HI], "chosen": [], "rejected": [NO]}, "'chosen' must be a text or messages, and not empty"),
    ({"prompt": [HI], "chosen": [HI], "rejected": [NO]}, "no assistant message|no answer after"),
    ({"prompt": [HI], "chosen": [{**YO, "weight": 0}], "rejected": [NO]}, "one side of the preference has no assistant"),
    ({"prompt": [HI, YO], "chosen": [HI], "rejected": [NO]}, "one side of the preference has no assistant message"),
    ({"chosen": [YO], "rejected": [NO]}, "share no message at the beginning"),
    ({"chosen": "ab", "rejected": "cd"}, "share no beginning"),
    ({"prompt": "something else", "chosen": [HI, YO], "rejected": [HI, NO]}, "'prompt' is not in the messages"),
    ({"messages": [HI], "prompt": [HI], "chosen": [YO], "rejected": [NO]}, "messages under"),
    ({"prompt": [HI], "chosen": [{"role": "bot", "content": "a"}], "rejected": [NO]}, "role 'bot'"),
    ({"prompt": [HI], "chosen": [{**YO, "name": "Al"}], "rejected": [NO]}, "has 'name', which the chat template leaves out"),
    ({"input": {"prompt": "a"}, "preferred_output": [YO], "non_preferred_output": [NO]}, "'input' must be an object"),
    ({"messages": [YO], "rejected_response": "no"}, "must end with the answer"),
    (PROMPT | {"chosen": [{**YO, "reasoning_content": "hm"}], "enable_thinking": False}, "has thinking, and the record says"),
    (PROMPT | {"chosen": [YO, {**HI, "content": "more"}]}, r"message 3 \(user\) is the last of one side"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "complaint"), REFUSED, ids=[complaint[:40] for _, complaint in REFUSED])
def test_what_is_no_preference_is_refused_by_file_line_and_name(body, complaint):
    with pytest.raises(DataError, match=rf"^data/pairs.jsonl:7: .*({complaint})") as caught:
        documents(Record("data/pairs.jsonl:7", json.loads(json.dumps(body))), TOK, pairs=True)
    assert "\n" not in str(caught.value)


def test_calls_that_differ_are_a_preference():
    other = calling(function={"name": "add", "arguments": {"a": 3}})
    body = {"prompt": [HI], "chosen": [calling(**CALL)], "rejected": [other], "tools": TOOLS}
    assert [answer.count('"a": 2') for _, answer in sides(body)] == [1, 0]
    again = body | {"chosen": [calling(**CALL), RESULT, YO], "rejected": [calling(**CALL), RESULT, NO]}
    assert [
        answer.endswith(end) for (_, answer), end in zip(sides(again), ("yo<|im_end|>", "no<|im_end|>"), strict=True)
    ]
