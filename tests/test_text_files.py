"""Text that a user gives is read in one place: byte order marks, line ends and other encodings, for every kind of file."""

import ast
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_jax.cli import inputs, serve
from qwen3_jax.cli.configuration import parse_configuration
from qwen3_jax.data import DataConfig
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.text import Tokenizer
from qwen3_jax.text.train_tokenizer import read_texts
from qwen3_jax.text_files import decode, lines, read_text
from tests.helpers import tiny_models

ROOT = Path(__file__).parent.parent
INSIDE = "\u2028 \u2029 \x85 \x0b \x0c \x1c"  # where Python's splitlines cuts and JSON Lines do not
USER = {"role": "user", "content": f"a{INSIDE}b"}


def tokenizer_of(path: Path):
    folder = path.parent / "tokenizer"
    if not folder.exists():
        tiny_models.tokenizer().save_pretrained(folder)
    return folder


def reads_tokenizer(name):
    def read(path: Path):
        folder = tokenizer_of(path)
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(path.read_bytes())
        try:
            return Tokenizer.from_pretrained(folder).definition()
        finally:
            (folder / name).write_bytes(original)

    return read


def reads_configuration(path: Path):
    return parse_configuration(DataConfig, ["--config", str(path)], "x", "x")


TINY = tiny_models.tokenizer()
# what reads a file -> its reader, and a text for it
READERS = {
    "config.json and the like": (read_json, json.dumps({"a": INSIDE}, indent=1)),
    "tokenizer.json": (reads_tokenizer("tokenizer.json"), TINY.to_json()),
    "tokenizer_config.json": (reads_tokenizer("tokenizer_config.json"), json.dumps(dict(TINY.__reduce__()[1][1]), indent=1)),
    "chat_template.jinja": (reads_tokenizer("chat_template.jinja"), "{{ messages[0].content }}"),
    "messages": (lambda path: inputs.read_one(None, path, None, False).prompt, json.dumps([USER], ensure_ascii=False)),
    "batches": (
        lambda path: [(one.prompt, one.id) for one in inputs.read_jsonl(path, None, False)],
        "".join(json.dumps({"messages": [USER], "id": i}, ensure_ascii=False) + "\n\n" for i in range(3)),
    ),
    "tools": (inputs.read_tools, json.dumps(tiny_models.TOOLS, indent=1)),
    "keys": (serve._keys, "# of two\nfirst\n\nsecond\n"),
    "configurations": (reads_configuration, "sources:\n  - {name: a, path: b}\nbatch_size: 3\n"),
    "texts of a tokenizer": (lambda path: "".join(read_texts([path])), "one line, no more"),
}  # fmt: skip


@pytest.mark.parametrize("kind", READERS)
def test_every_file_is_read_as_it_comes_from_windows(kind, tmp_path):
    read, text = READERS[kind]
    file = tmp_path / "given"
    file.write_bytes(text.encode())
    expected = read(file)
    for ending in ("\n", "\r\n", "\r"):
        for mark in ("", "\ufeff"):
            file.write_bytes((mark + text.replace("\n", ending)).encode())
            assert read(file) == expected, (ending, mark)
    for encoding, name in (
        ("utf-16", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-32", "UTF-32"),
    ):
        file.write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match=rf"given|{kind}".split()[0]) as caught:
            read(file)
        assert name in str(caught.value)
        assert "iconv" in str(caught.value)
        assert "\n" not in str(caught.value)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match="is a Git LFS pointer and not the file itself: get that with `git lfs pull`"):
        read(file)
    file.write_bytes(text.encode() + b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        read(file)


def test_messages_and_tools_with_a_key_twice_are_refused(tmp_path):
    """One of the values would be lost."""
    file = tmp_path / "given.json"
    file.write_text('[{"role": "user", "content": "a", "content": "b"}]')
    for read in (lambda path: inputs.read_one(None, path, None, False), inputs.read_tools):
        with pytest.raises(
            UserError, match=r"given\.json is not valid JSON \(the key 'content' occurs twice in one object\)"
        ):
            read(file)
    file.with_suffix(".jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(UserError, match=r"given\.jsonl, line 1 is not valid JSON \(the key 'prompt' occurs twice"):
        inputs.read_jsonl(file.with_suffix(".jsonl"), None, False)


def test_standard_input_may_begin_with_a_byte_order_mark(monkeypatch):
    def given(raw: bytes):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return inputs.read_one(None, None, None, True).prompt

    assert given("\ufeffhi\r\nyou".encode()) == "hi\nyou"
    with pytest.raises(UserError, match="standard input is UTF-16 text"):
        given("hi you".encode("utf-16"))


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_lines_end_at_line_ends_alone(texts, ending):
    whole = ending.join(texts)
    assert lines(whole) == (texts if texts and texts[-1] else texts[:-1])
    assert decode(whole.encode(), "x") == whole.removeprefix("\ufeff") or "\0" in whole


def test_a_missing_file_and_a_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'none'} does not exist.")):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match=re.escape(f"--text {tmp_path} cannot be read (Is a directory).")):
        read_text(tmp_path, f"--text {tmp_path}")


def test_no_other_place_decodes_what_a_user_gave():
    """`read_text`, `open` for text and `splitlines` stand only where the project reads back what it wrote itself."""
    training = {"training/metrics.py", "checkpoint/training.py"}
    preparation = {"data/prepared.py", "data/preparation.py", "data/shards.py"}
    sandbox = {"sandbox/seccomp.py", "sandbox/calls.py", "kernels/platform.py"}  # files of the kernel
    planner = {"planner/compile.py", "planner/gpu_nodes.py"}
    evaluation = {"evaluation/report.py", "evaluation/tasks/reading.py"}  # its page, the hub's cache
    own = {"absent_tpu.py", "text/chat.py", *evaluation, *planner, *training, *preparation, *sandbox}  # or the kernel's
    for file in (ROOT / "qwen3_jax").rglob("*.py"):
        name = file.relative_to(ROOT / "qwen3_jax").as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read_text":
                assert name in own, f"{file}:{node.lineno}"
