"""Labels beside a prepared corpus: from annotated records to what training reads, without tokenising again."""

import json
import shutil

import numpy as np
import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.cli.train import main as train_command
from qwen3_jax.data import DataConfig, Prepared, Source, make_train_loader, open_sources
from qwen3_jax.data.attached import attach
from qwen3_jax.data.pipeline import _check_same_text, _sizes
from qwen3_jax.data.records import DataError
from qwen3_jax.errors import UserError
from tests.helpers import small_run
from tests.helpers.byte_tokenizer import ByteTokenizer
from tests.helpers.fake_endpoint import fake_endpoint

FIELDS = ("mathematics", "law", "arts")


def write_corpus(folder, count=40):
    """Documents whose label is in their text; some equal ones, one malformed line, and a file of another form."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"document {i} of level {i % 6}", "id": i}) for i in range(count)]
    lines[7] = lines[6]  # dropped as a duplicate
    lines.insert(20, "{broken")
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.txt").write_text("document 100 of level 5")
    return folder


def judge(body: dict) -> str:
    """What an annotating model answers."""
    extract = body["messages"][-1]["content"].partition("Extract:")[2]
    number, level = (int(word) for word in extract.split() if word.isdigit())
    if number % 10 == 9:
        return "I do not know."
    return json.dumps({
        "education": level, "field": FIELDS[number % 3], "type": "article", "reasoning": 0, "domain": "web",
        "safe": number % 2 == 0,
    })  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(prepared corpus, folder of the annotation, corpus)."""
    folder = tmp_path_factory.mktemp("attached")
    corpus = write_corpus(folder / "corpus")
    with fake_endpoint(answer=judge) as endpoint:
        command = ["data", "annotate", "--path", str(corpus), "--model", endpoint.url, "--endpoint-model", "m"]
        assert (
            main([*command, "--max-malformed", "1", "--split-mb", "0.0005", "--output", str(folder / "annotated")]) == 0
        )
    from qwen3_jax.data import Cleaning, prepare

    source = Source("corpus", str(corpus), cleaning=Cleaning(duplicates="exact", max_malformed=1))
    prepare(source, ByteTokenizer(), folder / "prepared", processes=1)
    return folder / "prepared", folder / "annotated", corpus


@pytest.fixture
def prepared(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "prepared")
    return tmp_path / "prepared"


def texts_of(corpus, chosen):
    return [bytes(one.tokens[:-1].tolist()).decode() for one in corpus.read(np.flatnonzero(chosen))]


def test_documents_get_the_labels_of_their_records(made, prepared, capsys):
    command = [
        "data", "label", str(prepared), "--labelled", str(made[1] / "records"), "--labels", "education", "topic=field", "safe",
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "education: numbers for 36 of 40 documents; 4 have none" in said
    assert "topic: 3 values for 36 of 40 documents; 4 have none" in said
    assert "1 labelled records are no document" in said, "the duplicate"
    corpus = Prepared(prepared)
    for where, wanted in (
        ({"education": [3, None]}, lambda i, level: level >= 3),
        ({"education": [None, 1]}, lambda i, level: level <= 1),
        ({"education": [2, 3], "topic": ["law", "arts"]}, lambda i, level: level in (2, 3) and i % 3),
        ({"safe": [True]}, lambda i, level: i % 2 == 0),
        ({"safe": [False, True], "domain": ["corpus"]}, lambda i, level: True),
        ({"education": None}, None),
    ):
        found = texts_of(corpus, corpus.select(where))
        numbers = [int(text.split()[1]) for text in found]
        if wanted is None:
            assert len(numbers) == 40
            continue
        every = [*(i for i in range(40) if i != 7), 100]
        levels = {i: 5 if i == 100 else i % 6 for i in every}
        assert numbers == [i for i in every if i % 10 != 9 and wanted(i, levels[i])], where
    capsys.readouterr()
    assert main(["data", "show", str(prepared)]) == 0
    shown = capsys.readouterr().out
    assert "attached: 'field' of" in " ".join(shown.split())
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if "│" in line]
    assert ["law", "12"] in [row[:2] for row in rows]
    assert [row[1] for row in rows if row[0] == "none"] == ["4", "4", "4"]
    assert main(command) == 0, "again: nothing changes"
    assert "1 labelled records are no document" in capsys.readouterr().err
    assert main([*command[:6], "education=reasoning", "--replace"]) == 0
    columns = {file.name.partition("-")[0]: np.load(file) for file in (prepared / "labels").glob("*.npy")}
    assert sorted(columns) == ["education", "safe", "topic"], "one file for each"
    assert np.nanmax(columns["education"]) == 0


def test_training_reads_what_the_labels_select_and_names_what_has_none(made, prepared, capsys):
    attach(prepared, made[1], {"education": "education"})
    source = Source("c", str(prepared), where={"education": [4, None]}, eval_fraction=0.2)
    config = DataConfig([source], sequence_length=32, batch_size=4)
    corpora = open_sources(config, ByteTokenizer(), prepared.parent)
    assert "4 of 40 documents have no label 'education', and where.education leaves them out" in capsys.readouterr().err
    rows = next(iter(make_train_loader(config, corpora)))
    read = {bytes(row[row > 0].astype(np.uint8).tolist()) for row in rows["tokens"]}
    assert read
    assert all(b"level 4" in row or b"level 5" in row for row in read)
    # A position counts in the documents that the labels selected.
    sizes = _sizes(config, corpora)
    saved = {"text": sizes}
    _check_same_text(saved, config, sizes)
    attach(prepared, made[1], {"education": "reasoning"}, replace=True)
    with pytest.raises(DataError, match="the labels that where selects by have changed"):
        _check_same_text(saved, config, _sizes(config, [Prepared(prepared)]))


@pytest.mark.slow
def test_train_py_mixes_by_an_attached_label(made, tmp_path, capsys):
    """The command: it prepares nothing anew, and reads only what the label selects."""
    from qwen3_jax.data import Cleaning, prepare
    from qwen3_jax.text import Tokenizer, train_tokenizer

    train_tokenizer(["document 1 of level 2"], 290, show_progress=False).save_pretrained(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    clean = Cleaning(max_malformed=1)
    corpus = prepare(Source("corpus", str(made[2]), cleaning=clean), tokenizer, tmp_path / "prepared", processes=1)
    attach(corpus.folder, made[1], {"education": "education"})
    before = {file.name: file.stat().st_mtime_ns for file in corpus.folder.glob("*.arrayrecord")}
    source = {"name": "c", "path": str(corpus.folder), "where": {"education": [5, None]}, "eval_fraction": 0}
    config = small_run.write_config(
        tmp_path, steps=3, tokenizer={"path": str(tmp_path / "tokenizer")}, micro_batches=1, mesh={"data": 1},
        data={"batch_size": 2, "sequence_length": 64, "sources": [source]},
    )  # fmt: skip

    def train(run_dir: str, code: int) -> str:
        assert train_command([f"--config={config}", f"--run_dir={tmp_path / run_dir}"]) == code
        return " ".join("".join(capsys.readouterr()).split())

    said = train("run", 0)
    assert "documents have no label 'education', and where.education leaves them out" in said
    assert {file.name: file.stat().st_mtime_ns for file in corpus.folder.glob("*.arrayrecord")} == before
    wrong = {**source, "where": {"educaton": [5, None]}}
    config = small_run.write_config(
        tmp_path, steps=3, tokenizer={"path": str(tmp_path / "tokenizer")}, mesh={"data": 1},
        data={"sequence_length": 64, "sources": [wrong]},
    )  # fmt: skip
    said = train("wrong", 2)
    assert "has no label 'educaton'" in said
    assert "Did you mean 'education'?" in said


def test_what_does_not_fit_is_refused_in_one_sentence(made, prepared, tmp_path):
    annotated, label = made[1], {"education": "education"}

    def refused(match, fields=label, labelled=annotated, kind=UserError, corpus=prepared, **more):
        with pytest.raises(kind, match=match):
            attach(corpus, labelled, fields, **more)

    refused(
        "'domain' is a label that every prepared corpus has; give the field 'domain' another name", {"domain": "domain"}
    )
    refused("'a/b' is no name of a label", {"a/b": "field"})
    refused("no record of .* has 'educaton'; there are .*Did you mean 'education'", {"x": "educaton"}, kind=DataError)
    refused("is no finished job of the data factory", labelled=made[2], kind=DataError)
    refused("is not a whole prepared corpus", corpus=annotated, kind=DataError)
    attach(prepared, annotated, label)
    refused("has the label 'education' already, from 'education' of .*; give --replace", {"education": "reasoning"})
    corpus = Prepared(prepared)
    for where, said in (
        ({"education": ["high"]}, "is a number; give a range"),
        ({"educatio": [1, 2]}, "has no label 'educatio'; there are domain, language, quality, length, education"),
    ):
        with pytest.raises(DataError, match=said):
            corpus.select(where)
    attach(prepared, annotated, {"field": "field", "safe": "safe"})
    for where, said in (
        ({"field": [1, 2]}, "is one of"),
        ({"field": ["maths"]}, "is never 'maths'; there are"),
        ({"safe": ["true"]}, "never"),
    ):
        with pytest.raises(DataError, match=said):
            Prepared(prepared).select(where)
    # Labels of other files.
    other = shutil.copytree(annotated, tmp_path / "other")
    sizes = json.loads((other / "files.json").read_text())
    (other / "files.json").write_text(json.dumps({"z.jsonl": [3]}))
    refused("was prepared from a.jsonl and b.txt, and .*other was made of z.jsonl", labelled=other, kind=DataError)
    (other / "files.json").write_text(json.dumps(sizes | {"a.jsonl": [3]}))
    refused("a.jsonl is one of .* bytes for .*, and of 3 for", labelled=other, kind=DataError)
    (other / "files.json").write_text(json.dumps(sizes))
    for file in (other / "keys").glob("*"):
        np.save(file, np.arange(len(np.load(file)), dtype=np.uint64))
    refused("none of the 37 labelled records of .* belongs to a document of", {"e": "education"}, other, DataError)


def test_records_of_one_document_must_agree(made, prepared, tmp_path):
    two = shutil.copytree(made[1], tmp_path / "two")
    first = sorted((two / "records").glob("*"))[0]
    lines = first.read_text().splitlines()
    again = json.dumps(json.loads(lines[0]) | {"field": "law"})
    first.write_text("\n".join([again, *lines]) + "\n")
    keys = np.load(two / f"keys/{first.stem}.npy")
    np.save(two / f"keys/{first.stem}.npy", np.concatenate([keys[:1], keys]))
    with pytest.raises(
        DataError, match=r"00000.jsonl:1 and .*00000.jsonl:2 were made of one record and differ in 'field'"
    ):
        attach(prepared, two, {"education": "education", "field": "field"})
    attach(prepared, two, {"education": "education"}, replace=True)
    mixed = json.dumps(json.loads(lines[0]) | {"education": "high"})
    first.write_text("\n".join([lines[0], mixed, *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="'education' is 'high', a name; records before have a number"):
        attach(prepared, two, {"x": "education"})
    first.write_text("\n".join([json.dumps({"education": {"a": 1}}), *lines]) + "\n")
    with pytest.raises(DataError, match="a label must be a finite number, text, true or false"):
        attach(prepared, two, {"x": "education"})


def test_an_interrupted_labelling_goes_on(made, prepared, monkeypatch):
    from qwen3_jax.data import attached

    read, files = attached.read_labels, []

    def stopping(job, number, file):
        if len(files) == 2:
            raise KeyboardInterrupt
        files.append(file.name)
        return read(job, number, file)

    assert len(list((made[1] / "records").glob("*"))) > 3
    monkeypatch.setattr(attached, "read_labels", stopping)
    with pytest.raises(KeyboardInterrupt):
        attach(prepared, made[1], {"education": "education"})
    assert Prepared(prepared).attached == {}
    parts = {file: file.stat().st_mtime_ns for file in (prepared / "labels/parts").glob("*.npz")}
    assert len(parts) == 2
    monkeypatch.setattr(attached, "read_labels", read)
    seen = []

    def noting(job, number, file):
        if job.part(number) in parts:
            seen.append(job.part(number).stat().st_mtime_ns)
        return read(job, number, file)

    monkeypatch.setattr(attached, "read_labels", noting)
    attach(prepared, made[1], {"education": "education"})
    assert seen == list(parts.values()), "what was read before is not read again"
    assert not (prepared / "labels/parts").exists()
    assert Prepared(prepared).attached["education"].without == 4
