"""Sources: which files are found, JSONL by line, errors that name the culprit, and what is held out."""

import ast
import json
from pathlib import Path

import jsonargparse
import pytest

import qwen3_jax.data
from qwen3_jax.data import DataConfig, DataError, RunningSum, Source, open_source, training_texts
from qwen3_jax.data.sources import find_files


def records(source, split="train"):
    opened = open_source(source, split)
    return [opened[i] for i in range(len(opened))]


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
    source = Source("s", str(corpus / "docs"), eval_fraction=0.2)
    train, held_out = records(source), records(source, "eval")
    found = sorted(record.body["text"].strip() for record in train + held_out)
    assert found == sorted([f"document {i}" for i in range(40)] + [f"line {i}" for i in range(60)])
    assert 8 <= len(held_out) <= 35
    # Blank lines are passed over and counted: line 31 of the records is line 33 of the file.
    where = {record.body["text"]: record.where for record in train + held_out}
    assert where["line 0"].endswith("lines.jsonl:1")
    assert where["line 30"].endswith("lines.jsonl:33")


def test_what_is_held_out_depends_on_the_document_alone(corpus, tmp_path_factory):
    docs = corpus / "docs"
    held_out = {record.where for record in records(Source("s", str(docs), eval_fraction=0.2), "eval")}
    for i in range(40, 60):  # the corpus grows: nothing changes sides
        (docs / "part0" / f"{i}.txt").write_text(f"document {i}")
    grown = Source("s", str(docs), eval_fraction=0.2)
    assert held_out <= {record.where for record in records(grown, "eval")}
    assert not held_out & {record.where for record in records(grown)}
    moved = tmp_path_factory.mktemp("elsewhere") / "docs"
    docs.rename(moved)  # nor when it lies elsewhere
    elsewhere = {
        record.where.replace(str(moved), str(docs))
        for record in records(Source("t", str(moved), eval_fraction=0.2), "eval")
    }
    assert held_out <= elsewhere

    two = Source("s", [str(moved / "part0/00.txt"), str(moved / "part1/01.txt")], eval_fraction=0.001)
    assert [len(records(two)), len(records(two, "eval"))] == [1, 1], "a small corpus still has an eval document"
    one = Source("s", str(moved / "part0/00.txt"), eval_fraction=0.9)
    assert [len(records(one)), len(records(one, "eval"))] == [1, 0], "a lone document is trained on"
    none = Source("s", str(moved), eval_fraction=0)
    assert len(records(none, "eval")) == 0


def test_standard_library_without_its_tests():
    files = find_files(Source("s", "stdlib:"))
    names = {file.key for file in files}
    assert {"json/decoder.py", "asyncio/events.py", "abc.py"} <= names
    assert not [name for name in names if "/test" in f"/{Path(name).parent}" or "-packages" in name]
    assert sum(file.path.stat().st_size for file in files) > 5e6
    assert all(record.body["text"] for record in records(Source("s", "stdlib:"))), "all of it is UTF-8"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', r"bad.jsonl:2: not valid JSON: .* at column"),
        (b'\n{"text": "a"}\n["b"]\n', "bad.jsonl:3: a JSON object is wanted, got list"),
        (b'{"text": "a"}\n{"text": "\xff"}', "bad.jsonl:2: not valid UTF-8 at byte 10"),
        (b"\n\n", "source 's': the files at .* hold no documents"),
    ],
)
def test_malformed_jsonl_names_file_and_line(tmp_path, content, complaint):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        records(Source("s", str(tmp_path), eval_fraction=0))


def test_paths_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "b.txt").write_bytes(b"ok\xff")
    for path, complaint in {
        f"{tmp_path}/*.md": r"source 's': no file matches '.*/\*\.md'",
        f"{tmp_path}/missing": "no file matches '.*/missing'",
        "gs://bucket/x": "unknown path 'gs://bucket/x'",
        "synthetic:sums": "unknown path 'synthetic:sums'",
        str(tmp_path / "a.jsonl.gz"): r"a.jsonl.gz is a \.gz file",
        str(tmp_path / "b.txt"): "b.txt: not valid UTF-8 at byte 2",
    }.items():
        with pytest.raises(DataError, match=complaint):
            records(Source("s", path))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Source("s", []), "path is empty"),
        (lambda: Source("s", "x", format="csv"), "format must be"),
        (lambda: Source("s", "x", weight=0), "weight must be above 0"),
        (lambda: Source("s", "x", eval_fraction=1), "eval_fraction must be"),
        (lambda: Source("s", "x", format="text", text_key="body"), "text_key and loss_on are about JSONL"),
        (lambda: Source("s", "x", running_sum=RunningSum()), "running_sum settings belong to"),
        (lambda: Source("s", ["synthetic:running_sum", "x"]), "stands alone"),
        (lambda: RunningSum(min_digits=5, max_digits=4), "max_digits must be at least 5"),
        (lambda: RunningSum(thinking=-1), "must not be negative"),
        (lambda: DataConfig([]), "sources is empty"),
        (lambda: DataConfig([Source("s", "x"), Source("s", "y")]), "two sources named 's'"),
        (lambda: DataConfig([Source("s", "x")], batch_size=0), "data.batch_size must be at least 1"),
        (lambda: DataConfig([Source("s", "x")], read_threads=8, read_ahead=4), "data.read_ahead"),
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
    found = set(training_texts(DataConfig([source, Source("sums", "synthetic:running_sum")]), max_records=500))
    assert {record.body["text"] for record in records(source)} <= found
    assert not {record.body["text"] for record in records(source, "eval")} & found
    assert any(text.startswith("Add these digits") for text in found)
    assert len(set(training_texts(DataConfig([source]), max_records=10))) <= 10


def test_the_room_does_not_import_jax_or_torch():
    for file in Path(qwen3_jax.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", None) or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {"jax", "torch", "transformers", "flax"}, file
            below = ("qwen3_jax.data", "qwen3_jax.text", "qwen3_jax.errors")
            assert all(name.startswith(below) for name in names if name.startswith("qwen3_jax")), file
