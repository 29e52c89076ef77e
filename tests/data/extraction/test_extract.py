"""`qwen3 data extract`: files in, records out; what cannot be read is named and costs no other file."""

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from qwen3_jax import UserError
from qwen3_jax.cli.main import main
from qwen3_jax.data import DataError, Prepared
from qwen3_jax.data.extraction import Limits, Options, Recognition, extract
from qwen3_jax.text import train_tokenizer
from tests.helpers import typeset
from tests.helpers.similarity import edit_similarity
from tests.helpers.vision_endpoint import vision_endpoint

ROOT = Path(__file__).parents[3]
PAGE = """<html lang="en"><head><title>A &amp; B</title></head><body><nav><ul><li><a href="x">Menu entry</a></li></ul></nav>
<main><h1>Heading</h1><p>A paragraph with <b>bold</b> text, long enough to be the main content of this page of the web.</p>
<ul><li>First item</li><li>Second item</li></ul><table><tr><th>Name</th><th>Count</th></tr><tr><td>a</td><td>1</td></tr></table>
<script>var hidden = 1;</script></main><footer>Imprint and so on</footer></body></html>"""
CHAPTER = """<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>
<a id="x"/><h1>Chapter {0}</h1><p>Text of chapter {0}, é 你好.</p></body></html>"""


def book(path: Path, chapters: int = 3, *, missing: bool = False, rights: bool = False) -> None:
    names = [f"text/c {number}.xhtml" for number in range(chapters)]
    items = "".join(
        f'<item id="i{n}" href="text/c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(chapters)
    )
    order = "".join(
        f'<itemref idref="i{n}"/>' for n in reversed(range(chapters))
    )  # the spine says the order, not the names
    package = f"""<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
    <dc:title>The Book</dc:title><dc:language>fr</dc:language></metadata><manifest>{items}
    <item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/></manifest>
    <spine><itemref idref="nav"/>{order}</spine></package>"""
    container = '<c xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfile full-path="OPS/a.opf"/></c>'
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("mimetype", "application/epub+zip")
        out.writestr("META-INF/container.xml", container)
        out.writestr("OPS/a.opf", package)
        out.writestr("OPS/nav.xhtml", CHAPTER.format("contents"))
        if rights:
            out.writestr("META-INF/rights.xml", "<rights/>")
        for number, name in list(enumerate(names))[missing:]:
            out.writestr(f"OPS/{name}", os.urandom(500) if rights else CHAPTER.format(number))


def records_of(folder) -> list[dict]:
    return [json.loads(line) for file in sorted(Path(folder).glob("*.jsonl")) for line in file.read_text().splitlines()]


def failures_of(done) -> dict[str, str]:
    lines = [json.loads(line) for line in done.failures.read_text().splitlines()]
    return {Path(line["source"]).name: line["reason"] for line in lines}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """One file of each kind, some of them unreadable, and a file that is no document."""
    folder = tmp_path_factory.mktemp("documents")
    truth = {"columns.pdf": "".join(typeset.two_columns(folder / "columns.pdf"))}
    typeset.scanned(folder / "scan.pdf", pages=3, text_on=(0,))
    typeset.encrypted(folder / "secret.pdf")
    raw = (folder / "columns.pdf").read_bytes()
    (folder / "truncated.pdf").write_bytes(raw[: len(raw) // 3])
    (folder / "garbage.pdf").write_bytes(b"%PDF-1.7\n" + random.Random(0).randbytes(5000))
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "page.html").write_text(PAGE)
    (folder / "packed.html.gz").write_bytes(gzip.compress(PAGE.encode()))
    book(folder / "book.epub")
    book(folder / "missing.epub", missing=True)
    book(folder / "rights.epub", rights=True)
    (folder / "cut.epub").write_bytes((folder / "book.epub").read_bytes()[:-200])
    (folder / "picture.png").write_bytes(b"x")
    return folder, truth


def test_every_kind_of_document_and_what_cannot_be_read(documents, tmp_path):
    folder, truth = documents
    done = extract([str(folder)], tmp_path / "out", processes=1)
    assert done.left_out == {".png": 1}
    records = {Path(record["source"]).name: record for record in records_of(tmp_path / "out")}
    assert (done.documents, done.failed) == (len(records), 8)
    assert records.keys() == {"columns.pdf", "page.html", "packed.html.gz", "book.epub"}
    reasons = failures_of(done)
    assert (
        reasons.pop("scan.pdf") == "pages 2, 3: it is a picture, and no model reads it (--endpoint, --endpoint-model)"
    )
    assert reasons.pop("secret.pdf") == "it is encrypted and wants a password"
    assert reasons.pop("garbage.pdf") == "it is no PDF, or is damaged"
    assert reasons.pop("missing.epub") == "chapter 3 (OPS/text/c 0.xhtml) is not in it"
    assert reasons.pop("rights.epub") == "chapter 1 (OPS/text/c 2.xhtml) is encrypted or no markup"
    assert reasons.pop("cut.epub").startswith("it is no whole EPUB: ")
    assert reasons.keys() == {"truncated.pdf", "empty.pdf"}

    columns = records["columns.pdf"]
    assert edit_similarity(truth["columns.pdf"], columns["text"]) > 0.998
    assert columns["source_hash"] == "sha256:" + hashlib.sha256((folder / "columns.pdf").read_bytes()).hexdigest()
    assert (columns["format"], columns["method"], columns["language"]) == ("pdf", "text layer", "en")
    assert [page["page"] for page in columns["pages"]] == [1, 2, 3]
    assert all(page["method"] == "text layer" for page in columns["pages"])
    spans = [(page["start"], page["end"]) for page in columns["pages"]]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(columns["text"])

    page = records["page.html"]
    assert page["title"] == "A & B"
    assert page["method"] == "main content"
    assert page["text"].startswith("Heading\n")
    for kept in ("bold text", "First item", "Second item", "Name\tCount\na\t1"):
        assert kept in page["text"]
    for dropped in ("Menu", "Imprint", "hidden"):
        assert dropped not in page["text"]
    assert records["packed.html.gz"]["text"] == page["text"]

    epub = records["book.epub"]
    assert [page["file"] for page in epub["pages"]] == [f"OPS/text/c {number}.xhtml" for number in (2, 1, 0)]
    for page, number in zip(epub["pages"], (2, 1, 0), strict=True):
        assert epub["text"][page["start"] : page["end"]] == f"Chapter {number}\n\nText of chapter {number}, é 你好."
    assert epub["title"] == "The Book"


def test_records_are_prepared_as_they_are(documents, tmp_path):
    folder, _ = documents
    extract(str(folder), tmp_path / "out", processes=1)
    train_tokenizer(["some text to train on"], 290, show_progress=False).save_pretrained(tmp_path / "tokenizer")
    arguments = ["data", "prepare", "--path", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert (
        main([*arguments, "--output", str(tmp_path / "prepared"), "--language-key", "language", "--processes", "1"])
        == 0
    )
    corpus = Prepared(tmp_path / "prepared")
    assert len(corpus) == len(records_of(tmp_path / "out"))
    assert "en" in corpus.names("language")


def test_pictures_are_read_by_the_model_behind_an_endpoint(documents, tmp_path):
    folder, _ = documents
    paths = [str(folder / "scan.pdf")]
    with vision_endpoint(
        lambda number, picture: (200, f"```\nText {picture.width}x{picture.height}\n```", "stop")
    ) as seen:
        recognition = Recognition(seen.url, "vl", dpi=72)
        done = extract(paths, tmp_path / "out", Options(recognition=recognition), processes=1)
    (record,) = records_of(tmp_path / "out")
    assert [page["method"] for page in record["pages"]] == ["text layer", "recognition", "recognition"]
    for page in record["pages"][1:]:
        assert record["text"][page["start"] : page["end"]] == "Text 596x842"
        assert page["reason"] == "it is a picture"
    assert record["method"] == "text layer and recognition"
    assert done.by_method == {"recognition": 2, "text layer": 1}
    assert len(seen.bodies) == 2
    assert seen.bodies[0]["model"] == "vl"
    assert seen.bodies[0]["temperature"] == 0


def test_a_picture_with_some_text_is_named_and_keeps_its_text_on_demand(tmp_path):
    """A stamp on a scan, a title on a picture: not taken for the whole page, and not lost."""
    import io

    from PIL import Image
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    stream = io.BytesIO()
    Image.effect_noise((300, 400), 80).save(stream, "PNG")
    canvas = Canvas(str(tmp_path / "stamp.pdf"))
    canvas.drawImage(ImageReader(stream), 0, 0, 595, 842)
    canvas.drawString(72, 400, "Stamped by the library")
    canvas.save()
    with pytest.raises(DataError, match=r"stamp\.pdf: page 1: it is a picture, and no model reads it"):
        extract(str(tmp_path / "stamp.pdf"), tmp_path / "out", processes=1)
    extract(str(tmp_path / "stamp.pdf"), tmp_path / "out", Options(unreadable_pages="leave out"), processes=1)
    (record,) = records_of(tmp_path / "out")
    assert record["text"] == "Stamped by the library"
    assert record["pages"][0]["method"] == "text layer"
    assert record["pages"][0]["reason"].startswith("it is a picture, and no model reads it")
    with pytest.raises(UserError, match='recognise "all"'):
        Options(recognise="all")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, "cut", "length"), "recognition gave no text: the answer reached its limit of tokens"),
        ((200, "  ", "stop"), "recognition gave no text: the answer is empty"),
        ((200, "again and again " * 300, "stop"), "recognition repeated itself"),
        ((400, "this model reads no pictures", ""), "recognition gave no text: HTTP 400: this model reads no pictures"),
    ],
)
def test_answers_that_are_no_text_of_the_page_are_refused(answer, reason, documents, tmp_path):
    folder, _ = documents
    with vision_endpoint(lambda number, picture: answer) as seen:
        options = Options(recognition=Recognition(seen.url, "vl", dpi=36))
        with pytest.raises(DataError, match=r"scan\.pdf: pages 2, 3: it is a picture, and ") as caught:
            extract(str(folder / "scan.pdf"), tmp_path / "out", options, processes=1)
        assert reason in str(caught.value)
        left_out = Options(recognition=Recognition(seen.url, "vl", dpi=36), unreadable_pages="leave out")
        extract(str(folder / "scan.pdf"), tmp_path / "left", left_out, processes=1)
    (record,) = records_of(tmp_path / "left")
    assert [page["method"] for page in record["pages"]] == ["text layer", "left out", "left out"]
    assert all(reason in page["reason"] for page in record["pages"][1:])


def test_an_endpoint_that_does_not_answer_ends_the_job_which_goes_on_later_without_asking_again(documents, tmp_path):
    folder, _ = documents
    arguments = [str(folder / "scan.pdf")], tmp_path / "out"
    with vision_endpoint(lambda number, picture: (200, "First", "stop") if number == 0 else (503, "busy", "")) as seen:
        options = Options(recognition=Recognition(seen.url, "vl", dpi=36, attempts=2, concurrency=1))
        with pytest.raises(
            UserError, match=r"no usable reply \(HTTP 503: busy; asked 2 times\); the same command resumes"
        ):
            extract(*arguments, options, processes=1)
        assert len(seen.pictures) == 3
        seen.answer = lambda number, picture: (200, "Second", "stop")
        extract(*arguments, options, processes=1)
        assert len(seen.pictures) == 4, "the answer that was there is not asked for again"
    (record,) = records_of(tmp_path / "out")
    assert "First" in record["text"]
    assert record["text"].endswith("Second")


def test_what_failed_is_read_again_on_demand_with_a_model_or_more_time(documents, tmp_path):
    folder, _ = documents
    paths = [str(folder / "scan.pdf"), str(folder / "page.html")]
    first = extract(paths, tmp_path / "out", processes=1, split_bytes=1)
    assert first.failed == 1
    assert extract(paths, tmp_path / "out", processes=1, split_bytes=1) == first, "done is done"
    with vision_endpoint(lambda number, picture: (200, "Read", "stop")) as seen:
        options = Options(recognition=Recognition(seen.url, "vl", dpi=36))
        with pytest.raises(UserError, match=r"recognition is .* \(--retry-failed reads what failed with it"):
            extract(paths, tmp_path / "out", options, processes=1, split_bytes=1)
        done = extract(paths, tmp_path / "out", options, processes=1, split_bytes=1, retry_failed=True)
    assert (done.documents, done.failed) == (2, 0)
    with pytest.raises(UserError, match="other settings"):
        extract(paths, tmp_path / "out", Options(html="whole"), processes=1, split_bytes=1, retry_failed=True)
    with pytest.raises(UserError, match="from other files"):
        extract(paths[:1], tmp_path / "out", options, processes=1, split_bytes=1)


def test_a_page_that_takes_too_much_time_or_memory_costs_itself_alone(tmp_path):
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "slow.pdf"))
    for number in range(4):
        text = canvas.beginText(72, 700)
        text.textOut(f"Page number {number} has a sentence.")
        for i in range(80_000 if number == 2 else 0):
            text.setTextOrigin(72 + i % 300, 100 + i % 500)
            text.textOut(f"word{i}")
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    for limits, reason in (
        (Limits(seconds=1.0), "it took more than 1 s on page 3"),
        (Limits(memory=1 << 28), "reading it ended the process (signal 6, most likely for memory, on page 3)"),
    ):
        output = tmp_path / str(limits.memory)
        extract(str(tmp_path / "slow.pdf"), output, Options(limits=limits, unreadable_pages="leave out"), processes=1)
        (record,) = records_of(output)
        assert [page["method"] for page in record["pages"]] == ["text layer", "text layer", "left out", "text layer"]
        assert record["pages"][2]["reason"] == reason


def test_a_thousand_pages_are_one_record(tmp_path):
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "long.pdf"))
    for number in range(1000):
        canvas.drawString(72, 800, "A long document")
        canvas.drawString(72, 500, f"Sentence of page {number}.")
        canvas.drawString(300, 20, str(number + 1))
        canvas.showPage()
    canvas.save()
    extract(str(tmp_path / "long.pdf"), tmp_path / "out", processes=1)
    (record,) = records_of(tmp_path / "out")
    assert record["text"] == "\n\n".join(f"Sentence of page {number}." for number in range(1000))
    assert len(record["pages"]) == 1000


def test_the_command_says_what_it_did_and_refuses_what_has_no_effect(documents, tmp_path, capsys):
    folder, _ = documents
    command = ["data", "extract", "--path"]
    common = [*command, str(folder), "--output"]
    assert main([*common, str(tmp_path / "out"), "--processes", "1"]) == 0
    said = capsys.readouterr().err
    assert "4 documents, " in said
    assert "not read, because they are no documents: 1 .png" in said
    assert "8 files gave no text, the first of them " in said
    assert str(tmp_path / "out/.extract/failed.jsonl") in said
    (tmp_path / "other").mkdir()
    (tmp_path / "notes.txt").write_text("some text")
    cases = [
        ([*common, str(tmp_path / "new"), "--recognise", "all"], "--recognise all needs a model"),
        ([*common, str(tmp_path / "new"), "--dpi", "100"], "--dpi is for recognition"),
        ([*common, str(tmp_path / "new"), "--endpoint", "http://localhost:1/v1"], "--endpoint-model"),
        ([*common, str(tmp_path / "other")], "was not made by `qwen3 data extract`"),
        ([*command, str(folder / "secret.pdf"), "--output", str(tmp_path / "new")],
         f"{folder / 'secret.pdf'}: it is encrypted and wants a password"),
        ([*command, str(tmp_path / "none"), "--output", str(tmp_path / "new")], "no file matches"),
        ([*command, str(tmp_path / "notes.txt"), "--output", str(tmp_path / "new")], "is no PDF, HTML or EPUB"),
    ]  # fmt: skip
    for arguments, expected in cases:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert len([line for line in error.splitlines() if "error" in line]) == 1
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.partial").exists()


COMMAND = [sys.executable, "-c", "import sys; from qwen3_jax.cli.main import main; sys.exit(main())", "data", "extract"]


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_gives_identical_files(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(24):
        typeset.one_column(tmp_path / f"in/{number:02d}.pdf", pages=6, seed=number)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    common = ["--path", str(tmp_path / "in"), "--split-mb", "1", "--processes", "2"]

    def run(name):
        return subprocess.Popen(
            [*COMMAND, *common, "--output", str(tmp_path / name)], env=environment, stderr=subprocess.PIPE
        )

    started = time.monotonic()
    whole = run("whole")
    assert whole.wait() == 0, whole.stderr.read()
    took, rng = time.monotonic() - started, random.Random(3)
    for _ in range(5):
        process = run("killed")
        time.sleep(rng.uniform(0.2, 0.9) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = run("killed")
    assert last.wait() == 0, last.stderr.read()
    assert records_of(tmp_path / "killed") == records_of(tmp_path / "whole")
    assert len(records_of(tmp_path / "whole")) == 24
    assert not list((tmp_path / "killed").rglob("*.tmp"))
