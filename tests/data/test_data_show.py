"""`qwen3 data show`: what it prints of raw files is what training learns of them, for every form of record and file."""

import collections
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.data import Cleaning, DataConfig, Prepared, Source, make_eval_batches, prepare
from qwen3_jax.text import Tokenizer
from tests.data.test_record_forms import CALLS, FORMS, HI, TOOLS, YO
from tests.helpers.byte_tokenizer import segments_of
from tests.helpers.real_tokenizer import build_real_tokenizer

BLOCK = "<think>\n\n</think>\n\n"  # of non-thinking mode: prompt, and not learned
THINKING = {
    "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2? 你好 /think"},
        {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
        {"role": "user", "content": "And 3+3? /no_think"}, {"role": "assistant", "content": "6 🙂"},
    ],
}  # fmt: skip
MORE = [
    {"text": "A document."},
    {"text": "x"},  # one token and the end
    {"prompt": "raw", "completion": " text"},
    {"prompt": "raw", "completion": [{"text": " a", "loss": True}, {"text": " forced", "loss": False}]},
    {"messages": [HI], "completion": "to the letter"},
    {"messages": [HI, {**YO, "weight": 0}, HI, YO]},
    THINKING,
]


@pytest.fixture(scope="module")
def folder(request):
    return build_real_tokenizer(request.config.cache.mkdir("qwen3_tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_pretrained(folder)


@pytest.fixture
def show(folder, capsys):
    """Runs the command on files: (exit code, standard output, standard error)."""

    def run(*arguments, tokenizer=True):
        capsys.readouterr()
        more = ["--tokenizer", str(folder)] if tokenizer else []
        code = main(["data", "show", *map(str, arguments), *more])
        return code, *capsys.readouterr()

    return run


def lines_of(file: Path, records) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


class _AllHeldOut(Prepared):
    def held_out(self, fraction):
        return np.ones(len(self), bool)


def trained_on(corpus: Prepared) -> collections.Counter:
    """What the pipeline makes of a corpus: (tokens, loss mask of all but the first) of each document."""
    length = int(np.max(corpus.lengths))
    config = DataConfig([Source("s", "x")], sequence_length=length, batch_size=1)
    out: collections.Counter = collections.Counter()
    for batch in make_eval_batches(config, [_AllHeldOut(corpus.folder)], "s"):
        row = {name: values[0] for name, values in batch.items()}
        for segment in segments_of(row):
            tokens, targets, loss, _ = zip(*segment, strict=True)
            out[(*tokens, targets[-1]), tuple(map(bool, loss))] += 1
    return out


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_every_form_of_record_is_shown_as_the_pipeline_trains_on_it(loss_on, tmp_path, show, tokenizer):
    records = [record for pair in FORMS.values() for record in pair] + MORE
    file = lines_of(tmp_path / "all.jsonl", records)
    _, out, err = show(file, "--json", "--loss-on", loss_on)
    shown = [json.loads(line) for line in out.splitlines()]
    source = Source("s", str(file), loss_on=loss_on, cleaning=Cleaning(max_malformed=9))
    corpus = prepare(source, tokenizer, tmp_path / "out", processes=1)
    assert trained_on(corpus) == collections.Counter((tuple(one["tokens"]), tuple(one["learned"][1:])) for one in shown)
    # Nothing is left out: every record is shown, or named.
    named = {line.split(": ")[0] for line in err.splitlines() if line.startswith(str(file))}
    assert {one["source"] for one in shown} | named == {f"{file}:{number}" for number in range(1, len(records) + 1)}
    assert named == (
        {f"{file}:{len(records) - 1}"} if loss_on == "all" else set()
    )  # weight 0, and everything is learned
    assert max(max(one["tokens"]) for one in shown) > 151_643


def test_what_is_learned_to_the_letter(tmp_path, show, tokenizer):
    """Thinking of the turn that is answered, none of earlier turns; the flags, tools, and forced text as context."""
    file = lines_of(tmp_path / "a.jsonl", [THINKING, {"messages": CALLS, "tools": TOOLS}, MORE[3], MORE[0]])
    code, out, err = show(file, "--json")
    assert (code, err) == (0, "")
    shown = [json.loads(line) for line in out.splitlines()]
    assert [one["source"].rpartition(":")[2] for one in shown] == ["1", "1", "2", "2", "3", "4"]
    assert all(one.keys() == {"source", "tokens", "learned"} for one in shown)

    def stretches(one):
        text, learned = [], np.array(one["learned"])
        for edge in np.split(np.arange(len(learned)), np.flatnonzero(learned[1:] != learned[:-1]) + 1):
            text.append((tokenizer.decode(np.array(one["tokens"])[edge].tolist()), bool(learned[edge[0]])))
        return text

    first, second, call, answer, forced, document = map(stretches, shown)
    assert first[-1] == ("<think>\ntwo and two\n</think>\n\n4<|im_end|>", True)
    assert first[0][0].endswith("2+2? 你好 /think<|im_end|>\n<|im_start|>assistant\n")
    assert "two and two" not in second[0][0]
    assert second[0][0].endswith("And 3+3? /no_think<|im_end|>\n<|im_start|>assistant\n")
    assert second[1] == ("<think>\n\n</think>\n\n6 🙂<|im_end|>", True)
    # Not thinking: each step is learned behind its own prompt, which has an empty block for it and none for earlier steps.
    assert [learned for _, learned in call] == [learned for _, learned in answer] == [False, True]
    assert call[0][0].endswith("<|im_end|>\n<|im_start|>assistant\n" + BLOCK)
    assert call[1][0].count("<tool_call>") == 1
    assert "<tool_response>\n4\n</tool_response>" in answer[0][0]
    assert answer[0][0].count(BLOCK) == 1
    assert answer[0][0].endswith(BLOCK)
    assert answer[1][0] == "yo<|im_end|>"
    assert forced == [("raw", False), (" a", True), (" forced", False)]
    assert document == [("A document.<|endoftext|>", True)]


def test_every_form_of_file_is_shown_and_named(tmp_path, show):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    record = {"messages": [HI, YO]}
    table = [{"messages": json.dumps([HI, YO])}] * 2
    lines_of(tmp_path / "a.jsonl", [record, record])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n" + json.dumps(record).encode()))
    (tmp_path / "c.json").write_text(json.dumps([record]))
    parquet.write_table(arrow.Table.from_pylist(table), tmp_path / "d.parquet")
    (tmp_path / "e.csv").write_text("prompt,response\nhi,yo\n")
    (tmp_path / "f.txt").write_text("Two words.")
    code, out, _ = show(tmp_path, "--json")
    shown = [json.loads(line) for line in out.splitlines()]
    places = [
        "a.jsonl:1",
        "a.jsonl:2",
        "b.jsonl.gz:2",
        "c.json record 1",
        "d.parquet row 1",
        "d.parquet row 2",
        "e.csv:2",
        "f.txt",
    ]
    assert code == 0
    assert [one["source"] for one in shown] == [str(tmp_path / place) for place in places]
    assert len({(tuple(one["tokens"]), tuple(one["learned"])) for one in shown[:-1]}) == 1
    assert all(shown[-1]["learned"])
    limited = show(tmp_path, "--json", "--limit", 3)[1]
    assert limited == "".join(line + "\n" for line in out.splitlines()[:3])
    assert show(tmp_path / "a.jsonl", "--json", "--format", "text")[1].count("\n") == 1


def test_malformed_records_are_named_with_file_line_and_reason_and_the_others_shown(tmp_path, show):
    file = tmp_path / "bad.jsonl"
    good = json.dumps({"messages": [HI, YO]})
    broken = {
        2: ('{"messages": [', "not valid JSON"),
        3: ("[1]", "a JSON object is wanted"),
        5: (json.dumps({"messages": [HI]}), "no assistant message to learn from"),
        6: (json.dumps({"messages": [{**HI, "role": "robot"}, YO]}), "the role 'robot'"),
        7: (json.dumps({"chosen": [YO], "rejected": [YO]}), "a preference"),
        8: ('{"text": "\\ud800 alone"}', "the tokenizer refuses the text"),
        9: (json.dumps({"messages": [HI, {**YO, "weight": 0}]}), "no assistant message to learn from"),
    }
    lines = {1: good, 4: "", 10: json.dumps({"text": ""}), 11: good, **{n: line for n, (line, _) in broken.items()}}
    file.write_text("".join(lines[number] + "\n" for number in sorted(lines)))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress((good + "\n").encode() * 500)[:-20])
    code, out, err = show(file, tmp_path / "cut.jsonl.gz", "--json")
    assert code == 2
    shown = [json.loads(line)["source"] for line in out.splitlines()]
    assert shown[:2] == [f"{file}:1", f"{file}:11"]
    *named, cut, summary = err.splitlines()
    expected = {**{number: reason for number, (_, reason) in broken.items()}, 10: "nothing to train on"}
    assert len(named) == len(expected)
    for number, reason in expected.items():
        (line,) = (line for line in named if line.startswith(f"{file}:{number}: "))
        assert reason in line
    assert cut.startswith(f"{tmp_path / 'cut.jsonl.gz'}: cannot be read")
    assert summary.startswith("8 of ")
    assert "cannot be used" in summary


def test_a_terminal_gets_colours_and_others_get_marks(tmp_path, show, monkeypatch):
    file = lines_of(
        tmp_path / "a.jsonl", [{"messages": [HI, YO]}, {"text": "bell \x07, \x1b[31mred\x1b[0m, \u202eturned\r\n"}]
    )
    code, plain, _ = show(file)
    assert code == 0
    assert "\x1b" not in plain
    assert plain.startswith(f"=== {file}:1: ")
    assert "<|im_start|>assistant\n" + BLOCK + "{+yo<|im_end|>+}\n" in plain
    assert "{+bell \\x07, \\x1b[31mred\\x1b[0m, \\u202eturned\\r\n<|endoftext|>+}" in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = show(file)[1]
    assert "\x1b[2m<think>\x1b[0m\n\n\x1b[2m</think>\x1b[0m\n\n\x1b[32myo<|im_end|>\x1b[0m" in coloured
    assert "\x1b[2m<|im_start|>assistant\x1b[0m\n" in coloured
    assert "\x1b[31m" not in coloured, "the colours of the text"
    assert "{+" not in coloured
    for line in coloured.splitlines():
        assert line.count("\x1b[") % 2 == 0, "every line ends the colours it began: pagers ask for it"
    monkeypatch.setenv("NO_COLOR", "1")
    assert show(file)[1] == plain


def test_a_huge_record_is_shown_whole(tmp_path, show):
    text = "word " * 200_000
    file = lines_of(tmp_path / "huge.jsonl", [{"prompt": text, "completion": text}])
    one = json.loads(show(file, "--json")[1])
    assert len(one["tokens"]) == len(one["learned"]) > 300_000
    assert sum(one["learned"]) in range(len(one["tokens"]) // 2 - 2, len(one["tokens"]) // 2 + 3)
    assert show(file)[1].count("word") == 400_000


def test_a_prepared_corpus_shows_what_lies_in_it(tmp_path, show, tokenizer):
    file = lines_of(tmp_path / "a.jsonl", [THINKING, {"text": "A document."}])
    corpus = prepare(Source("s", str(file)), tokenizer, tmp_path / "out", processes=1)
    raw = [json.loads(line) for line in show(file, "--json")[1].splitlines()]
    code, out, _ = show(corpus.folder, "--json", tokenizer=False)
    held = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [one["source"] for one in held] == [f"{corpus.folder} document {number}" for number in range(3)]
    assert [(one["tokens"], one["learned"]) for one in held] == [(one["tokens"], one["learned"]) for one in raw]
    assert show(corpus.folder)[1].count("=== ") == 3
    assert "documents, " in show(corpus.folder, tokenizer=False)[1]


def test_both_answers_of_a_preference_are_shown_with_what_is_learned_of_each(tmp_path, show, tokenizer):
    thinks = {"prompt": [HI], "chosen": [{**YO, "reasoning_content": "hm"}], "rejected": [{**YO, "content": "no"}]}
    file = lines_of(
        tmp_path / "a.jsonl", [thinks, {"prompt": "Q", "chosen": " a", "rejected": " b<|im_end|>"}, {"text": "a"}]
    )
    code, out, err = show(file, "--pairs")
    assert code == 2
    assert "a.jsonl:3: the record is no preference" in err
    head = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert out == (
        f"=== {file}:1, chosen: 17 tokens, 8 learned\n{head}{{+<think>\nhm\n</think>\n\nyo<|im_end|>+}}\n\n"
        f"=== {file}:1, rejected: 15 tokens, 6 learned\n{head}{{+{BLOCK}no<|im_end|>+}}\n\n"
        f"=== {file}:2, chosen: 2 tokens, 1 learned\nQ{{+ a+}}\n\n"
        f"=== {file}:2, rejected: 3 tokens, 2 learned\nQ{{+ b<|im_end|>+}}\n\n"
    )
    lines_of(file, [thinks])
    corpus = prepare(Source("s", str(file), pairs=True), tokenizer, tmp_path / "out", processes=1)
    raw = [json.loads(line) for line in show(file, "--pairs", "--json")[1].splitlines()]
    held = [json.loads(line) for line in show(corpus.folder, "--json", tokenizer=False)[1].splitlines()]
    assert [one.pop("answer") for one in raw] == [one.pop("answer") for one in held] == ["chosen", "rejected"]
    assert [(one["tokens"], one["learned"]) for one in held] == [(one["tokens"], one["learned"]) for one in raw]
    assert "1 preferences, 32 tokens" in show(corpus.folder, "--row", 64, tokenizer=False)[1]


def test_histories_and_control_tokens_are_shown_as_prepared(tmp_path, show):
    thinks = {**YO, "reasoning_content": "hm"}
    file = lines_of(tmp_path / "a.jsonl", [{"messages": [HI, thinks, {**HI, "content": "a<|im_end|>b"}, thinks]}])

    def ends(*options):
        return [json.loads(line)["tokens"].count(151_645) for line in show(file, "--json", *options)[1].splitlines()]

    assert ends() == [2, 4]
    assert ends("--history", "keep") == [4]
    assert ends("--history", "keep", "--read-control-tokens") == [5]


def test_options_that_would_do_nothing_are_refused(tmp_path, show, tokenizer):
    file = lines_of(tmp_path / "a.jsonl", [{"text": "A document."}])
    corpus = prepare(Source("s", str(file)), tokenizer, tmp_path / "out", processes=1)
    cases = [
        ((file,), {"tokenizer": False}, "--tokenizer"), ((file, "--row", 8), {}, "--row"),
        ((tmp_path / "none",), {"tokenizer": False}, "does not exist"), ((tmp_path / "none",), {}, "no file matches"),
        ((corpus.folder, file), {}, "by itself"), ((corpus.folder, "--loss-on", "all"), {}, "--loss-on"),
        ((corpus.folder, "--pairs"), {}, "--pairs"), ((corpus.folder, "--history", "keep"), {}, "--history"),
        ((corpus.folder, "--read-control-tokens"), {}, "--read-control-tokens"),
        ((corpus.folder, "--format", "jsonl"), {}, "--format"), ((corpus.folder, "--row", 8), {}, "--row"),
        ((corpus.folder, "--limit", 1), {"tokenizer": False}, "--limit"),
    ]  # fmt: skip
    for arguments, options, said in cases:
        code, out, err = show(*arguments, **options)
        assert (code, out) == (2, ""), arguments
        assert said in err, arguments
        assert err.count("\n") == 1, err


def test_show_decides_nothing_by_itself():
    """The command and preparation share the function that reads records, and neither calls what lies below it."""
    import inspect

    from qwen3_jax.cli import data_show
    from qwen3_jax.data import preparation, shards

    for module in (data_show, shards, preparation):
        code = inspect.getsource(module)
        assert "apply_chat_template" not in code
        assert "documents(record" not in code
        assert "encode(" not in code.replace(".encode(", "")
