"""Preparation against hand-written columns and counts: labels, keys, duplicates, malformed records, settings, splits."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import (
    Cleaning,
    DataConfig,
    DataError,
    Encoded,
    Labels,
    RunningSum,
    Source,
    Where,
    open_sources,
    training_texts,
)
from qwen3_jax.data import prepare as prepare_on_all_cores
from qwen3_jax.data import shards as shards_module
from qwen3_jax.data.cleaning import BANDS, ROWS, SIGNATURE, HeldOut, duplicates, signature
from qwen3_jax.data.labels import gopher_quality, label
from qwen3_jax.data.prepared import decode_record, encode_record
from qwen3_jax.data.reasoning import RunningSumRecords
from qwen3_jax.data.records import Record
from qwen3_jax.data.shards import PreparationJob, assign_number, sign_split
from qwen3_jax.data.sources import key_of, read, splits
from qwen3_jax.errors import UserError
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()


def prepare(source, output, **options):
    return prepare_on_all_cores(source, TOK, output, processes=1, **options)


def jsonl(path, bodies):
    path.write_text("".join((body if isinstance(body, str) else json.dumps(body)) + "\n" for body in bodies))
    return str(path)


def texts_of(corpus):
    return [TOK.decode(one.tokens.tolist()).removesuffix("<|endoftext|>") for one in corpus.read(range(len(corpus)))]


def test_labels_keep_their_names_across_shards(tmp_path):
    """Each shard numbers its labels from 0 in the order it meets them; the corpus has one numbering."""
    kinds = ["b", "a", "a", "c", "c", "b", "a", "d", "b", "b", "d", "c"]
    bodies = [
        {"text": f"{i:02} " + "x" * 40, "kind": kind, "lang": "en" if i % 3 else "de"} for i, kind in enumerate(kinds)
    ]
    source = Source("s", jsonl(tmp_path / "in.jsonl", bodies), labels=Labels(domain_key="kind", language_key="lang"))
    corpus = prepare(source, tmp_path / "out", split_bytes=200)
    assert len(corpus.manifest["shards"]) == 5
    assert corpus.names("domain") == ["b", "a", "c", "d"]
    assert [corpus.names("domain")[i] for i in corpus.domain] == kinds
    assert [corpus.names("language")[i] for i in corpus.language] == ["en" if i % 3 else "de" for i in range(12)]
    assert np.flatnonzero(corpus.select(Where(domain=["c", "d"], language=["en"]))).tolist() == [4, 7, 10, 11]


def test_columns_belong_to_their_documents(tmp_path):
    """Key: of the file and the byte where the line begins; quality and length of the same document; all over two files."""
    bodies = [{"text": "é" * n, "score": n / 8} for n in (3, 1, 4, 1, 5)]
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(tmp_path / name, [*bodies, ""])
    labels = Labels(domain="web", language="fr", quality_key="score")
    corpus = prepare(Source("s", str(tmp_path), labels=labels), tmp_path / "out", split_bytes=60)
    lines = [json.dumps(body) + "\n" for body in bodies]
    starts = [sum(len(line) for line in lines[:i]) for i in range(5)]
    assert corpus.key.tolist() == [key_of(name, start) for name in ("a.jsonl", "b.jsonl") for start in starts]
    assert len(set(corpus.key.tolist())) == 10
    assert corpus.lengths.tolist() == [7, 3, 9, 3, 11] * 2
    assert corpus.quality.tolist() == [3 / 8, 1 / 8, 4 / 8, 1 / 8, 5 / 8] * 2
    assert (corpus.names("domain"), corpus.names("language"), corpus.tokens) == (["web"], ["fr"], 66)
    assert corpus.manifest["text_bytes"] == 2 * 2 * 14, "UTF-8 bytes of the texts"
    first = 0
    for shard in corpus.manifest["shards"]:
        documents = corpus.read(range(first, first + shard["documents"]))
        assert shard["tokens"] == sum(len(document.tokens) for document in documents)
        first += shard["documents"]
    assert first == 10


def test_all_turns_of_a_conversation_share_its_key(tmp_path):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    corpus = prepare(
        Source("s", jsonl(tmp_path / "in.jsonl", [{"messages": turn * 3}, {"messages": turn}])), tmp_path / "out"
    )
    first = len(json.dumps({"messages": turn * 3})) + 1
    assert corpus.key.tolist() == [key_of("in.jsonl", 0)] * 3 + [key_of("in.jsonl", first)]


def test_rows_of_a_table_have_keys_by_their_place_in_the_whole_file(tmp_path):
    arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [f"row {i}" for i in range(7)], "note": [None, "x"] * 3 + [None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    source = Source("s", str(tmp_path / "a.parquet"))
    rows = [record for split in splits(source, size=1) for record in read(split, source)]
    assert [record.key for record in rows] == [key_of("a.parquet", i) for i in range(7)]
    assert [record.location.rpartition(" row ")[2] for record in rows] == [str(i) for i in range(1, 8)]
    assert [sorted(record.body) for record in rows] == [["text"], ["note", "text"]] * 3 + [["text"]]


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_malformed_records_are_no_duplicates_of_each_other(tmp_path, kind):
    """Nor of anything else: all are logged, in every shard, and none is counted as a duplicate."""
    lines = [
        "broken",
        '{"text": "one two three"}',
        "broken",
        '{"txt": 1}',
        '{"text": "ONE  two three"}',
        "broken",
        "{}",
    ]
    path = jsonl(tmp_path / "in.jsonl", lines)
    for size in (10**6, 30):
        cleaning = Cleaning(duplicates=kind, max_malformed=5)
        corpus = prepare(Source("s", path, cleaning=cleaning), tmp_path / f"{kind}{size}", split_bytes=size)
        assert corpus.manifest["left_out"] == {"duplicates": 1, "held_out": 0, "malformed": 5}
        assert texts_of(corpus) == ["one two three"]
        logged = (tmp_path / f"{kind}{size}/malformed.txt").read_text().splitlines()
        assert len(logged) == 5
        assert all(line.startswith(str(path)) for line in logged)  # one record a line


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_each_malformed_record_has_a_signature_of_its_own(tmp_path, kind):
    """So that none is taken for a duplicate of another, in its own split or in another one."""
    path = jsonl(tmp_path / "in.jsonl", ["broken", "broken", "{}", {"text": "good"}, "broken"])
    source = Source("s", path, cleaning=Cleaning(duplicates=kind))
    job = PreparationJob(source, TOK, tmp_path, 0)
    (tmp_path / "parts").mkdir()
    (split,) = splits(source)
    signed = np.concatenate([np.fromfile(sign_split(job, number, split), SIGNATURE) for number in (0, 1)])
    assert len(signed) == 10
    assert len(set(signed["exact"].tolist())) == 9, "the good record is the same in both"
    assert len({tuple(row) for row in signed["minhash"].tolist()}) == 9
    dropped = duplicates(signed, kind == "near", 0.5)
    assert dropped.tolist() == [False] * 8 + [True, False]


def test_the_limit_of_malformed_records_is_for_the_whole_corpus(tmp_path):
    """Two shards with one each: a limit of 2 allows them, a limit of 1 does not, though no shard passes it alone."""
    path = jsonl(tmp_path / "in.jsonl", ["x" * 50, {"text": "good one"}, "y" * 50])

    def run(limit):
        return prepare(
            Source("s", path, cleaning=Cleaning(max_malformed=limit)), tmp_path / f"out{limit}", split_bytes=60
        )

    assert run(2).manifest["left_out"]["malformed"] == 2
    with pytest.raises(DataError, match=r"2 malformed records in source 's'; cleaning.max_malformed allows 1"):
        run(1)


def hand_signed(*rows):
    """Signatures with these MinHash entries and different texts."""
    out = np.zeros(len(rows), SIGNATURE)
    out["exact"] = np.arange(len(rows))
    for signed, row in zip(out, rows, strict=True):
        signed["minhash"] = row
    return out


def agreeing(count, other):
    """MinHash entries of which the first `count` are those of `arange`."""
    places = np.arange(BANDS * ROWS)
    return np.where(places < count, places, other * 1000 + places)


@pytest.mark.parametrize(("equal", "dropped"), [(96, True), (95, False), (128, True)])
def test_a_similarity_of_just_the_threshold_is_a_duplicate(equal, dropped):
    signed = hand_signed(agreeing(128, 0), agreeing(equal, 1))
    assert duplicates(signed, True, 96 / 128).tolist() == [False, dropped]
    assert duplicates(signed, False, 96 / 128).tolist() == [False, False]


def test_the_first_of_its_kind_stays_and_later_ones_are_held_against_all_that_stayed():
    signed = hand_signed(
        agreeing(128, 0), agreeing(40, 1), agreeing(127, 0), agreeing(40, 1), agreeing(126, 0), agreeing(0, 5)
    )
    assert duplicates(signed, True, 0.8).tolist() == [False, False, True, True, True, False]
    only_last_band = agreeing(0, 7)
    only_last_band[-ROWS:] = np.arange(128)[-ROWS:]
    assert duplicates(hand_signed(agreeing(128, 0), only_last_band), True, 0.05).tolist() == [False, True]
    in_one_band = [agreeing(8, 1), agreeing(8, 2), agreeing(8, 2)]  # the three share the first band and no other
    in_one_band[2][ROWS::ROWS] += 100_000
    assert duplicates(hand_signed(*in_one_band), True, 0.8).tolist() == [False, False, True]
    signed["exact"] = [5, 6, 5, 7, 6, 5]
    assert duplicates(signed, False, 0.8).tolist() == [False, False, True, False, True, True]


def test_exact_duplicates_differ_in_case_and_white_space_alone():
    same = [int(signature(text, False)["exact"]) for text in ("One two", "one\n TWO ", "ONE\ttwo")]
    assert len(set(same)) == 1
    assert len({int(signature(text, False)["exact"]) for text in ("one two", "onetwo", "one two.", "two one")}) == 4
    assert not signature("a b c d e f", False)["minhash"].any()
    near = [signature(text, True)["minhash"].tolist() for text in ("a b c", "A, b; c!", "a b d")]
    assert near[0] == near[1] != near[2], "short texts have one shingle of all their words"


def test_duplicates_across_shards_leave_out_the_later(tmp_path):
    bodies = [{"text": text} for text in ("first of all", "second text", "FIRST of all", "third text", "second  text")]
    source = Source("s", jsonl(tmp_path / "in.jsonl", bodies), cleaning=Cleaning(duplicates="exact"))
    corpus = prepare(source, tmp_path / "out", split_bytes=30)
    assert texts_of(corpus) == ["first of all", "second text", "third text"]
    assert corpus.manifest["left_out"]["duplicates"] == 2
    assert corpus.manifest["text_bytes"] == sum(len(body["text"]) for body in bodies), "of all that was read"


def test_a_gram_is_shared_from_its_own_length_on():
    held_out = HeldOut.of(["a b c d e", "x y"], 3)
    assert held_out.overlaps("q c d e q")
    assert held_out.overlaps("c d e")
    assert not held_out.overlaps("q d e q x y q")
    assert len(held_out.grams) == 3


def test_what_does_not_change_the_result_does_not_ask_for_another_preparation(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", [{"text": "one"}, {"text": "two"}])
    before = prepare(Source("s", path), tmp_path / "out").manifest
    same = Source("s", path, weight=3, where=Where(length=[1, None]), eval_fraction=0.5)
    assert prepare(same, tmp_path / "out").manifest == before
    changes = (dict(text_key="body"), dict(loss_on="all"), dict(labels=Labels(quality=1.0)))
    for other in (Source("s", path, **change) for change in changes):
        with pytest.raises(UserError, match="was prepared with other settings"):
            prepare(other, tmp_path / "out")
    with pytest.raises(UserError, match=r"was prepared with other settings \(seed differs\)"):
        prepare(Source("s", path), tmp_path / "out", seed=1)
    sums = Source(
        "sums", "synthetic:running_sum", running_sum=RunningSum(problems=3, eval_problems=2), eval_fraction=0.1
    )
    prepare(sums, tmp_path / "sums")
    with pytest.raises(UserError, match=r"eval_fraction is 0\.2, was 0\.1"):
        prepare(dataclasses.replace(sums, eval_fraction=0.2), tmp_path / "sums")


def test_generated_problems_follow_the_run_s_seed_and_know_their_side(tmp_path):
    source = Source(
        "sums", "synthetic:running_sum", running_sum=RunningSum(problems=5, eval_problems=3), eval_fraction=0.1
    )
    runs = {}
    for seed in (0, 1):
        config = DataConfig([source], seed=seed)
        (corpus,) = open_sources(config, TOK, tmp_path / str(seed))
        assert corpus.folder == tmp_path / str(seed) / "sums"
        assert corpus.held_out(0.1).tolist() == [False] * 5 + [True] * 3
        runs[seed] = texts_of(corpus)
    assert runs[0] != runs[1]
    cached = DataConfig([source], cache=str(tmp_path / "cache"))
    assert open_sources(cached, TOK, tmp_path / "unused")[0].folder == tmp_path / "cache" / "sums"
    (prepared,) = open_sources(DataConfig([Source("again", str(tmp_path / "cache/sums"))]), TOK, tmp_path / "unused")
    assert prepared.folder == tmp_path / "cache" / "sums"
    assert not (tmp_path / "unused").exists()


def test_how_a_problem_is_written_depends_on_seed_split_and_index():
    shapes = {}
    for seed, split in ((0, "train"), (1, "train"), (0, "eval")):
        records = RunningSumRecords(RunningSum(problems=60, eval_problems=60), split, seed, 0.5)
        shapes[seed, split] = ["completion" in records[i].body for i in range(60)]
        assert records[7].location == f"synthetic:running_sum ({split} problem 7)"
        assert (len(records), records[7]) == (60, records[7])
    assert len({tuple(shape) for shape in shapes.values()}) == 3
    settings = RunningSum(min_digits=3, max_digits=4, disabled=1, thinking=0, non_thinking=0, truncated=0)
    questions = [RunningSumRecords(settings, "train", 0, 0.1)[i].body["messages"][0]["content"] for i in range(40)]
    assert {question.rpartition(": ")[2].count(" ") for question in questions} == {2, 3}


def test_there_are_just_so_many_label_values(monkeypatch):
    monkeypatch.setattr(shards_module, "_MOST_NAMES", 2)
    numbers = {}
    assert [assign_number(name, numbers, "domain") for name in ("x", "y", "x", "y")] == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"the label 'domain' has more than 2 values, the last of them 'z'"):
        assign_number("z", numbers, "domain")


def test_where_a_label_comes_from():
    """A key of the record before the constant, the constant before the default."""
    plain, full = Record("f", {"text": "t"}), Record("f", {"text": "t", "d": "D", "l": "L", "q": 3})
    keys = dict(domain_key="d", language_key="l", quality_key="q")
    assert label(plain, "t", Labels(), "web") == ("web", "und", gopher_quality("t"))
    assert label(plain, "t", Labels("books", language="de", quality=0.5), "web") == ("books", "de", 0.5)
    assert label(plain, "t", Labels("books", language="de", quality=0.5, **keys), "web") == ("books", "de", 0.5)
    assert label(full, "t", Labels("books", language="de", quality=0.5, **keys), "web") == ("D", "L", 3.0)
    assert label(full, "t", Labels("books", language="de", quality=0.5), "web") == ("books", "de", 0.5)
    with pytest.raises(DataError, match="f: 'd' must be text, got int"):
        label(Record("f", {"d": 1}), "t", Labels(domain_key="d"), "web")
    with pytest.raises(DataError, match="f: 'q' must be a number, got bool"):
        label(Record("f", {"q": True}), "t", Labels(quality_key="q"), "web")


def plain_gopher(text):
    """The rules of `gopher_quality` word for word, without its shortcuts."""
    words = text.split()
    if not words:
        return 0.0
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    characters = sum(map(len, words))
    kept = [
        50 <= len(words) <= 100_000,
        3 <= characters / len(words) <= 10,
        (text.count("#") + text.count("...") + text.count("…")) / len(words) <= 0.1,
        sum(line[0] in "•-*‣–" for line in lines) / len(lines) <= 0.9,
        sum(line.endswith(("...", "…")) for line in lines) / len(lines) <= 0.3,
        sum(any(c.isalpha() for c in word) for word in words) / len(words) >= 0.8,
        len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)) >= 2,
        1 - len(set(lines)) / len(lines) <= 0.3,
        1 - len(set(paragraphs)) / len(paragraphs) <= 0.3,
    ]
    for n, most in ((2, 0.2), (3, 0.18), (4, 0.16)):
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(word_run for word_run in runs)
        often = max(counts.values(), default=0)
        run = next((run for run in runs if counts[run] == often), ())
        kept.append(often < 2 or often * sum(map(len, run)) / characters <= most)
    return sum(kept) / len(kept)


WORDS = [
    "the", "of", "with", "a", "stone", "river", "42", "#", "-", "•", "wait...", "so…", "\n", "\n", "\n\n", "and",
    "extraordinarily",
]  # fmt: skip


@settings(max_examples=150)
@given(st.lists(st.sampled_from(WORDS), max_size=14), st.sampled_from([1, 2, 4]))
def test_gopher_s_rules_word_for_word(words, times):
    text = " ".join(words * times)
    assert gopher_quality(text) == pytest.approx(plain_gopher(text), abs=1e-12)


@pytest.mark.parametrize(
    ("tokens", "learned", "size"),
    [
        ([0, 2**16 - 1], [1, 1], 1 + 2 * 2),
        ([0, 2**16], [1, 1], 1 + 2 * 4),
        ([5] * 9, [1] * 8 + [0], 1 + 9 * 2 + 2),
        ([2**16] * 8, [0] * 8, 1 + 8 * 4 + 1),
        ([], [], 1),
    ],
)
def test_a_record_is_as_short_as_its_tokens_allow(tokens, learned, size):
    raw = encode_record(Encoded(np.array(tokens, np.int32), np.array(learned, bool)))
    assert len(raw) == size
    back = decode_record(raw)
    assert (back.tokens.tolist(), back.loss.tolist()) == (tokens, [bool(x) for x in learned])


def test_splits_are_filled_to_the_byte(tmp_path):
    for name, size in {"a": 10, "b": 10, "c": 10, "d": 25, "e": 1}.items():
        (tmp_path / f"{name}.txt").write_text("x" * size)
    source = Source("s", str(tmp_path))
    names = [[part.file.key for part in split] for split in splits(source, size=20)]
    assert names == [["a.txt", "b.txt"], ["c.txt"], ["d.txt"], ["e.txt"]]
    (tmp_path / "f.jsonl").write_text("{}\n" * 10)
    cuts = [
        (part.start, part.stop) for split in splits(Source("s", str(tmp_path / "f.jsonl")), size=12) for part in split
    ]
    assert cuts == [(0, 12), (12, 24), (24, 30)]


def test_a_tokenizer_is_trained_on_just_so_many_records_of_the_training_side(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", [{"text": f"line {i}"} for i in range(60)])
    everything = DataConfig([Source("s", path, eval_fraction=0)])
    assert list(training_texts(everything, max_records=10)) == [f"line {i}" for i in range(10)]
    half = Source("s", path, eval_fraction=0.5)
    keys = [record.key for split in splits(half) for record in read(split, half)]
    trained = [f"line {i}" for i, key in enumerate(keys) if key >= 2**63]
    assert 0 < len(trained) < 60
    assert list(training_texts(DataConfig([half]), max_records=100)) == trained
