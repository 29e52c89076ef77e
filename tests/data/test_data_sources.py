"""Sources: which files are found, what is read of them however they are cut, errors that name the culprit, what is held out."""

import ast
import bz2
import gzip
import json
import lzma
import random
import re
from pathlib import Path

import jsonargparse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3_jax.data
from qwen3_jax.data import (
    Cleaning,
    DataConfig,
    DataError,
    LengthShare,
    Malformed,
    RunningSum,
    Source,
    Where,
    prepare,
    training_texts,
)
from qwen3_jax.data.files import find_files
from qwen3_jax.data.sources import SPLIT_BYTES, read, splits
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()


def records(source, size=SPLIT_BYTES):
    return [record for split in splits(source, size=size) for record in read(split, source)]


def keys(path, **options):
    return [file.key for file in find_files(Source("s", path, **options))]


@pytest.fixture
def corpus(tmp_path):
    for i in range(40):
        file = tmp_path / "docs" / f"part{i % 4}" / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"document {i}\n")
    (tmp_path / "docs" / ".hidden").write_bytes(b"\xff")
    lines = [json.dumps({"text": f"line {i}"}) for i in range(60)]
    (tmp_path / "docs" / "lines.jsonl").write_text(
        "\ufeff" + "\n".join(lines[:30]) + "\n\n  \r\n" + "\n".join(lines[30:])
    )
    return tmp_path


def test_files_folders_globs_and_home_are_found_in_a_fixed_order(corpus, monkeypatch):
    docs = str(corpus / "docs")
    assert keys(docs) == sorted(keys(docs))
    assert len(keys(docs)) == 41
    assert keys(docs, format="jsonl") == ["lines.jsonl"]
    assert keys(f"{docs}/*/0*.txt") == [f"part{i % 4}/{i:02}.txt" for i in (0, 4, 8, 1, 5, 9, 2, 6, 3, 7)]
    assert keys([f"{docs}/part3/03.txt", f"{docs}/**/03.txt"]) == ["part3/03.txt"], "each file once"
    monkeypatch.setenv("HOME", str(corpus))
    assert keys("~/docs") == keys(docs)
    monkeypatch.chdir(corpus)
    assert keys("docs/part*/03.txt") == ["part3/03.txt"]


def test_a_folder_of_text_and_jsonl_reads_every_document_once(corpus):
    source = Source("s", str(corpus / "docs"))
    read_records = records(source)
    expected = [f"document {i}" for i in range(40)] + [f"line {i}" for i in range(60)]
    assert sorted(record.body["text"].strip() for record in read_records) == sorted(expected)
    # Blank lines are passed over and counted: line 31 of the records is line 33 of the file.
    locations = {record.body["text"]: record.location for record in read_records}
    assert locations["line 0"].endswith("lines.jsonl:1")
    assert locations["line 30"].endswith("lines.jsonl:33")


@settings(max_examples=60)
@given(
    lines=st.lists(
        st.sampled_from(["", "  ", '{"text": "a"}', '{"text": "ä\U0001f600"}', "[]", "{" * 40]), max_size=12
    ),
    ending=st.sampled_from(["\n", "\r\n"]),
    closed=st.booleans(),
    size=st.integers(1, 60),
)
def test_jsonl_cut_by_bytes_gives_every_line_once(tmp_path_factory, lines, ending, closed, size):
    file = tmp_path_factory.mktemp("cut") / "a.jsonl"
    file.write_bytes((ending.join(lines) + ending * closed).encode())
    source = Source("s", str(file))

    def plain(all_records):
        return [
            one.reason.split(": ", 1)[1] if isinstance(one, Malformed) else (one.body, one.key) for one in all_records
        ]

    whole = records(source)
    assert len(whole) == sum(bool(line.strip()) for line in lines)
    assert plain(records(source, size)) == plain(whole)


def test_damaged_compressed_files_are_refused(tmp_path):
    """What ends early or is garbled is an error, not the end of the file; files of several members are read to the end."""
    zstandard = pytest.importorskip("zstandard")
    noise = random.Random(0)
    lines = [json.dumps({"text": noise.randbytes(90).hex()}).encode() + b"\n" for _ in range(3000)]
    halves = [b"".join(lines[:1500]), b"".join(lines[1500:])]
    for suffix, compress in (
        (".gz", gzip.compress), (".zst", zstandard.compress), (".bz2", bz2.compress), (".xz", lzma.compress),
    ):  # fmt: skip
        file = tmp_path / f"a.jsonl{suffix}"
        whole = b"".join(map(compress, halves))
        file.write_bytes(whole)
        assert [record.body for record in records(Source("s", str(file)))] == [json.loads(line) for line in lines]
        for damaged in (
            whole[:-1],
            whole[: len(whole) * 2 // 3],
            whole[:200_000] + b"garbage" + whole[200_007:],
            b"garbage",
        ):
            file.write_bytes(damaged)
            with pytest.raises(DataError, match=re.escape(f"{file}: cannot be read")):
                records(Source("s", str(file)))


def test_what_is_held_out_depends_on_the_document_alone(corpus, tmp_path_factory):
    docs = corpus / "docs"

    def sides(folder):
        """Texts that are trained on, and those that are held out."""
        out = tmp_path_factory.mktemp("prepared") / "out"
        corpus = prepare(Source("s", folder if isinstance(folder, list) else str(folder)), TOK, out, processes=1)
        texts = [TOK.decode(one.tokens.tolist()).split("\n")[0] for one in corpus.read(range(len(corpus)))]
        return lambda fraction: [
            {text for text, out in zip(texts, corpus.held_out(fraction), strict=True) if out == side} for side in (0, 1)
        ]

    trained, held_out = sides(docs)(0.2)
    assert len(trained) + len(held_out) == 100
    assert 8 <= len(held_out) <= 35
    for i in range(40, 60):  # the corpus grows: nothing changes sides
        (docs / "part0" / f"{i}.txt").write_text(f"document {i}\n")
    moved = tmp_path_factory.mktemp("elsewhere") / "docs"
    docs.rename(moved)  # nor when it lies elsewhere
    grown = sides(moved)(0.2)
    assert trained <= grown[0]
    assert held_out <= grown[1]
    assert not sides(moved)(0)[1]

    two = sides([str(moved / "part0/00.txt"), str(moved / "part1/01.txt")])(0.001)
    assert [len(side) for side in two] == [1, 1], "a small corpus still has an eval document"
    one = sides(moved / "part0/00.txt")(0.9)
    assert [len(side) for side in one] == [1, 0], "a lone document is trained on"


def test_links_are_followed_and_read_once(tmp_path):
    """A snapshot of the hub is a folder of links to blobs."""
    for name, text in (("blobs/abc", "a"), ("blobs/def", "b"), ("more/c.jsonl", "c"), ("snapshot/own.jsonl", "own")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": text}) + "\n")
    snapshot = tmp_path / "snapshot"
    for name, target in (
        ("a.jsonl", "../blobs/abc"), ("data", "../more"), ("again.jsonl", "own.jsonl"), ("loop", "../snapshot"),
    ):  # fmt: skip
        (snapshot / name).symlink_to(target)
    assert sorted(record.body["text"] for record in records(Source("s", str(snapshot)))) == ["a", "c", "own"]
    assert keys(str(snapshot)) == ["a.jsonl", "data/c.jsonl", "own.jsonl"]
    assert keys(f"{snapshot}/a*.jsonl") == ["a.jsonl", "again.jsonl"]
    assert keys(str(snapshot / "a.jsonl")) == ["a.jsonl"]
    (snapshot / ".#own.jsonl").symlink_to("someone@somewhere")
    assert len(keys(str(snapshot))) == 3
    (snapshot / "gone.jsonl").symlink_to("../blobs/none")
    with pytest.raises(DataError, match=r"gone\.jsonl is a link to '\.\./blobs/none', which is not there"):
        keys(str(snapshot))


def test_standard_library_without_its_tests():
    files = find_files(Source("s", "stdlib:"))
    names = {file.key for file in files}
    assert {"json/decoder.py", "asyncio/events.py", "abc.py"} <= names
    assert not [name for name in names if "/test" in f"/{Path(name).parent}" or "-packages" in name]
    assert sum(file.size for file in files) > 5e6
    assert all(record.body["text"] for record in records(Source("s", "stdlib:"))), "all of it is UTF-8"


def test_paths_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.jsonl.lz4").write_bytes(b"x")
    (tmp_path / "data.arrow").write_bytes(b"x")
    (tmp_path / "b.parquet").write_bytes(b"not a table")
    (tmp_path / "c.arrayrecord").write_bytes(b"not records")
    for path, complaint in {
        f"{tmp_path}/*.md": r"source 's': no file matches '.*/\*\.md'",
        f"{tmp_path}/missing": "no file matches '.*/missing'",
        "missing/here": f"no file matches 'missing/here' below {Path.cwd()}",
        "nosuch://bucket/x": "'nosuch://bucket/x' cannot be read",
        "synthetic:sums": "unknown path 'synthetic:sums'",
        str(tmp_path / "a.jsonl.lz4"): r"a\.jsonl\.lz4 is a \.lz4 file.*`lz4 -d` unpacks it",
        str(tmp_path / "data.arrow"): r"data\.arrow is a \.arrow file.*to_parquet",
        str(tmp_path / "b.parquet"): r"b\.parquet: not a whole Parquet file",
        str(tmp_path / "c.arrayrecord"): r"c\.arrayrecord: not a whole ArrayRecord file",
        "memory://bucket/c.arrayrecord": "no file matches 'memory://bucket/c.arrayrecord'",
    }.items():
        with pytest.raises(DataError, match=complaint):
            records(Source("s", path))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Source("s", []), "path is empty"),
        (lambda: Source("s/t", "x"), "must not hold '/'"),
        (lambda: Source("s", "x", weight=0), "source 's': weight is 0; it must be above 0"),
        (lambda: Source("s", "x", eval_fraction=1), "eval_fraction is 1; it must be at least 0 and below 1"),
        (lambda: Source("s", "x", format="text", text_key="body"), "text_key is about records; format is text"),
        (lambda: Source("s", "x", running_sum=RunningSum()), "running_sum settings belong to"),
        (lambda: Source("s", ["synthetic:running_sum", "x"]), "stands alone"),
        (lambda: RunningSum(min_digits=5, max_digits=4), "running_sum.max_digits is 4; it must be between 5 and 26"),
        (lambda: RunningSum(thinking=-1), "running_sum.thinking is -1; it must be at least 0"),
        (lambda: DataConfig([Source("s", "x"), Source("s", "y")]), "two sources named 's'"),
        (lambda: DataConfig([Source("s", "x")], batch_size=0), "data.batch_size is 0; it must be at least 1"),
        (lambda: DataConfig([Source("s", "x")], packing_rows=0), "data.packing_rows is 0; it must be at least 1"),
        (
            lambda: DataConfig([Source("s", "x")], lengths=[LengthShare(0, 513, 1)]),
            "up_to 513 is beyond sequence_length",
        ),
        (lambda: DataConfig([Source("s", "x")], lengths=[LengthShare(0, 9, 1), LengthShare(8, 99, 1)]), "overlap"),
        (lambda: LengthShare(9, 9, 1), r"above \(9\) must be below up_to \(9\)"),
        (lambda: LengthShare(0, 9, 0), "data.lengths.weight is 0; it must be above 0"),
        (lambda: Source("s", "x", where=Where(quality=[0.5])), r"where.quality is a range \[lowest, highest\]"),
        (lambda: Source("s", "x", where=Where(length=[9, 2])), "where.length is empty: 9 is above 2"),
        (lambda: Source("s", "x", where=Where(domain=[])), "where.domain is an empty list"),
        (lambda: Cleaning(similarity=1.0), "cleaning.similarity is 1.0; it must be between 0.1 and 0.99"),
        (lambda: Cleaning(ngram=0), "cleaning.ngram is 0; it must be at least 1"),
    ],
)
def test_bad_configuration_names_the_field(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


def test_the_dataclasses_serve_as_yaml_with_overrides():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    yaml = """
    data:
      sequence_length: 128
      sources:
        - {name: text, path: [a.txt, "b/*.txt"], weight: 0.7}
        - {name: sums, path: "synthetic:running_sum", running_sum: {max_digits: 6}}
    """
    namespace = parser.parse_string(yaml)
    config = parser.instantiate(namespace).data
    config = config if isinstance(config, DataConfig) else DataConfig(**vars(config))
    sources = [Source("text", ["a.txt", "b/*.txt"], weight=0.7)]
    sources.append(Source("sums", "synthetic:running_sum", running_sum=RunningSum(max_digits=6)))
    assert config == DataConfig(sources, sequence_length=128)
    with pytest.raises(jsonargparse.ArgumentError, match="pathh"):
        parser.parse_string(yaml.replace("path: [", "pathh: ["))


def test_training_texts_leave_out_what_is_held_out(corpus):
    source = Source("s", str(corpus / "docs"), eval_fraction=0.3)
    chosen_texts = set(training_texts(DataConfig([source, Source("sums", "synthetic:running_sum")]), max_records=500))
    all_records = records(source)
    held_out = {record.body["text"] for record in all_records if record.key < 0.3 * 2**64}
    assert {record.body["text"] for record in all_records} - held_out <= chosen_texts
    assert held_out
    assert not held_out & chosen_texts
    assert any(text.startswith("Add these digits") for text in chosen_texts)
    assert len(set(training_texts(DataConfig([source]), max_records=10))) <= 10


def test_the_room_does_not_import_jax_or_torch():
    for file in Path(qwen3_jax.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", None) or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {"jax", "torch", "transformers", "flax"}, file
