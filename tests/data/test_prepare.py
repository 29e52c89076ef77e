"""Preparing a corpus: whole, the same with any number of processes, resumable, and clean."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import Cleaning, DataError, Encoded, Labels, Prepared, Source, Where, prepare
from qwen3_jax.data.cleaning import HeldOut, duplicates, grams, signature, words_of
from qwen3_jax.data.labels import gopher_quality
from qwen3_jax.data.preparation import begin_preparation
from qwen3_jax.data.prepared import decode_record, encode_record
from qwen3_jax.errors import UserError
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()


def jsonl(path: Path, bodies) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*"))}


def everything(corpus: Prepared) -> list[str]:
    return [TOK.decode(one.tokens.tolist()).removesuffix("<|endoftext|>") for one in corpus.read(range(len(corpus)))]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=40), st.booleans())
def test_a_record_holds_its_document(pairs, small):
    tokens = np.array([token % 60_000 if small else token for token, _ in pairs], np.int32)
    document = Encoded(tokens, np.array([learned for _, learned in pairs], bool))
    decoded = decode_record(encode_record(document))
    np.testing.assert_array_equal(decoded.tokens, document.tokens, strict=True)
    np.testing.assert_array_equal(decoded.loss, document.loss, strict=True)


def test_every_format_gives_the_same_documents(tmp_path):
    """JSONL plain, gzipped, in Zstandard, Parquet, ArrayRecord and text files; cut into splits of any size."""
    arrow = pytest.importorskip("pyarrow")
    pq, zstandard = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("zstandard")
    from array_record.python.array_record_module import ArrayRecordWriter

    texts = [f"document {i}: " + "word " * (i * 7 % 50) for i in range(200)]
    raw = jsonl(tmp_path / "plain/a.jsonl", [{"text": text} for text in texts]).read_bytes()
    for name, content in (("gz/a.jsonl.gz", gzip.compress(raw)), ("zst/a.jsonl.zst", zstandard.compress(raw))):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    (tmp_path / "parquet").mkdir()
    pq.write_table(arrow.table({"text": texts}), tmp_path / "parquet/a.parquet", row_group_size=30)
    (tmp_path / "arrayrecord").mkdir()
    writer = ArrayRecordWriter(str(tmp_path / "arrayrecord/a.arrayrecord"), "group_size:1")
    for i, text in enumerate(texts):
        writer.write(json.dumps({"text": text}).encode() if i % 2 else text.encode())
    writer.close()
    (tmp_path / "text").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / f"text/{i:03}.txt").write_text(text)
    for kind in ("plain", "gz", "zst", "parquet", "arrayrecord", "text"):
        for size in (10**9, 1500):
            out = tmp_path / f"{kind}-{size}"
            corpus = prepare(Source("s", str(tmp_path / kind)), TOK, out, split_bytes=size, processes=1)
            assert everything(corpus) == texts, (kind, size)
            assert corpus.tokens == sum(len(text.encode()) + 1 for text in texts)
            assert corpus.names("domain") == ["s"]
    assert len(Prepared(tmp_path / "plain-1500").manifest["shards"]) > 4


def test_a_url_is_read_like_a_path(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/corpus/a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    memory.pipe("/bucket/corpus/b.txt", b"three")
    corpus = prepare(Source("s", "memory://bucket/corpus"), TOK, tmp_path / "out", processes=1)
    assert sorted(everything(corpus)) == ["one", "three", "two"]
    with pytest.raises(DataError, match="no file matches 'memory://bucket/nothing'"):
        prepare(Source("s", "memory://bucket/nothing"), TOK, tmp_path / "none")
    with pytest.raises(DataError, match="'nosuch://bucket' cannot be read"):
        prepare(Source("s", "nosuch://bucket"), TOK, tmp_path / "none")


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path):
    source = Source("s", str(tmp_path / "in"), cleaning=Cleaning(duplicates="near"), labels=Labels(domain_key="kind"))
    rng = np.random.default_rng(0)
    bodies = [{"text": " ".join(map(str, rng.integers(0, 99, 30))), "kind": "ab"[i % 2]} for i in range(300)]
    jsonl(tmp_path / "in/a.jsonl", bodies + bodies[:40])
    jsonl(tmp_path / "in/b.jsonl", [{"text": "hello there"}] * 3)
    one = prepare(source, TOK, tmp_path / "one", processes=1, split_bytes=4000)
    three = prepare(source, TOK, tmp_path / "three", processes=3, split_bytes=4000)
    assert one.manifest == three.manifest
    assert one.manifest["left_out"]["duplicates"] == 42
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert prepare(source, TOK, tmp_path / "one", processes=1, split_bytes=4000).tokens == one.tokens, "nothing to do"


def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch):
    source = Source("s", str(tmp_path / "in"))
    jsonl(tmp_path / "in/a.jsonl", [{"text": f"text number {i}"} for i in range(100)])
    module = sys.modules["qwen3_jax.data.preparation"]
    real, seen = module.prepare_split, []

    def dies(job, number, split, drop):
        if number == 3:
            raise KeyboardInterrupt
        return real(job, number, split, drop)

    monkeypatch.setattr(module, "prepare_split", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, TOK, tmp_path / "out", processes=1, split_bytes=500)
    assert not (tmp_path / "out").exists()
    kept = (tmp_path / "out.partial/00000.arrayrecord").stat().st_mtime_ns
    monkeypatch.setattr(module, "prepare_split", lambda *a: seen.append(a[1]) or real(*a))
    corpus = prepare(source, TOK, tmp_path / "out", processes=1, split_bytes=500)
    assert everything(corpus) == [f"text number {i}" for i in range(100)]
    assert (tmp_path / "out/00000.arrayrecord").stat().st_mtime_ns == kept, "finished shards are kept"
    assert not (tmp_path / "out.partial").exists()
    whole = prepare(source, TOK, tmp_path / "whole", processes=1, split_bytes=500)
    assert whole.manifest == corpus.manifest


@pytest.mark.parametrize("step", ["load_columns", "write_json", "Path.replace", "shutil.rmtree"])
def test_an_interruption_while_it_is_published_leaves_nothing_half_written(tmp_path, monkeypatch, step):
    source = Source("s", str(tmp_path / "in"), cleaning=Cleaning(max_malformed=1))
    jsonl(tmp_path / "in/a.jsonl", [{"text": f"text number {i}"} for i in range(30)] + [{"txt": "x"}])
    module = sys.modules["qwen3_jax.data.preparation"]
    whole = prepare(source, TOK, tmp_path / "whole", processes=1, split_bytes=500)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        holder, _, name = step.rpartition(".")
        if step == "write_json":  # of the manifest; settings come first
            real = module.write_json
            patch.setattr(module, name, lambda path, values: dies() if path.stem == "dataset" else real(path, values))
        elif step == "Path.replace":
            real = Path.replace
            patch.setattr(Path, name, lambda path, to: dies() if path.suffix == ".partial" else real(path, to))
        else:
            patch.setattr(getattr(module, holder) if holder else module, name, dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, TOK, tmp_path / "out", processes=1, split_bytes=500)
    assert (tmp_path / "out").exists() == (step == "shutil.rmtree")
    prepare(source, TOK, tmp_path / "out", processes=1, split_bytes=500)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert whole.manifest["left_out"]["malformed"] == 1


def test_two_preparations_of_one_folder_do_not_mix(tmp_path):
    jsonl(tmp_path / "in.jsonl", [{"text": "one"}, {"text": "two"}])
    source = Source("s", str(tmp_path / "in.jsonl"))
    with begin_preparation(source, TOK, tmp_path / "out", 0, 10**6) as begun:
        assert begun is not None
        with pytest.raises(UserError, match=r"another process is preparing .*/out; wait for it, or stop it"):
            prepare(source, TOK, tmp_path / "out", processes=1)
    german = Source("s", str(tmp_path / "in.jsonl"), labels=Labels(language="de"))
    with pytest.raises(
        UserError, match=r"out.partial holds an interrupted preparation .*labels is .*'de'.* was .*'und'"
    ):
        prepare(german, TOK, tmp_path / "out", processes=1)
    assert everything(prepare(source, TOK, tmp_path / "out", processes=1)) == ["one", "two"]


def test_malformed_records_are_counted_logged_and_refused_past_the_limit(tmp_path):
    lines = [
        '{"text": "good"}',
        "not json",
        '{"text": 7}',
        '{"other": 1}',
        '["list"]',
        '{"text": "half \\ud800"}',
        '{"text": "fine"}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')

    def run(limit, out):
        return prepare(Source("s", str(path), cleaning=Cleaning(max_malformed=limit)), TOK, tmp_path / out, processes=1)

    corpus = run(6, "all")
    assert everything(corpus) == ["good", "fine"]
    assert corpus.manifest["left_out"]["malformed"] == 6
    log = (tmp_path / "all/malformed.txt").read_text()
    for line, words in {2: "not valid JSON", 3: "'text' must be a string", 4: "no 'text'", 5: "wanted, got list",
                        6: "the tokenizer refuses", 8: "not valid UTF-8"}.items():  # fmt: skip
        assert any(f"in.jsonl:{line}: " in one and words in one for one in log.splitlines()), log
    with pytest.raises(DataError, match=r"in.jsonl:\d: .*more malformed records than cleaning.max_malformed, 5"):
        run(5, "fewer")
    with pytest.raises(DataError, match=r"in.jsonl:2: not valid JSON: .* at column \d+$"):
        run(0, "none")
    assert not (tmp_path / "none").exists()


def test_labels_select_documents(tmp_path):
    bodies = [
        {"text": "x" * 20, "kind": "code", "lang": "en", "score": 0.9},
        {"text": "y" * 40, "kind": "prose", "lang": "de", "score": 0.1, "rank": 1},
        {"text": "z" * 60, "kind": "code", "lang": "de", "score": -3},
    ]
    labels = Labels(domain="web", domain_key="kind", language_key="lang", quality_key="score")
    jsonl(tmp_path / "in.jsonl", bodies)
    corpus = prepare(Source("s", str(tmp_path / "in.jsonl"), labels=labels), TOK, tmp_path / "out")
    for where, expected in [
        (Where(), [0, 1, 2]),
        (Where(domain=["code"]), [0, 2]),
        (Where(language=["de"]), [1, 2]),
        (Where(domain=["code"], language=["de"]), [2]),
        (Where(quality=[0.5, None]), [0]),
        (Where(length=[30, 50]), [1]),
    ]:
        assert np.flatnonzero(corpus.select(where)).tolist() == expected
    with pytest.raises(DataError, match=r"no document with the domain 'prse'; there are \['code', 'prose'\]"):
        corpus.select(Where(domain=["prse"]))
    constant = Labels(quality=0.25, quality_key="rank")
    assert prepare(Source("s", str(tmp_path / "in.jsonl"), labels=constant), TOK, tmp_path / "c").quality[0] == 0.25
    jsonl(tmp_path / "in.jsonl", [{"text": "a", "score": "high"}])
    with pytest.raises(DataError, match=r"in\.jsonl:1: 'score' must be a number, got str"):
        prepare(Source("s", str(tmp_path / "in.jsonl"), labels=labels), TOK, tmp_path / "bad")


def test_gopher_quality_tells_prose_from_rubbish():
    prose = "The model that we have is one of the best, and it is to be used with care. " * 8
    varied = " ".join(
        f"{word} of the {i}th kind have been with us" for i, word in enumerate(["apple", "stone", "river"] * 10)
    )
    assert gopher_quality(varied) > 0.8
    assert gopher_quality("") == 0
    assert gopher_quality("- a\n- b\n- c\n") < gopher_quality(prose) <= 1
    assert gopher_quality("### ... ### ...") < 0.6


def test_words_of_scripts_without_spaces_are_their_characters():
    """Otherwise a Chinese question would be one word, and never be found in a text that holds it."""
    held_out = HeldOut.of(["三个连续偶数的和是七十二，求最大的数。", "ผลรวมของจำนวนคู่สามจำนวน"], 13)
    assert held_out.overlaps("题目：三个连续偶数的和是七十二，求最大的数是多少？")
    assert held_out.overlaps("โจทย์: ผลรวมของจำนวนคู่สามจำนวนคือ")
    assert not held_out.overlaps("三个连续奇数的和是七十二，求最大的数。")
    assert len(words_of("don't stop_it 42 über 조선말")) == 6


def test_exact_and_near_duplicates_are_left_out(tmp_path):
    rng = np.random.default_rng(1)
    words = rng.integers(0, 10_000, (60, 200))
    base = [" ".join(f"w{w}" for w in row) for row in words]
    near = [text.replace("w", "w", 1).rsplit(" ", 4)[0] + " a few other words" for text in base[:20]]
    shouted = [text.upper() for text in base[20:30]]
    jsonl(tmp_path / "in.jsonl", [{"text": text} for text in base + near + shouted])

    def left(kind):
        cleaning = Cleaning(duplicates=kind, similarity=0.8)
        corpus = prepare(
            Source("s", str(tmp_path / "in.jsonl"), cleaning=cleaning),
            TOK,
            tmp_path / kind,
            split_bytes=9000,
            processes=1,
        )
        return everything(corpus)

    assert left("keep") == base + near + shouted
    assert left("exact") == base + near
    assert left("near") == base


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.6, 0.9])
def test_minhash_estimates_jaccard_similarity(shared):
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(20):
        common = rng.integers(0, 10**6, int(400 * shared))
        texts = [" ".join(map(str, [*common, *rng.integers(0, 10**6, 400 - len(common))])) for _ in range(2)]
        sets = [set(grams(words_of(text), 5).tolist()) for text in texts]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        a, b = (signature(text, True)["minhash"] for text in texts)
        errors.append(float((a == b).mean()) - true)
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.08
    dropped = duplicates(np.array([signature(texts[0], True), signature(texts[1], True)]), True, 0.7)
    assert dropped.tolist() == [False, shared == 0.9]


def test_text_that_overlaps_held_out_sets_is_left_out(tmp_path):
    question = "what is the sum of the first twenty odd numbers that are not divisible by three or five"
    jsonl(tmp_path / "exam.jsonl", [{"text": question}, {"text": "short one"}])
    texts = ["Someone asked: " + question.upper() + "!", "short one", "nothing in common", question[:40]]
    jsonl(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    cleaning = Cleaning(held_out=[str(tmp_path / "exam.jsonl")], ngram=13)
    corpus = prepare(Source("s", str(tmp_path / "in.jsonl"), cleaning=cleaning), TOK, tmp_path / "out")
    assert everything(corpus) == texts[1:]
    assert corpus.manifest["left_out"]["held_out"] == 1


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_overlap_is_a_shared_run_of_words(ours, theirs, n):
    runs = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (ours, theirs)]
    held_out = HeldOut.of([" ".join(map(str, theirs))], n)
    assert held_out.overlaps(" ".join(map(str, ours))) == bool(runs[0] & runs[1])


def test_what_lies_in_the_way_is_refused_by_name(tmp_path):
    jsonl(tmp_path / "in.jsonl", [{"text": "one"}, {"text": "two"}])
    source = Source("s", str(tmp_path / "in.jsonl"))
    corpus = prepare(source, TOK, tmp_path / "out")

    class Other(ByteTokenizer):
        def definition(self):
            return "other"

    with pytest.raises(DataError, match="prepared with another tokenizer"):
        corpus.check_tokenizer(Other())
    with pytest.raises(UserError, match="the tokenizer is another"):
        prepare(source, Other(), tmp_path / "out")
    jsonl(tmp_path / "in.jsonl", [{"text": "one"}])
    with pytest.raises(UserError, match="the files have changed"):
        prepare(source, TOK, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="exists and is not a prepared corpus"):
        prepare(source, TOK, tmp_path / "file")
    jsonl(tmp_path / "in.jsonl", [{"text": ""}])
    with pytest.raises(DataError, match="source 's': no document at"):
        prepare(source, TOK, tmp_path / "empty")
    (tmp_path / "out/00000.arrayrecord").write_bytes(b"x")
    with pytest.raises(DataError, match=r"00000\.arrayrecord is missing or not as long"):
        Prepared(tmp_path / "out").read([0])
    (tmp_path / "out/lengths.npy").unlink()
    with pytest.raises(DataError, match="not a whole prepared corpus"):
        Prepared(tmp_path / "out")
