"""Files of records as they occur: tables, JSON in any layout, disguised and broken files; none is read as another text."""

import bz2
import gzip
import json
import lzma

import pytest

from qwen3_jax.data import DataConfig, DataError, Labels, Malformed, Source, documents, prepare, training_texts
from qwen3_jax.data.sources import read, splits
from tests.helpers.byte_tokenizer import ByteTokenizer

TOK = ByteTokenizer()
HI, YO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def read_all(path, **options):
    source = Source("s", str(path), **options)
    return [record for split in splits(source) for record in read(split, source)]


def bodies(path, **options):
    return [record.body for record in read_all(path, **options)]


def reason(path):
    (malformed,) = read_all(path)
    assert isinstance(malformed, Malformed)
    return malformed.reason


TABLE = 'instruction,input,output\nhi,,yo\n"a ""b"", c","d\ne",f\n'
ROWS = [{"instruction": "hi", "output": "yo"}, {"instruction": 'a "b", c', "input": "d\ne", "output": "f"}]


def test_tables_are_rows_of_records(tmp_path):
    """As `datasets` reads them: the first row names the keys, empty cells are absent, cells may hold separators and lines."""
    for name, text in (
        ("a.csv", TABLE),
        ("b.csv", "\ufeff" + TABLE),
        ("c.csv", "\n" + TABLE + "\n\n"),
        ("d.tsv", 'instruction\tinput\toutput\nhi\t\tyo\n"a ""b"", c"\t"d\ne"\tf\n'),
        ("e.csv", 'instruction;input;output\nhi;;yo\n"a ""b"", c";"d\ne";f\n'),
        ("i.csv", 'sep=;\ninstruction;input;output\nhi;;yo\n"a ""b"", c";"d\ne";f\n'),
        ("f.csv", ',instruction,input,output\n0,hi,,yo\n1,"a ""b"", c","d\ne",f\n'),
    ):
        (tmp_path / name).write_bytes(text.encode())
        extra = [{"Unnamed: 0": str(i)} if name == "f.csv" else {} for i in range(2)]
        assert bodies(tmp_path / name) == [row | more for row, more in zip(ROWS, extra, strict=True)], name
    assert [record.location for record in read_all(tmp_path / "c.csv")] == [
        f"{tmp_path / 'c.csv'}:{line}" for line in (3, 4)
    ]
    (tmp_path / "a.txt").write_text(TABLE)
    assert bodies(tmp_path / "a.txt", format="csv") == ROWS
    assert bodies(tmp_path / "a.txt") == [{"text": TABLE}]
    for ending in ("\r\n", "\r"):
        lines = TABLE.replace("d\ne", "d e").replace("\n", ending)
        (tmp_path / "g.csv").write_bytes(lines.encode())
        assert bodies(tmp_path / "g.csv") == [ROWS[0], ROWS[1] | {"input": "d e"}]
    for suffix, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        (tmp_path / f"h.csv{suffix}").write_bytes(compress(TABLE.encode()))
        (tmp_path / f"h.tsv{suffix}").write_bytes(compress(b"text\tid\na\t1\n"))
        assert bodies(tmp_path / f"h.csv{suffix}") == ROWS
        assert bodies(tmp_path / f"h.tsv{suffix}") == [{"text": "a", "id": "1"}]
    (tmp_path / "long.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(bodies(tmp_path / "long.csv")[0]["text"]) == 200_000


def test_cells_hold_chats_and_labels(tmp_path):
    cell = json.dumps([HI, YO]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages,score\n"{cell}",0.5\n')
    (record,) = read_all(tmp_path / "a.csv")
    assert documents(record, TOK, loss_on="assistant")[0].segments[1].text.endswith("yo<|im_end|>")
    source = Source("s", str(tmp_path / "a.csv"), labels=Labels(quality_key="score"))
    assert prepare(source, TOK, tmp_path / "out", processes=1).quality.tolist() == [0.5]
    (tmp_path / "b.csv").write_text("name,age\na,1\n")
    (tmp_path / "c.csv").write_text(f'messages\n"{[HI, YO]}"\n')
    with pytest.raises(
        DataError, match=r"c\.csv:2: 'messages' is a string and not valid JSON .*: write json.dumps of it"
    ):
        prepare(Source("s", str(tmp_path / "c.csv")), TOK, tmp_path / "c", processes=1)
    with pytest.raises(DataError, match=r"b\.csv:2: no 'text', 'messages' or 'prompt' key.*\['age', 'name'\]"):
        prepare(Source("s", str(tmp_path / "b.csv")), TOK, tmp_path / "b", processes=1)


def test_broken_tables_are_named_by_line(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,id\na,1\nb\nc,3\n")
    first, broken, last = read_all(file)
    assert broken.reason == f"{file}:3: the row has 1 cells, and the first row names 2 columns"
    assert (first.body, last.body) == ({"text": "a", "id": "1"}, {"text": "c", "id": "3"})
    for raw, complaint in (
        (b'text\na\n"b\n', r"a\.csv:3: not valid CSV \(unexpected end of data\)"),
        (b'text\n"a" said b\n', r"a\.csv:2: not valid CSV .*quotes within it are doubled"),
        (b"text,text\na,b\n", "two columns are named 'text'"),
        (b"text\n\xe4\n", r"a\.csv is not UTF-8 text"),
        ("text\na\n".encode("utf-16"), r"a\.csv is UTF-16 text.*iconv"),
    ):
        file.write_bytes(raw)
        with pytest.raises(DataError, match=complaint):
            read_all(file)


PAIRS = [{"instruction": "hi", "output": "yo"}, {"instruction": "a", "output": "b"}]


def test_json_files_of_records_are_never_read_as_text(tmp_path):
    file = tmp_path / "a.json"

    def written(text):
        file.write_text(text)
        return file

    # One record: in a line, and over several.
    assert bodies(written(json.dumps({"text": "a"}) + "\n")) == [{"text": "a"}]
    assert bodies(written("[]")) == []
    assert bodies(written(json.dumps(PAIRS[0], indent=1))) == PAIRS[:1]
    assert bodies(written(json.dumps({"messages": [HI, YO]}, indent=1))) == [{"messages": [HI, YO]}]
    # Lines of which the first is broken, and lists that begin with something else, are records with one that is malformed.
    broken, *rest = read_all(written("{\n" + "".join(json.dumps(pair) + "\n" for pair in PAIRS)))
    assert "not valid JSON" in broken.reason
    assert [record.body for record in rest] == PAIRS
    first, second = read_all(written(json.dumps([None, PAIRS[0]])))
    assert "record 1: a JSON object is wanted" in first.reason
    assert second.body == PAIRS[0]
    # Cut off, one object after the other, column by column, a key twice: refused.
    assert "not valid JSON" in reason(written(json.dumps(PAIRS, indent=1)[:-20]))
    assert "jq -c" in reason(written("\n".join(json.dumps(pair, indent=1) for pair in PAIRS)))
    assert "column by column" in reason(written(json.dumps({"messages": [[HI, YO], [HI, YO]]})))
    columns = {key: {str(i): pair[key] for i, pair in enumerate(PAIRS)} for key in PAIRS[0]}
    assert "column by column" in reason(written(json.dumps(columns)))
    assert "under their numbers" in reason(written(json.dumps({str(i): pair for i, pair in enumerate(PAIRS)})))
    split = {"columns": ["instruction", "output"], "index": [0, 1], "data": [["hi", "yo"], ["a", "b"]]}
    assert "lists without their keys" in reason(written(json.dumps(split)))
    assert "the key 'output' occurs twice" in reason(written('[{"instruction": "a", "output": "b", "output": "c"}]'))
    # What is no record stays text.
    for text in (
        '{"name": "x", "scripts": {"text": "a"}}',
        "[1, 2]",
        '{"a": 1,}',
        '{"rows": [\n{"x": 1}\n]}',
        "// a\n{}",
    ):
        assert bodies(written(text)) == [{"text": text}]


def test_lines_that_lose_something_are_malformed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "text": "b"}\n{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n')
    assert ["occurs twice" in one.reason for one in read_all(file)] == [True, True]
    file.write_text(json.dumps(PAIRS[0], indent=1))
    assert "a record is one line, as `jq -c . FILE` writes them" in read_all(file)[0].reason
    middle = b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n\n\x00\x00\n{"text": "\\u0000c\\ud800"}\n'
    file.write_bytes(middle)
    one, two, zeros, three = read_all(file)
    assert [one.body["text"], two.body["text"], three.body["text"]] == ["a", "b", "\0c\ud800"], "files that were joined"
    assert "not valid JSON" in zeros.reason
    # What preparing counts as malformed, a tokenizer is not trained on.
    file.write_bytes(middle + b'{"prompt": [1]}\n')
    assert list(training_texts(DataConfig([Source("s", str(file), eval_fraction=0)]))) == ["a", "b"]


def test_files_that_are_something_else_say_what(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrayrecord"):
        for number, (raw, what) in enumerate(
            (
                (pointer, "is a Git LFS pointer and not the file itself"),
                (gzip.compress(b'{"text": "a"}'), "is compressed with gzip: name it .gz"),
                (b"PAR1....", "is a Parquet file: name it .parquet"),
            )
        ):
            (tmp_path / name).write_bytes(raw)
            columnar = name.endswith((".parquet", ".arrayrecord"))
            with pytest.raises(DataError, match="not a whole" if columnar and raw != pointer else what):
                prepare(Source("s", str(tmp_path / name)), TOK, tmp_path / f"{name}{number}", processes=1)
    (tmp_path / ".hidden.jsonl").write_text('{"text": "a"}\n')
    assert bodies(tmp_path / ".hidden.jsonl") == [{"text": "a"}], "a file that is named is read"


def test_columns_of_any_type_are_read(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    texts = ["a", "ä\u2028b", None]
    kinds = {
        "string": arrow.array(texts),
        "large": arrow.array(texts, arrow.large_string()),
        "dictionary": arrow.array(texts).dictionary_encode(),
        "bytes": arrow.array([text and text.encode() for text in texts], arrow.binary()),
    }
    for name, column in kinds.items():
        when = arrow.array([0, 1, None], arrow.timestamp("ms", tz="UTC"))
        table = arrow.table({"text": column, "when": when, "image": arrow.array([b"\xff\xd8", None, b"\xff"])})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        found = bodies(tmp_path / f"{name}.parquet")
        assert [body.get("text") for body in found] == texts, name
        assert found[0]["image"] == b"\xff\xd8"
    chats = arrow.array(
        [[HI, YO]], arrow.large_list(arrow.struct([("role", arrow.large_string()), ("content", arrow.binary())]))
    )
    pq.write_table(arrow.table({"messages": chats}), tmp_path / "chats.parquet")
    assert bodies(tmp_path / "chats.parquet") == [{"messages": [HI, YO]}]
    twice = arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="two columns are named 'text'"):
        read_all(tmp_path / "twice.parquet")
