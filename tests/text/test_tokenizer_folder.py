"""Tokenizer folders: every layout read, written back for transformers without a warning, every damage named."""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.text import Tokenizer, TokenizerError, built_in_template, train_tokenizer
from tests.helpers.corpus import AWKWARD, DECLARATION
from tests.helpers.real_tokenizer import official_template

TEXTS = [*DECLARATION.values(), *AWKWARD]
MESSAGES = [{"role": "user", "content": "Hi"}]
FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick one: 320 tokens, so that a damaged copy loads in no time."""
    folder = tmp_path_factory.mktemp("small")
    train_tokenizer([" ".join(TEXTS[:5]) + " hello there, think of others" * 9], 320).save_pretrained(folder)
    return folder


def quiet_auto_tokenizer(folder: Path, caplog: pytest.LogCaptureFixture):
    """transformers' AutoTokenizer; any warning, logged or raised, fails the test."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as theirs

    theirs.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            tokenizer = AutoTokenizer.from_pretrained(folder)
    finally:
        theirs.disable_propagation()
    assert not caplog.records, caplog.text
    return tokenizer


def edit(path: Path, **fields: Any) -> dict[str, Any]:
    """Change fields of a JSON file; `...` removes one."""
    value = {k: v for k, v in {**json.loads(path.read_text("utf-8")), **fields}.items() if v is not ...}
    path.write_text(json.dumps(value), "utf-8")
    return value


def test_save_for_transformers(real: Tokenizer, real_folder: Path, tmp_path: Path, caplog):
    """Loaded, saved, loaded by transformers and by us again: the same ids, prompts and named tokens."""
    real.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    theirs, ours = quiet_auto_tokenizer(tmp_path, caplog), Tokenizer.from_pretrained(str(tmp_path))
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    expected = real.encode_batch(TEXTS)
    assert theirs(TEXTS, add_special_tokens=False)["input_ids"] == ours.encode_batch(TEXTS) == expected
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (151645, 151643, None)
    assert theirs.chat_template == ours.chat_template == real.chat_template
    assert theirs.decode([151644, 151667, 9707, 151645], skip_special_tokens=True) == "<think>Hello"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config == json.loads((real_folder / "tokenizer_config.json").read_text("utf-8"))


def write_vocabulary_and_merges(source: Path, folder: Path) -> list[str]:
    """Write the older layout of a folder; return the merges."""
    model = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    shutil.copy(source / "tokenizer_config.json", folder)
    return merges


def test_vocabulary_and_merges_folder(real: Tokenizer, real_folder: Path, tmp_path: Path, caplog):
    """vocab.json + merges.txt, with the added tokens in either of their two files, makes the same tokenizer."""
    write_vocabulary_and_merges(real_folder, tmp_path)
    expected = real.encode_batch(TEXTS)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode_batch(TEXTS) == expected
    assert (tokenizer.special_ids, tokenizer.eos_token_id) == (real.special_ids, real.eos_token_id)
    assert not tokenizer.has_own_chat_template
    tokenizer.save_pretrained(tmp_path / "out")
    assert quiet_auto_tokenizer(tmp_path / "out", caplog)(TEXTS, add_special_tokens=False)["input_ids"] == expected

    edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=..., eos_token=...)
    added = {real.id_to_token(i): i for i in range(151_643, 151_669)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode_batch(TEXTS) == expected
    assert (tokenizer.special_ids, tokenizer.eos_token_id) == (real.special_ids, real.eos_token_id)


def test_added_tokens_and_the_end_token_may_stand_in_tokenizer_json_alone(small_folder: Path, tmp_path: Path):
    folder = shutil.copytree(small_folder, tmp_path / "a")
    expected = Tokenizer.from_pretrained(folder)
    edit(folder / "tokenizer_config.json", added_tokens_decoder=..., eos_token=..., pad_token=None)
    tokenizer = Tokenizer.from_pretrained(folder)
    text = "<|im_start|>user\nhello<|im_end|>"
    assert tokenizer.encode(text) == expected.encode(text)
    assert (tokenizer.special_ids, tokenizer.eos_token_id) == (expected.special_ids, None)
    assert tokenizer.end_of_turn_id == expected.end_of_turn_id


def test_damage_of_vocabulary_and_merges_is_named(small_folder: Path, tmp_path: Path):
    merges = write_vocabulary_and_merges(small_folder, tmp_path)
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))["added_tokens_decoder"]
    added = {token["content"]: int(index) for index, token in decoder.items()}
    edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=...)
    with pytest.raises(TokenizerError, match=r"neither added_tokens_decoder .* nor added_tokens\.json"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({**added, "<think>": 3}))
    with pytest.raises(TokenizerError, match="'<think>' the id of '\\$', 3"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    assert Tokenizer.from_pretrained(tmp_path).encode("hello") == Tokenizer.from_pretrained(small_folder).encode(
        "hello"
    )
    for lines, error in (
        (merges[:5], f"merges.txt holds 5 merges but vocab.json needs {len(merges)}"),
        ([*merges, "broken"], f"merges.txt, line {len(merges) + 1} is not two tokens: 'broken'"),
        ([*merges[:-1], "qqqqz zzzzq"], "vocab.json is damaged"),
    ):
        (tmp_path / "merges.txt").write_text("\n".join(lines), "utf-8")
        with pytest.raises(TokenizerError, match=error):
            Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt is missing"):
        Tokenizer.from_pretrained(tmp_path)


def test_chat_templates_of_a_folder(small_folder: Path, tmp_path: Path, official):
    """Where templates stand, which wins, and that all survive saving."""
    folder = shutil.copytree(small_folder, tmp_path / "a")
    (folder / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.from_pretrained(folder)
    assert not tokenizer.has_own_chat_template
    assert tokenizer.chat_template == built_in_template()
    assert tokenizer.supports_thinking
    instruct = official_template("qwen3_instruct_2507")
    edit(folder / "tokenizer_config.json", chat_template=instruct, some_new_field={"deep": [1, None]})
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == instruct
    assert not tokenizer.supports_thinking
    thinking = official_template().replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
    named = [{"name": "default", "template": thinking}, {"name": "tool_use", "template": "TOOLS"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    for source in (folder, tmp_path / "b", tmp_path / "c"):  # the second and third as we wrote them
        tokenizer = Tokenizer.from_pretrained(source)
        assert tokenizer.supports_thinking
        assert tokenizer.apply_chat_template(MESSAGES).endswith("<|im_start|>assistant\n<think>\n")
        assert tokenizer.apply_chat_template(MESSAGES, tools=[{"name": "f"}]) == "TOOLS"
        assert tokenizer.apply_chat_template(MESSAGES, tools=[]).endswith("<think>\n")
        if source != tmp_path / "c":
            tokenizer.save_pretrained(tmp_path / ("b" if source == folder else "c"))
    saved = json.loads((tmp_path / "c" / "tokenizer_config.json").read_text("utf-8"))
    assert saved["some_new_field"] == {"deep": [1, None]}
    assert "chat_template" not in saved
    # transformers 5's names of the files
    assert (tmp_path / "c" / "additional_chat_templates" / "tool_use.jinja").read_text("utf-8") == "TOOLS"
    assert (tmp_path / "c" / "chat_template.jinja").read_text("utf-8") == thinking
    # Processors have a file of their own, which tokenizer_config.json goes before; macOS leaves hidden ones.
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "PROCESSOR"}))
    assert Tokenizer.from_pretrained(folder).apply_chat_template(MESSAGES).endswith("<think>\n")
    edit(folder / "tokenizer_config.json", chat_template=...)
    assert Tokenizer.from_pretrained(folder).apply_chat_template(MESSAGES) == "PROCESSOR"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tools=[{"name": "f"}]) == "TOOLS"
    (folder / "chat_template.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "._tool_use.jinja").write_bytes(b"\0\x05\x16\x07\xff")
    assert not Tokenizer.from_pretrained(folder).has_own_chat_template
    (folder / "chat_template.jinja").write_text("FILE")  # goes before tokenizer_config.json
    assert Tokenizer.from_pretrained(folder).apply_chat_template(MESSAGES) == "FILE"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"eos_token": "<nope>"}, "names '<nope>' as eos_token, but the vocabulary lacks it"),
        ({"pad_token": 5}, "pad_token must be a string"),
        ({"chat_template": 5}, "chat_template must be a string or a list"),
        ({"chat_template": [{"name": "x"}]}, "must be a list of objects with name and template"),
        ({"chat_template": [{"name": "tool_use", "template": "T"}]}, "none named 'default'"),
        ({"chat_template": {"default": 7}}, "name or template that is not a string"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder must map ids"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder must map ids"),
        (
            {"added_tokens_decoder": {"999": {"content": "<think>"}}},
            "'<think>' the id 999, but .* at 318",
        ),
        ({"added_tokens_decoder": {"5": {"content": "<think>"}}}, "'<think>' the id of '&', 5"),
    ],
)
def test_contradictory_config(small_folder: Path, tmp_path: Path, fields: dict, error: str):
    folder = shutil.copytree(small_folder, tmp_path / "a")
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", **fields)
    with pytest.raises(TokenizerError, match=error):
        Tokenizer.from_pretrained(folder)


@settings(max_examples=150)
@given(st.sampled_from(FILES), st.data())
def test_damage_is_named(small_folder: Path, tmp_path_factory, name: str, data: st.DataObject):
    """Cut off anywhere, or with bytes overwritten: an error that names the file, or a tokenizer that works."""
    folder = shutil.copytree(small_folder, tmp_path_factory.mktemp("damaged") / "a")
    path, content = folder / name, (small_folder / name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 3))
    cut = data.draw(st.booleans())
    junk = data.draw(st.binary(min_size=1, max_size=3))
    path.write_bytes(content[:at] if cut else content[:at] + junk + content[at + len(junk) :])
    try:
        tokenizer = Tokenizer.from_pretrained(folder)
    except TokenizerError as error:
        named = name in str(error) or str(folder) in str(error)
    else:
        named = True
        assert not cut or name == "chat_template.jinja", "a truncated file was accepted"
        text = "hello there \x00 é"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert named
    shutil.rmtree(folder.parent)


def test_missing_files_and_other_tokenizers(small_folder: Path, tmp_path: Path):
    with pytest.raises(TokenizerError, match="no tokenizer folder"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    for name, error in (
        ("tokenizer_config.json", "tokenizer_config.json is missing"),
        ("tokenizer.json", "has neither"),
    ):
        folder = shutil.copytree(small_folder, tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(TokenizerError, match=error):
            Tokenizer.from_pretrained(folder)
    folder = shutil.copytree(small_folder, tmp_path / "other")
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**vocabulary, "decoder": None}))
    with pytest.raises(TokenizerError, match="not a byte-level BPE tokenizer"):
        Tokenizer.from_pretrained(folder)
    del vocabulary["model"]["vocab"]["Ā"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(TokenizerError, match="no token for byte 0x00"):
        Tokenizer.from_pretrained(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenizerError, match="it is a file"):
        Tokenizer.from_pretrained(small_folder).save_pretrained(tmp_path / "file")


def test_truncation_and_padding_in_the_file_are_not_obeyed(small_folder: Path, tmp_path: Path):
    """A tokenizer.json may carry its trainer's truncation; a silently shortened prompt would be wrong."""
    folder = shutil.copytree(small_folder, tmp_path / "a")
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=truncation)
    text = "hello world, hello there"
    assert Tokenizer.from_pretrained(folder).decode(Tokenizer.from_pretrained(folder).encode(text)) == text
