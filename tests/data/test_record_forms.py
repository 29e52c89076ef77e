"""Every form of a record is read with nothing lost, or refused by its name; JSON text, nulls and encodings change nothing."""

import dataclasses
import json
import re

import pytest

from qwen3_jax.data import DataError, Labels, Malformed, Record, Source, documents, encode, prepare
from qwen3_jax.data.records import form_of, texts
from qwen3_jax.data.sources import read, splits
from tests.helpers import tiny_models
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()
HI, YO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
BRIEF = {"role": "system", "content": "Be brief."}
FUNCTION = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
RESULT = {"role": "tool", "content": "4"}
CALLS = [HI, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4"}, YO]


def learned(body, loss_on="assistant", text_key="text"):
    """Each document as (its text, the text that is learned)."""
    out = []
    for document in documents(Record("f:1", body), TOK, loss_on=loss_on, text_key=text_key):
        (encoded,) = encode([document], TOK)
        out.append((TOK.decode(encoded.tokens.tolist()), TOK.decode(encoded.tokens[encoded.loss].tolist())))
    return out


def turn(role, text):
    return {"from": role, "value": text}


def calling(**call):
    return {"role": "assistant", "content": "", "tool_calls": [call]}


SHAREGPT_CALLS = [
    turn("human", "hi"), turn("function_call", '{"name": "add", "arguments": {"a": 2}}'), turn("observation", "4"),
    turn("gpt", "yo"),
]  # fmt: skip
# name -> (a record, the record in OpenAI's form that says the same)
FORMS = {
    "ShareGPT": ({"conversations": [turn("human", "hi"), turn("gpt", "yo")]}, {"messages": [HI, YO]}),
    "ShareGPT with a system message": (
        {"conversations": [turn("system", "Be brief."), turn("user", "hi"), turn("assistant", "yo")]},
        {"messages": [BRIEF, HI, YO]},
    ),
    "ShareGPT with system and tools apart": (
        {"conversations": SHAREGPT_CALLS, "system": "Be brief.", "tools": json.dumps([FUNCTION])},
        {"messages": [BRIEF, *CALLS], "tools": TOOLS},
    ),
    "Hermes, which writes the tags of a tool's answer": (
        {
            "conversations": [
                *SHAREGPT_CALLS[:2], turn("tool", "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>"),
                turn("gpt", "yo"),
            ],
            "tools": TOOLS,
        },
        {"messages": [*CALLS[:3], {"role": "tool", "content": "5"}, YO], "tools": TOOLS},
    ),
    "OpenAI's messages under ShareGPT's key": ({"conversations": [HI, YO]}, {"messages": [HI, YO]}),
    "prompt and completion as messages": ({"prompt": [BRIEF, HI], "completion": [YO]}, {"messages": [BRIEF, HI, YO]}),
    "a prompt of messages and a response": ({"prompt": [HI], "response": "yo"}, {"messages": [HI, YO]}),
    "Alpaca": ({"instruction": "hi", "input": "", "output": "yo"}, {"messages": [HI, YO]}),
    "Alpaca with an input": (
        {"instruction": "Translate.", "input": "hi", "output": "yo", "system": "Be brief."},
        {"messages": [BRIEF, {"role": "user", "content": "Translate.\nhi"}, YO]},
    ),
    "Alpaca with its rendered copy": (
        {"instruction": "Translate.", "input": "hi", "output": "yo", "text": "# Do:\nTranslate.\n# Input:\nhi\n# Answer:\nyo"},
        {"messages": [{"role": "user", "content": "Translate.\nhi"}, YO]},
    ),
    "Alpaca with a history": (
        {"instruction": "hi", "output": "yo", "history": [["a", "b"]]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, HI, YO]},
    ),
    "Dolly": (
        {"instruction": "Q", "context": "C", "response": "yo", "category": "closed_qa"},
        {"messages": [{"role": "user", "content": "Q\nC"}, YO]},
    ),
    "prompt and response": ({"prompt": "hi", "response": "yo"}, {"messages": [HI, YO]}),
    "query and response": ({"query": "hi", "response": "yo", "system": "Be brief."}, {"messages": [BRIEF, HI, YO]}),
    "question and answer": ({"question": "hi", "answer": "yo"}, {"messages": [HI, YO]}),
    "a pair with its reasoning": (
        {"question": "hi", "answer": "yo", "reasoning": "hm"},
        {"messages": [HI, {**YO, "reasoning_content": "hm"}]},
    ),
    "functions of 2023": (
        {
            "messages": [
                HI,
                {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
                {"role": "function", "name": "add", "content": "4"},
                YO,
            ],
            "functions": [FUNCTION],
            "function_call": "auto",
        },
        {"messages": CALLS, "tools": TOOLS},
    ),
    "the role developer": ({"messages": [{**BRIEF, "role": "developer"}, HI, YO]}, {"messages": [BRIEF, HI, YO]}),
    "a question that is there twice": ({"prompt": "hi", "prompt_id": "7", "messages": [HI, YO]}, {"messages": [HI, YO]}),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, YO]},
        {"messages": [HI, YO]},
    ),
    "columns of messages": ({"messages": {"role": ["user", "assistant"], "content": ["hi", "yo"]}}, {"messages": [HI, YO]}),
    "messages as JSON text": ({"messages": json.dumps([HI, YO])}, {"messages": [HI, YO]}),
    "each message as JSON text": ({"messages": [json.dumps(HI), json.dumps(YO)]}, {"messages": [HI, YO]}),
    "tools as JSON text": ({"messages": CALLS, "tools": json.dumps(TOOLS)}, {"messages": CALLS, "tools": TOOLS}),
    "parameters as JSON text": (
        {"messages": CALLS, "tools": [TOOLS[0] | {"function": FUNCTION | {"parameters": json.dumps(FUNCTION["parameters"])}}]},
        {"messages": CALLS, "tools": TOOLS},
    ),
    "calls as JSON text": (
        {"messages": [HI, {**CALLS[1], "tool_calls": json.dumps([CALL])}, *CALLS[2:]], "tools": TOOLS},
        {"messages": CALLS, "tools": TOOLS},
    ),
    "arguments as JSON text": (
        {"messages": [HI, calling(function={"name": "add", "arguments": '{"a": 2}'}), *CALLS[2:]], "tools": TOOLS},
        {"messages": CALLS, "tools": TOOLS},
    ),
    "arguments that are encoded twice": (
        {"messages": [HI, calling(name="add", arguments=json.dumps('{"a": 2}')), *CALLS[2:]]},
        {"messages": CALLS},
    ),
    "blank arguments": (
        {"messages": [HI, calling(name="add", arguments=""), *CALLS[2:]], "tools": TOOLS},
        {"messages": [HI, calling(name="add", arguments={}), *CALLS[2:]], "tools": TOOLS},
    ),
    "a bare function": ({"messages": CALLS, "tools": [FUNCTION]}, {"messages": CALLS, "tools": TOOLS}),
    "a function without its type": (
        {"messages": CALLS, "tools": [{"function": FUNCTION, "type": None}]}, {"messages": CALLS, "tools": TOOLS},
    ),
    "problem and solution": ({"problem": "hi", "solution": "yo", "level": "1"}, {"messages": [HI, YO]}),
    "messages under input": (
        {"input": [HI], "output": "yo", "system_prompt": "Be brief."}, {"messages": [BRIEF, HI, YO]},
    ),
    "everything in parts": (
        {"system": [{"text": "Be brief."}],
         "messages": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                      {"role": "assistant", "content": [{"type": "output_text", "text": "yo", "annotations": []}]}]},
        {"messages": [BRIEF, HI, YO]},
    ),
    "a refusal": ({"messages": [HI, {"role": "assistant", "content": None, "refusal": "yo"}]}, {"messages": [HI, YO]}),
    "arguments that are null": (
        {"messages": [HI, calling(function={"name": "add", "arguments": None}), RESULT,
                      calling(function={"name": "add", "arguments": "null"}), RESULT, YO]},
        {"messages": [HI, calling(name="add", arguments={}), RESULT, calling(name="add", arguments={}), RESULT, YO]},
    ),
    "Alpaca whose input alone is filled in": (
        {"instruction": "", "input": "hi", "output": "yo", "history": None}, {"messages": [HI, YO]},
    ),
    "Alpaca with a null input": ({"output": "yo", "input": None, "instruction": "hi"}, {"messages": [HI, YO]}),
    "ShareGPT with the keys of OpenAI's form, filled in": (
        {"conversations": [{"role": None, "content": None, "weight": None} | turn("human", "hi"), turn("bot", "yo")],
         "system": None, "tools": None},
        {"messages": [HI, YO]},
    ),
    "null everywhere": (
        {
            "text": None, "prompt": None, "tools": [{**TOOLS[0], "strict": None, "function": {**FUNCTION, "strict": None}}],
            "messages": [{**message, "name": None, "weight": None, "tool_call_id": None, "refusal": None} for message in CALLS],
        },
        {"messages": CALLS, "tools": TOOLS},
    ),
    "fields at their no-op value": (
        {"messages": [{**HI, "images": [], "prefix": False}, {**YO, "refusal": "", "weight": 1, "tool_calls": ""}],
         "tools": "", "functions": [],
         "parallel_tool_calls": True, "weight": 1.0, "system": ""},
        {"messages": [HI, YO]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_record_in_another_form_gives_the_same_documents(name):
    body, same = (json.loads(json.dumps(record)) for record in FORMS[name])
    for loss_on in ("assistant", "all"):
        assert learned(body, loss_on) == learned(same, loss_on)
    assert [text for text in texts(Record("f", body)) if text] == [text for text in texts(Record("f", same)) if text]


def test_only_the_completion_is_learned_of_a_prompt_of_messages():
    body = {
        "prompt": [HI, YO, {"role": "user", "content": "again"}],
        "completion": [{"role": "assistant", "content": "ya"}],
    }
    ((text, answer),) = learned(body)
    assert answer == "ya<|im_end|>"
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nya<|im_end|>")
    assert "yo" in text


def test_weights_of_messages_are_honoured():
    """OpenAI's weight, and the same under other names: what is not learned stays in the prompt of what is."""
    again, ya = {"role": "user", "content": "again"}, {"role": "assistant", "content": "ya"}
    first, second = learned({"messages": [HI, YO, again, ya]})
    for no, yes in (({"weight": 0}, {"weight": 1}), ({"loss": False}, {"loss": True}), ({"train": 0.0}, {"train": 1.0}),
                    ({"masked": True}, {"masked": False})):  # fmt: skip
        assert learned({"messages": [HI, {**YO, **no}, again, {**ya, **yes}]}) == [second]
        assert learned({"messages": [HI, {**YO, **yes}, again, {**ya, **no}]}) == [first]
        shares = [turn("human", "hi"), turn("gpt", "yo") | no, turn("human", "again"), turn("gpt", "ya")]
        assert learned({"conversations": shares}) == [second]
    ((text, answer),) = learned({"messages": [CALLS[0], {**CALLS[1], "weight": 0}, *CALLS[2:]], "tools": TOOLS})
    assert text == learned({"messages": CALLS, "tools": TOOLS})[1][0]
    assert answer == "yo<|im_end|>"
    assert learned({"messages": [{**YO, "weight": 0}, HI, ya]})[0][1] == "ya<|im_end|>"


# a record -> the message
REFUSED = [
    ({"messages": [HI, {**YO, "weight": 0.5}]}, "'weight' of message 2 is 0.5"),
    ({"messages": [HI, {**YO, "weight": 0}]}, "no assistant message to learn from"),
    ({"messages": [{**HI, "train": True}, YO]}, r"message 1 \(user\) has weight 1"),
    ({"messages": [HI, {**YO, "weight": 0, "loss": True}]}, "learned by one of"),
    ({"messages": [HI, YO], "weight": 0.5}, "'weight' is not read: a record has no weight"),
    ({"text": "a", "weight": 2}, "'weight' is not read"),
    ({"messages": [HI, {"role": "bot", "content": "yo"}]}, "message 2 has the role 'bot'; the roles are system, user"),
    ({"messages": [HI, {"role": "asistant", "content": "yo"}]}, "Did you mean 'assistant'"),
    ({"conversations": [turn("human", "hi"), turn("gtp", "yo")]}, "message 2 has the role 'gtp' under 'from'.*mean 'gpt'"),
    ({"messages": [YO, HI, YO]}, "begins with an assistant message.*'weight': 0"),
    ({"messages": "[{"}, "'messages' is a string and not valid JSON"),
    ({"messages": [HI, YO], "tools": "[{"}, "'tools' is a string and not valid JSON"),
    ({"messages": [HI, YO], "tools": "{}"}, "'tools' must be a list"),
    ({"messages": [HI, YO], "tools": [{"name": "f", "input_schema": {}}]}, "'input_schema', Anthropic's form"),
    ({"messages": [HI, YO], "tools": [{"type": "web_search"}]}, "tool 1 is of type 'web_search'"),
    ({"messages": [HI, {**YO, "tool_calls": "[{"}]}, "'tool_calls' of message 2 is a string and not valid JSON"),
    ({"messages": [HI, calling(name="f", arguments="[1]")]}, "the arguments of tool call 1 of message 2 must be"),
    ({"messages": [HI, calling(name="f", arguments='{"x": ')]}, "the arguments of tool call 1 .* not valid JSON"),
    ({"messages": [HI, calling(name="f", parameters={})]}, "tool call 1 of message 2 has 'parameters'"),
    ({"messages": [HI, calling(type="custom", custom={})]}, "is of type 'custom'"),
    ({"messages": [HI, {**YO, "tool_calls": [CALL | {"id": "a"}, CALL | {"id": "b"}]}, {**RESULT, "tool_call_id": "b"},
                   {**RESULT, "tool_call_id": "a"}, YO]}, "message 4 answers call 'a' after the answer to a later call"),
    ({"messages": [{**HI, "name": "Ann"}, YO]}, "message 1 has 'name', which the chat template leaves out"),
    ({"messages": [HI, {**YO, "reasoning_contnet": "hm"}]}, "'reasoning_contnet'.*Did you mean 'reasoning_content'"),
    ({"messages": [{**HI, "reasoning_content": "hm"}, YO]}, "message 1 has 'reasoning_content', which"),
    ({"messages": [HI, {**YO, "reasoning": "a", "thinking": "b"}]}, "different reasoning under"),
    ({"messages": [HI, {**YO, "content": "Write <think>x</think>."}]}, "the chat template drops 'Write' of message 2"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, YO]}, "part 1 of message 1 is of type"),
    ({"messages": [HI, YO], "images": ["a.png"]}, "'images' is not read: Qwen3 reads only text"),
    ({"messages": [HI, YO], "enable_thinking": "no"}, "'enable_thinking' is 'no'; it must be true or false"),
    ({"messages": [HI, YO], "chat_template_kwargs": {"tone": "dry"}}, "'chat_template_kwargs' has 'tone', which is not read"),
    (
        {"messages": [HI, YO], "chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
        "'enable_thinking' and 'chat_template_kwargs' say different things",
    ),
    (
        {"messages": [HI, {**YO, "thinking": "hm"}], "enable_thinking": False},
        "message 2 has thinking, and the record says 'enable_thinking': false",
    ),
    ({"messages": [BRIEF, HI, YO], "system": "Be long."}, "several system messages"),
    ({"messages": [HI, YO], "tools": TOOLS, "functions": [FUNCTION]}, "both 'tools' and 'functions'"),
    ({"messages": [HI, YO], "text": "something else"}, "'messages' and 'text', which say different things"),
    ({"messages": [HI, YO], "prompt": "something else"}, "'messages' and 'prompt', which say different things"),
    ({"messages": [HI, YO], "conversations": [turn("human", "x")]}, "messages under"),
    ({"instruction": "a", "output": "b", "text": "c"}, "which say different things"),
    ({"prompt": [HI], "completion": "yo"}, "'prompt' holds messages and 'completion' is a text"),
    ({"prompt": "hi", "completion": [YO]}, "'completion' is a list of messages and 'prompt' is not"),
    ({"prompt": [HI]}, "no 'completion' to learn"),
    ({"prompt": "a", "completion": "b", "system": "c"}, "'system' beside a raw 'prompt'"),
    ({"prompt": "a", "completion": "b", "label": False}, "KTO"),
    ({"prompt": "a", "completion": "b", "thinking": "c"}, "'thinking' beside a raw 'prompt'"),
    ({"messages": [HI, YO], "thinking": "c"}, "'thinking' is not read: write it into the messages"),
    ({"messages": [HI, YO], "history": [["a", "b"]]}, "'history' is not read"),
    ({"prompt": "a", "query": "b", "response": "c"}, "which of .* is the question and which the answer cannot be told"),
    ({"query": "a", "context": "b", "response": "c"}, "'context' beside a question"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference"),
    ({"chosen": [HI, YO], "rejected": [HI, YO]}, "a preference"),
    ({"messages": [HI, YO], "rejected_response": "no"}, "a preference"),
    ({"input": {"messages": [HI]}, "preferred_output": [YO], "non_preferred_output": [YO]}, "a preference"),
    ({"conversations": [turn("human", "hi"), turn("gpt", "yo")], "kto_tag": False}, "KTO"),
    ({"segments": [{"text": "a", "label": True}]}, "axolotl's form"),
    ({"problem": "a", "solution": "b", "answer": "c"}, "which the answer cannot be told"),
    ({"input": [HI]}, "'input' holds messages, and there is no 'completion' to learn"),
    ({"messages": [HI, {"role": "assistant", "content": None}]}, r"message 2 \(assistant\) has neither content nor tool"),
    ({"messages": [HI, {**YO, "refusal": "No."}]}, "both a content and a 'refusal'"),
    ({"messages": '[{"role": "user", "role": "system", "content": "a"}]'}, "the key 'role' occurs twice in one object"),
    ({"messages": [HI, YO], "tools": [{"name": "f", "inputSchema": {}}]}, "MCP's form"),
    ({"contents": [{"role": "user", "parts": [{"text": "a"}]}]}, "Gemini's form"),
    ({"custom_id": "1", "body": {"messages": [HI]}}, "OpenAI's batch form"),
    ({"conversation": [{"input": "a", "output": "b"}]}, "message 1 must be an object with a 'role'"),
    ({"messages": [HI, {**YO, "tool_calls": [CALL, CALL]}], "parallel_tool_calls": False}, "several tool calls"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "complaint"), REFUSED, ids=[complaint[:40] for _, complaint in REFUSED])
def test_what_is_not_read_is_refused_by_file_line_and_name(body, complaint):
    with pytest.raises(DataError, match=rf"^data/chat.jsonl:7: .*{complaint}") as caught:
        documents(Record("data/chat.jsonl:7", json.loads(json.dumps(body))), TOK, loss_on="assistant")
    assert "\n" not in str(caught.value)


def test_weights_and_learning_everything_contradict_each_other():
    with pytest.raises(DataError, match=r"message 2 \(assistant\) has weight 0, and loss_on: all"):
        learned({"messages": [HI, {**YO, "weight": 0}]}, "all")
    assert learned({"messages": [{**HI, "weight": 1}, YO]}, "all") == learned({"messages": [HI, YO]}, "all")


def test_a_key_that_the_template_reads_is_kept():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name or '' }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    template += "{% if add_generation_prompt %}<|im_start|>assistant \n{% endif %}"
    tokenizer = tiny_models.tokenizer(template)
    (document,) = documents(Record("f", {"messages": [{**HI, "name": "Ann"}, YO]}), tokenizer, loss_on="assistant")
    assert document.segments[0].text.startswith("<|im_start|>user Ann\nhi")
    with pytest.raises(DataError, match="drops 'hm' of message 2"):
        documents(Record("f", {"messages": [HI, {**YO, "thinking": "hm"}]}), tokenizer, loss_on="assistant")
    with pytest.raises(DataError, match="leaves out the tool 'add'"):
        documents(Record("f", {"messages": [HI, YO], "tools": TOOLS}), tokenizer, loss_on="assistant")


def read_all(path, **options):
    source = Source("s", str(path), **options)
    return [record for split in splits(source) for record in read(split, source)]


def test_columnar_files_change_no_record(tmp_path):
    """Arrow fills the fields of every struct with null, at every depth; maps and JSON text are other spellings of objects."""
    arrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    other = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"b": {"enum": ["x", "y"]}}}}}]
    bodies = [
        {"messages": CALLS, "tools": TOOLS},
        {
            "messages": [HI, {**YO, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"b": "x"}}}]}],
            "tools": other,
        },
        {"messages": [BRIEF, HI, {**YO, "reasoning_content": "hm", "weight": 1}]},
        {"prompt": "a", "completion": [{"text": "b", "loss": True}]},
        {"text": "a document"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    keys = sorted({key for body in bodies for key in body})
    whole = arrow.table({key: arrow.array([body.get(key) for body in bodies]) for key in keys})
    assert "null" in json.dumps(whole.to_pylist()[1]["tools"])
    pq.write_table(whole, tmp_path / "a.parquet")
    texts_of = [json.dumps(body["tools"]) if "tools" in body else None for body in bodies]
    chats = [json.dumps(body["messages"]) if "messages" in body else None for body in bodies]
    rest = {key: whole[key] for key in keys if key not in ("tools", "messages")}
    pq.write_table(arrow.table({"tools": texts_of, "messages": chats, **rest}), tmp_path / "b.parquet")
    expected = [learned(record.body) for record in read_all(tmp_path / "a.jsonl")]
    for name in ("a.parquet", "b.parquet"):
        assert [learned(record.body) for record in read_all(tmp_path / name)] == expected, name
    maps = arrow.array([[("a", 1), ("b", None)]], arrow.map_(arrow.string(), arrow.int64()))
    pq.write_table(arrow.table({"text": ["x"], "meta": maps}), tmp_path / "c.parquet")
    assert read_all(tmp_path / "c.parquet")[0].body == {"text": "x", "meta": {"a": 1, "b": None}}
    broken = arrow.table({"messages": [json.dumps([HI, YO])] * 3, "tools": [None, None, "[{"]})
    pq.write_table(broken, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet row 3: 'tools' is a string and not valid JSON"):
        prepare(Source("s", str(tmp_path / "d.parquet")), TOK, tmp_path / "out", processes=1)


def test_encodings_and_line_ends_change_no_record(tmp_path):
    bodies = [{"text": "a\u2028b\x85c\x0bd"}, {"messages": [HI, YO]}, {"text": "e"}]
    lines = [json.dumps(body, ensure_ascii=False) for body in bodies]
    file = tmp_path / "a.jsonl"
    for ending in ("\n", "\r\n", "\r", "\n\r\n"):
        for mark in ("", "\ufeff"):
            file.write_bytes((mark + ending.join(lines) + ending).encode())
            records = read_all(file)
            assert [record.body for record in records] == bodies, (ending, mark)
            step = 2 if ending == "\n\r\n" else 1
            assert [record.location for record in records] == [f"{file}:{1 + step * i}" for i in range(3)]
    file.write_bytes("\r".join(["{", *lines]).encode())
    broken, *rest = read_all(file)
    assert isinstance(broken, Malformed)
    assert [record.body for record in rest] == bodies
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        for name in ("a.jsonl", "a.json", "a.txt"):
            (tmp_path / name).write_bytes("\n".join(['{"text": "one"}', '{"text": "two"}']).encode(encoding))
            with pytest.raises(DataError, match=rf"{re.escape(name)} is UTF-(16|32) text.*iconv"):
                prepare(Source("s", str(tmp_path / name)), TOK, tmp_path / f"{encoding}-{name}", processes=1)


def test_a_json_file_is_a_list_of_records_or_lines_or_text(tmp_path):
    bodies = [{"instruction": "hi", "output": "yo"}, {"instruction": "a", "output": "b"}]
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps(bodies, indent=1))
    (tmp_path / "lines.json").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    for name in ("list.json", "lines.json"):
        assert [record.body for record in read_all(tmp_path / name)] == bodies
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": bodies}))
    assert "the records are under 'data'" in read_all(tmp_path / "wrapped.json")[0].reason
    settings_file = json.dumps({"name": "x", "scripts": {}}, indent=1)
    (tmp_path / "package.json").write_text(settings_file)
    assert [record.body for record in read_all(tmp_path / "package.json")] == [{"text": settings_file}]
    (tmp_path / "bad.json").write_text(json.dumps([*bodies, {"instruction": "alone"}]))
    with pytest.raises(DataError, match=r"bad\.json record 3: no 'text', 'messages' or 'prompt' key"):
        prepare(Source("s", str(tmp_path / "bad.json")), TOK, tmp_path / "out", processes=1)
    (tmp_path / "a.jsonl").write_text(json.dumps(bodies))
    (malformed,) = read_all(tmp_path / "a.jsonl")
    assert "named .json" in malformed.reason


def test_label_keys_that_no_record_has_are_refused_and_unused_keys_are_named(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    bodies = [{"text": f"document {i}", "domain": "x", "url": "u", "lang": None} for i in range(20)]
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    for field, key, words in (
        (
            "domain_key",
            "domian",
            r"no record has the key 'domian' that labels.domain_key \(--domain-key\).*Did you mean 'domain'",
        ),
        ("language_key", "lang", "no record has the key 'lang'"),
        ("quality_key", "score", "no record has the key 'score'"),
    ):
        for size in (2**25, 100):  # several splits: said at the start, too
            source = Source("s", str(file), labels=dataclasses.replace(Labels(), **{field: key}))
            with pytest.raises(DataError, match=words):
                prepare(source, TOK, tmp_path / "out", processes=1, split_bytes=size)
            assert ("so far (the first" in capsys.readouterr().err) == (size == 100)
            assert not (tmp_path / "out").exists()
    prepare(Source("s", str(file), labels=Labels(domain_key="domain")), TOK, tmp_path / "out", processes=1)
    assert "source 's': keys of its records that are not used: url\n" in capsys.readouterr().err
    assert form_of(Record("f", bodies[0]))[1] == {"text"}
