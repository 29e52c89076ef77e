"""Small cases by hand where a wrong order, a forgotten state or a condition one off is another result. No real vocabulary."""

import itertools
import json
import sys

import pytest

from qwen3_jax.text import (
    AnswerParser,
    ChatTemplateError,
    Detokenizer,
    Piece,
    ThinkingParser,
    Tokenizer,
    TokenizerError,
    ToolCallParser,
    parse,
    soft_switch,
    train_tokenizer,
)
from qwen3_jax.text.byte_level import BYTE_CHARACTERS, CHARACTER_BYTES, QWEN3_ADDED_TOKENS, token_to_bytes
from qwen3_jax.text.chat import built_in_template, render
from qwen3_jax.text.tool_json import StringState, read_call
from qwen3_jax.text.train_tokenizer import expand_paths, read_texts


def user(content):
    return {"role": "user", "content": content}


def system(content):
    return {"role": "system", "content": content}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("/think a /no_think")], False),
        ([user("/no_think a /think")], True),
        ([user("/think /no_think /think")], True),
        ([user("/think"), user("/no_think")], False),
        ([user("/no_think"), user("/think")], True),
        ([user("/no_think"), user("no switch here")], False),
        ([system("/no_think"), user("Hi")], False),
        ([system("/no_think"), user("/think")], True),
        ([system("/think /no_think")], False),
        ([user("/think"), {"role": "assistant", "content": "/no_think"}], True),
        ([user("/think"), {"role": "tool", "content": "/no_think"}], True),
        ([user("/think"), user("<tool_response>/no_think</tool_response>")], True),
        ([user("/think"), user("<tool_response>/no_think")], False),
        ([user("/think"), user("/no_think</tool_response>")], False),
        ([user("a.b/think"), user("x-/no_think"), user("C:\\/think"), user("</think>")], None),
        ([user("/thinks /think_ /think- /think/ /think1")], None),
        ([user("(/think), please")], True),
        ([user("/think.")], True),
    ],
)
def test_the_last_switch_decides(messages, expected):
    assert soft_switch(messages) is expected


def in_string(text):
    """Whether JSON text ends inside a string, character by character; None once a string has a line break."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
        elif inside and character in "\n\r":
            return None
    return inside


@pytest.mark.parametrize(
    "text", ['{"a\\"b": "\\\\"}', '"\\\\\\"x', '"a\\', '"\\n"', '"a\nb"', '"a\rb', '{\n"a": 1}\n', '"\\"' * 3]
)
def test_a_string_s_state_after_any_chunks(text):
    """An escape, a quote or a line break may be the last of a chunk, or the first of the next."""
    for cuts in itertools.combinations(range(len(text) + 1), 2):
        state = StringState()
        done = 0
        for stop in (*cuts, len(text)):
            state.feed(text[done:stop])
            done = stop
            assert state.open is bool(in_string(text[:stop])), (text[:stop], cuts)


def test_a_closing_tag_in_an_argument_is_text_however_it_is_cut():
    call = '<tool_call>\n{"name": "f", "arguments": {"x": "\\"</tool_call>\\\\"}}\n</tool_call>'
    for cut in range(len(call) + 1):
        parser = ToolCallParser()
        events = [*parser.feed(call[:cut]), *parser.feed(call[cut:]), *parser.finish()]
        assert [event.arguments_dict() for event in events] == [{"x": '"</tool_call>\\'}]


def test_each_call_has_a_string_state_of_its_own():
    """A line break inside a string spoils the quotes of its own call, not those of the next."""
    spoiled = '<tool_call>\n{"name": "f", "arguments": {"x": "a\nb"}}\n</tool_call>'
    tagged = '<tool_call>\n{"name": "g", "arguments": {"x": "</tool_call>"}}\n</tool_call>'
    assert [call.arguments_dict() for call in parse(spoiled + tagged).tool_calls] == [
        {"x": "a\nb"},
        {"x": "</tool_call>"},
    ]
    open_string = '<tool_call>\n{"name": "f\n'
    assert [call.name for call in parse(open_string + "</tool_call>" + tagged).tool_calls] == ["g"]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f", "arguments": {"x": 1.0}}', '{"x": 1.0}'),
        ('{"name": "f", "arguments": {"x": 1}, "id": 3}', '{"x": 1}'),
        ('{"arguments": {"x": 1}, "name": "f"}', '{"x": 1}'),
        ('{"name": "f", "arguments": {"x": 1}, "arguments": {"x": 2}}', '{"x": 2}'),
        ('{"name": "f", "arguments": "  {\\"x\\": 1} "}', '{"x": 1}'),
        ('{"name": "f", "arguments": "  "}', "{}"),
        ('{"name": "f", "arguments": "null"}', "{}"),
        (' {"name" : "f" , "arguments" : { "x" : [1, 2] } } ', '{ "x" : [1, 2] }'),
        ('{"name": "f", "arguments": {"x": "a\tb"}}', '{"x": "a\\tb"}'),
        ('{"name": "f", "arguments": {"é": "a\nb"}}', '{"é": "a\\nb"}'),
    ],
)
def test_arguments_stay_as_they_were_written_where_that_is_json(body, arguments):
    call = read_call(body)
    assert (call.name, call.arguments) == ("f", arguments)
    assert len(call.id) == len("call_") + 32
    assert call.id != read_call(body).id


CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"A \n{CALL} \n B", "A \n B"),
        (f"{CALL}\n\n{CALL} \n B", "B"),
        (f"A\n{CALL}\nB\n{CALL}\nC", "A\nB\nC"),
        (f"A{CALL}  ", "A"),
        (f"  {CALL}  ", ""),
        ("A  ", "A  "),
        ("  A", "  A"),
    ],
)
def test_white_space_around_calls(text, content):
    assert parse(text).content == content


@pytest.mark.parametrize(
    ("text", "in_thinking", "events"),
    [
        ("a\n\n</think>\n\nb\n", True, [("thinking", "a"), ("content", "b\n")]),
        ("a\n</thin", True, [("thinking", "a"), ("thinking", "\n</thin")]),
        ("\n\na", False, [("content", "\n\na")]),
        ("\n\n", False, [("content", "\n\n")]),
        ("x\n\n<think>\ny", False, [("content", "x\n\n<think>\ny")]),
        ("<think>a</think>b</think>\nc", False, [("thinking", "a"), ("content", "b</think>\nc")]),
        ("\n</think>\n\nb", False, [("content", "b")]),
    ],
)
def test_what_a_thinking_parser_gives_out_and_when(text, in_thinking, events):
    parser = ThinkingParser(in_thinking)
    assert [(event.kind, event.text) for event in [*parser.feed(text), *parser.finish()]] == events


def test_a_parser_says_whether_there_was_thinking():
    for text, in_thinking, seen in (
        ("a", False, False),
        ("<think>", False, True),
        ("a", True, True),
        ("a</think>", False, False),
    ):
        parser = AnswerParser(in_thinking)
        parser.feed(text)
        assert parser.seen_thinking is seen
    assert AnswerParser().feed("<thi") == []
    assert ThinkingParser().feed("<thing>") == [Piece("content", "<thing>")]


def test_bytes_of_unfinished_characters_wait_and_a_flush_starts_afresh():
    pieces = {1: b"\xf0\x9f", 2: b"\xa4\x94", 3: b"a", 4: b"\xe4\xbd", 5: b"\xff", 6: b""}
    detokenizer = Detokenizer(pieces.__getitem__, skip_ids=[3])
    assert [detokenizer.add(i) for i in (1, 2, 3, 6, 4, 5, 1)] == ["", "\U0001f914", "", "", "", "\ufffd\ufffd", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert [detokenizer.add(i) for i in (2, 1, 2)] == ["\ufffd\ufffd", "", "\U0001f914"]


def test_bytes_are_spelled_as_gpt2_spells_them():
    """Printable Latin-1 as itself, the other 68 from U+0100 on, in order."""
    assert len(set(BYTE_CHARACTERS)) == 256
    assert [BYTE_CHARACTERS[byte] for byte in (0, 10, 32, 33, 126, 127, 160, 161, 172, 173, 174, 255)] == list(
        "ĀĊĠ!~ġł¡¬Ń®ÿ"
    )
    assert all(CHARACTER_BYTES[character] == byte for byte, character in enumerate(BYTE_CHARACTERS))
    assert token_to_bytes("Ġthe") == b" the"
    assert token_to_bytes("Ã©") == "é".encode()
    assert token_to_bytes("a b") == b"a b", "an added token with a space is its own UTF-8"
    assert [text for text, is_special in QWEN3_ADDED_TOKENS if not is_special] == [
        "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
        "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_tokenizer(["the cat and the hat 12 12"] * 3, 290)


def test_a_tokenizer_s_ids_and_what_skipping_drops(small):
    ids = small.encode("the<|im_end|><think>cat</think><|endoftext|>")
    assert small.decode(ids) == "the<|im_end|><think>cat</think><|endoftext|>"
    assert small.decode(ids, skip_special_tokens=True) == "the<think>cat</think>"
    streamed = small.detokenizer(skip_special_tokens=True)
    assert "".join(map(streamed.add, ids)) + streamed.flush() == "the<think>cat</think>"
    assert "".join(map(small.detokenizer().add, ids)) == small.decode(ids)
    assert small.vocab_size == 290
    added = range(264, 290)
    assert [small.id_to_token(i) for i in added] == [text for text, _ in QWEN3_ADDED_TOKENS]
    assert sorted(small.special_ids) == list(range(264, 278))
    assert (small.id_to_token(290), small.id_to_token(-1), small.id_to_token(2**32)) == (None, None, None)
    assert small.bytes_of(300) == b""
    named = (small.endoftext_id, small.im_start_id, small.im_end_id, small.tool_call_start_id, small.tool_call_end_id,
             small.think_start_id, small.think_end_id)  # fmt: skip
    assert named == (264, 265, 266, 278, 279, 288, 289)
    assert (small.bos_token_id, small.eos_token_id, small.pad_token_id) == (None, 266, 264)
    plain = small.encode_ordinary("<|im_end|>")
    assert all(i < 264 for i in plain)
    assert small.decode(plain) == "<|im_end|>"
    assert small.encode_batch(["the", "", "cat"]) == [small.encode("the"), [], small.encode("cat")]


def test_templates_by_name_and_what_defines_a_tokenizer(small, tmp_path):
    named = Tokenizer(
        small._backend, small._config, {"default": "D{{ eos_token }}", "tool_use": "T{{ tools | length }}"}
    )
    hello, tool = [user("Hi")], [{"name": "f"}]
    assert named.apply_chat_template(hello) == "D<|im_end|>"
    assert named.apply_chat_template(hello, []) == "D<|im_end|>"
    assert named.apply_chat_template(hello, tool) == "T1"
    assert (named.has_own_chat_template, small.has_own_chat_template) == (True, False)
    assert (named.supports_thinking, small.supports_thinking) == (False, True)
    only_default = Tokenizer(small._backend, small._config, {"default": "D"})
    assert only_default.apply_chat_template(hello, tool) == "D"
    assert len({one.definition() for one in (named, small, only_default)}) == 3
    small.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.definition() == small.definition(), "saving writes the built-in template down"
    assert again.has_own_chat_template
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_the_older_files_of_a_folder_and_which_goes_before(small, tmp_path):
    """vocab.json, merges.txt, special_tokens_map.json and added_tokens.json, as transformers 4 wrote them."""
    model = json.loads(small.to_json())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({text: 264 + i for i, (text, _) in enumerate(QWEN3_ADDED_TOKENS)})
    )
    older = {
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<think>"],
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "other": 1}))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.encode("the cat<think>") == small.encode("the cat<think>")
    assert (loaded.eos_token_id, loaded.pad_token_id) == (264, 264), "tokenizer_config.json goes before the map"
    assert sorted(loaded.special_ids) == [264, 288], "the named tokens and the additional ones"
    loaded.save_pretrained(tmp_path / "again")
    again = Tokenizer.from_pretrained(tmp_path / "again")
    assert (sorted(again.special_ids), again.eos_token_id) == ([264, 288], 264)
    assert json.loads((tmp_path / "again/tokenizer_config.json").read_text())["other"] == 1
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert not list(tmp_path.rglob("*.tmp"))


def test_which_template_goes_before(small, tmp_path):
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    hello, tools = [user("Hi")], [{"name": "f"}]

    def rendered(template=None, file=None, extra=None, **options):
        folder = tmp_path / "additional_chat_templates"
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        for old in folder.glob("*"):
            old.unlink()
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(config | ({"chat_template": template} if template else {}))
        )
        if file is not None:
            (tmp_path / "chat_template.jinja").write_text(file)
        if extra is not None:
            folder.mkdir(exist_ok=True)
            (folder / "tool_use.jinja").write_text(extra)
        return Tokenizer.from_pretrained(tmp_path).apply_chat_template(hello, **options)

    assert rendered() == render(built_in_template(), hello)
    assert rendered("C") == "C"
    assert rendered("C", "F") == "F", "a file goes before tokenizer_config.json"
    assert rendered("C", "  \n ") == render(built_in_template(), hello), "a blank one does not count"
    assert rendered({"default": "C", "tool_use": "U"}, tools=tools) == "U"
    assert rendered([{"name": "default", "template": "C"}, {"name": "tool_use", "template": "U"}]) == "C"
    assert rendered(None, "F", "X", tools=tools) == "X"
    assert rendered(None, "F", "X") == "F"


def test_continuing_a_message_verbatim():
    template, ask = built_in_template(), [user("Why?")]
    prompt = render(template, ask)

    def continued(**fields):
        return render(template, [*ask, {"role": "assistant", **fields}], continue_final_message=True)

    empty = prompt + "<think>\n\n</think>\n\n"
    assert continued(content="So") == empty + "So"
    assert continued(content="") == empty
    assert continued(content="  <think>\nSo") == prompt + "  <think>\nSo"
    assert continued(content="a <think> b</think> c") == prompt + "a <think> b</think> c"
    assert continued(content="a</think> c") == prompt + "<think>\na</think> c"
    assert continued(reasoning_content="R") == prompt + "<think>\nR"
    assert continued(reasoning_content="R", content="") == prompt + "<think>\nR\n</think>\n\n"
    assert continued(reasoning_content=" R\n") == prompt + "<think>\n R\n", "the thinking itself stays open, untrimmed"
    assert continued(reasoning="R", content="<think>S") == prompt + "<think>\nR\n</think>\n\n<think>S"
    assert continued(reasoning="R", content="S ") == prompt + "<think>\nR\n</think>\n\nS "


def test_a_prompt_to_the_letter():
    """Qwen3's form, from the model card; tools and thinking are compared with the official template elsewhere."""
    messages = [
        system("Be brief."),
        user("2+2?"),
        {"role": "assistant", "reasoning": "Easy.", "content": "4"},
        user("Sure?"),
    ]
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    ask = "<|im_start|>user\nSure?<|im_end|>\n"
    template = built_in_template()
    assert render(template, messages) == head + ask + "<|im_start|>assistant\n"
    assert (
        render(template, messages, enable_thinking=False)
        == head + ask + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert render(template, messages, add_generation_prompt=False) == head + ask
    answer = {"role": "assistant", "thinking": "Yes.", "content": "S"}
    opened = render(template, [*messages, answer], continue_final_message=True)
    assert opened == head + ask + "<|im_start|>assistant\n<think>\nYes.\n</think>\n\nS"


def test_thinking_under_several_names_is_one_thinking():
    names = ("reasoning_content", "thinking", "reasoning")
    for count in range(1, 4):
        for chosen in itertools.combinations(names, count):
            for others in (dict.fromkeys(chosen, "Hm."), dict.fromkeys(chosen, "") | {chosen[-1]: "Hm."}):
                message = {"role": "assistant", "content": "4", **others}
                text = render(built_in_template(), [user("?"), message], add_generation_prompt=False)
                assert text.count("Hm.") == 1
                assert "<think>\nHm.\n</think>\n\n4" in text
            if count > 1:
                message = {"role": "assistant", "content": "4", **{name: name.upper() for name in chosen}}
                with pytest.raises(ChatTemplateError, match=r"messages\[1\] has different thinking under '"):
                    render(built_in_template(), [user("?"), message])


def test_the_smallest_vocabulary_and_texts_in_pieces(tmp_path, monkeypatch):
    assert train_tokenizer(["x"], 282).vocab_size == 282
    with pytest.raises(TokenizerError, match="vocab_size 281 is too small"):
        train_tokenizer(["x"], 281)
    monkeypatch.setattr(sys.modules["qwen3_jax.text.train_tokenizer"], "_CHUNK", 8)
    (tmp_path / "a.txt").write_text("1234\n678\nabc\n\nlonger than eight\nend")
    assert list(read_texts([tmp_path / "a.txt"])) == ["1234\n678\n", "abc\n\nlonger than eight\n", "end"]


def test_parts_are_joined_with_nothing_between_and_no_arguments_are_an_empty_object():
    parts = [{"type": "text", "text": "a"}, "b", {"text": "c"}]
    assert render(built_in_template(), [user(parts)]) == render(built_in_template(), [user("abc")])
    for call in ({"name": "f"}, {"name": "f", "arguments": None}, {"function": {"name": "f", "arguments": {}}}):
        text = render(built_in_template(), [user("?"), {"role": "assistant", "tool_calls": [call]}])
        assert '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' in text


def test_where_qwen_cuts_before_it_merges(small):
    """Single digits; a word with one leading mark or space; line breaks by themselves; contractions."""
    cuts = small._backend.pre_tokenizer.pre_tokenize_str("it's 123,abc  de\n\nx!?\n y")
    pieces = [token_to_bytes(piece).decode() for piece, _ in cuts]
    assert pieces == ["it", "'s", " ", "1", "2", "3", ",abc", " ", " de", "\n\n", "x", "!?\n", " y"]


def test_files_to_train_on_each_once_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text(
            f"{name} 1\n{name} 2\n" if name != "c.jsonl" else '{"text": "x"}\n\n{"text": "y"}\n'
        )
    (tmp_path / "folder.txt").mkdir()
    files = expand_paths([str(tmp_path / "*.txt"), tmp_path / "a.txt", str(tmp_path / "c.jsonl")])
    assert [file.name for file in files] == ["a.txt", "b.txt", "c.jsonl"]
    assert list(read_texts(files)) == ["a.txt 1\na.txt 2\n", "b.txt 1\nb.txt 2\n", "x", "y"]
