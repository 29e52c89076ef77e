"""Text of PDF pages against the text that was set: order, columns, tables, heads, hyphens, scripts, rotation."""

import pytest

from qwen3_jax.data.extraction import assembly, layout, pdf, pieces
from qwen3_jax.data.extraction.pieces import Block, Line
from qwen3_jax.data.extraction.words import HYPHEN, Word, clean
from tests.helpers import typeset
from tests.helpers.similarity import edit_similarity, order_similarity


def pages_of(path) -> list[assembly.Page]:
    found = pdf.read_pages(str(path), 0, pdf.inspect(str(path))["pages"])
    assert all(page["needs"] is None for page in found)
    return [
        assembly.Page([pieces.from_json(block) for block in page["blocks"]], "", page["top"], page["bottom"])
        for page in found
    ]


@pytest.mark.parametrize("name", typeset.DOCUMENTS)
def test_a_document_gives_the_text_that_was_set(name, tmp_path):
    path = tmp_path / "a.pdf"
    truth = typeset.DOCUMENTS[name](path)
    text, spans = assembly.assemble(pages_of(path))
    assert edit_similarity("".join(truth), text) > 0.998
    assert name == "Chinese" or order_similarity("".join(truth), text) > 0.998
    assert len(spans) == len(truth)
    for page, (start, end) in zip(truth, spans, strict=True):
        assert edit_similarity(page, text[start:end]) > 0.97, "a word broken between pages belongs to the first"


def test_rows_of_tables_are_lines_of_cells(tmp_path):
    typeset.table(tmp_path / "a.pdf", pages=1)
    (page,) = pages_of(tmp_path / "a.pdf")
    (rows,) = [block for block in page.blocks if block.kind == "table"]
    assert rows.lines[0].text == "Name\tCount\tPrice\tPlace"
    assert all(line.text.count("\t") == 3 for line in rows.lines)
    assert len(rows.lines) == 15


def test_running_heads_and_page_numbers_are_left_out_and_what_stands_there_once_is_not():
    def line(text, top):
        return Line(text, 72, top, 300, top + 12)

    def page(number, head, *, first="First line of the page."):
        lines = [
            line(head, 30),
            line(f"{first} {number}", 90),
            *(line(f"Text {number} {i}.", 110 + 14 * i) for i in range(30)),
        ]
        return assembly.Page([Block("text", [*lines, line(f"– {number + 7} –", 770)])], "", 0, 800)

    heads = ["Part one"] * 5 + [f"{number + 7} A head that changes {'x' * number}" for number in range(5, 9)]
    text, _ = assembly.assemble([page(number, head) for number, head in enumerate(heads)])
    assert "Part one" not in text
    assert "A head that changes" not in text
    assert "–" not in text
    assert text.count("First line of the page.") == 9
    alone, _ = assembly.assemble([page(0, "Part one"), page(1, "Another"), page(2, "A third")])
    assert "Part one" in alone
    assert "Another" in alone
    single, _ = assembly.assemble([page(0, "Only page")])
    assert "Only page" in single
    assert "– 7 –" in single


def test_hyphens_at_the_ends_of_lines_go_or_stay_as_the_document_spells_the_word():
    lines = [
        "A well-known word and informa" + HYPHEN,
        "tion and a well" + HYPHEN,
        "known one, Anglo" + HYPHEN,
        "Saxon, 2019" + HYPHEN,
        "2020.",
    ]
    block = Block("text", [Line(text, 72, 14 * i, 300, 14 * i + 12, 20) for i, text in enumerate(lines)])
    text, _ = assembly.assemble([assembly.Page([block])])
    assert text == "A well-known word and information and a well-known one, Anglo-Saxon, 2019-2020."
    two = [
        assembly.Page([Block("text", [Line(text, 72, 0, 300, 12)])])
        for text in ("It ends in infor" + HYPHEN, "mation here.")
    ]
    text, spans = assembly.assemble(two)
    assert text == "It ends in information here."
    assert [text[start:end] for start, end in spans] == ["It ends in information", "here."]


def test_characters_are_written_as_they_are_searched_for():
    assert clean("oﬃce") == "office"
    assert clean("ﬂow\x02") == "flow" + HYPHEN
    assert clean("exam-") == "exam" + HYPHEN
    assert clean("-") == "-"
    assert clean("⼈⼝") == "人口"
    assert clean("ﻣﺮﺣﺒﺎ") == "مرحبا"
    assert clean("a\u200bb\x00") == "ab"


def test_lines_that_end_early_stay_lines_and_lines_that_are_full_are_joined():
    def block(*lines):
        return Block("text", [Line(text, 72, 14 * i, right, 14 * i + 12, 25) for i, (text, right) in enumerate(lines)])

    verse = block(
        ("Short line", 120),
        ("another short", 130),
        ("and the last", 125),
        ("a long one to say how wide the column is", 300),
    )
    assert assembly.assemble([assembly.Page([verse])])[0].count("\n") == 3
    prose = block(("A full line of text that goes", 298), ("on here and is full again as", 300), ("it was.", 110))
    assert (
        assembly.assemble([assembly.Page([prose])])[0]
        == "A full line of text that goes on here and is full again as it was."
    )
    chinese = block(("这是一行完整的文字", 300), ("下一行继续。", 200))
    assert assembly.assemble([assembly.Page([chinese])])[0] == "这是一行完整的文字下一行继续。"


def test_words_from_right_to_left_with_numbers_and_latin_words_between():
    places = [("ab", 0, False), ("גד", 20, True), ("15", 40, False), ("בא", 60, True)]
    words = [Word(text, left, 0, left + 15, 12, is_rtl, 0) for text, left, is_rtl in places]
    (block,) = layout.read_blocks({0: words})
    assert block.lines[0].text == "בא 15 גד ab"


def test_pages_that_need_recognition_say_why(tmp_path):
    typeset.scanned(tmp_path / "a.pdf", pages=3, text_on=(1,))
    pages = pdf.read_pages(str(tmp_path / "a.pdf"), 0, 3)
    assert [page["needs"] for page in pages] == ["it is a picture", None, "it is a picture"]
    assert [page["blank"] for page in pages] == [False] * 3
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "b.pdf"))
    canvas.showPage()
    for _ in range(400):
        canvas.line(100, 100, 101, 103)
    canvas.showPage()
    canvas.line(100, 100, 300, 100)
    canvas.save()
    blank, curves, ruled = pdf.read_pages(str(tmp_path / "b.pdf"), 0, 3)
    assert (blank["needs"], blank["blank"]) == (None, True)
    assert curves["needs"] == "its letters are drawn as curves"
    assert (ruled["needs"], ruled["blank"]) == (None, True)
    assert pdf.render(str(tmp_path / "b.pdf"), 0, 72) == ""
    assert pdf.render(str(tmp_path / "a.pdf"), 0, 72) != ""
