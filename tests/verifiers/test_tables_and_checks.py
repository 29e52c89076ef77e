"""Tables in three formats, and several checks of one answer."""

import pytest

from qwen3_jax.verifiers import verify

ROWS = {"columns": ["name", "age"], "rows": [["Ada", 36], ["Bo, Jr.", "7"]]}
CSV = 'name,age\nAda,36\n"Bo, Jr.",7'
MARKDOWN = "| name | age |\n|---|:---:|\n| Ada | 36 |\n| Bo, Jr. | 7 |"
XML = "<people>\n <person><name>Ada</name><age>36</age></person>\n <person><name>Bo, Jr.</name><age> 7 </age></person></people>"
WRITTEN = {"csv": CSV, "markdown": MARKDOWN, "xml": XML}


def status(form, answer, **settings):
    reference = {"format": form, "root": "people", "row": "person", **ROWS}
    return verify("table", answer, reference, settings).status


@pytest.mark.parametrize("form", WRITTEN)
def test_a_table_is_read_in_its_own_format_alone(form):
    table = WRITTEN[form]
    assert status(form, table) == "right"
    assert status(form, f"```{form}\n{table}\n```") == "right"
    assert status(form, f"```{form}\n{table}\n```", fenced=False) != "right"
    assert status(form, f"Here it is:\n{table}") != "right"
    assert status(form, f"{table}\nThat is all.") != "right"
    assert status(form, table.replace("36", "37")) == "wrong"
    assert status(form, table.replace("age", "years")) == "wrong"
    assert status(form, "") == "unparsable"
    others = [other for name, other in WRITTEN.items() if name != form]
    assert not any(status(form, other) == "right" for other in others)


def test_order_cells_and_rows_count():
    swapped = 'name,age\n"Bo, Jr.",7\nAda,36'
    assert status("csv", swapped) == "wrong"
    assert status("csv", swapped, ordered=False) == "right"
    assert status("csv", "name,age\nAda,36") == "wrong"
    assert status("csv", CSV + ",extra") == "wrong"
    assert status("markdown", MARKDOWN.replace("|---|:---:|\n", "")) == "unparsable"
    assert status("xml", XML.replace("<people>", '<people kind="x">')) == "unparsable"
    assert status("xml", XML.replace("<age>36</age>", "<age><b>36</b></age>")) == "unparsable"
    assert status("xml", '<!DOCTYPE x [<!ENTITY a "b">]>' + XML) == "unparsable"


@pytest.mark.parametrize(
    "reference", [None, {"format": "html"}, {"format": "csv", "columns": ["a"], "rows": [["b", "c"]]}]
)
def test_a_reference_that_is_no_table_is_at_fault(reference):
    assert verify("table", CSV, reference).status == "error"


def test_all_checks_must_be_right():
    checks = [
        {"verifier": "thinking", "reference": True},
        {"verifier": "number", "reference": 4, "settings": {"take": "only"}},
    ]

    def verdict(answer, **settings):
        return verify("checks", answer, checks, settings)

    assert verdict("<think>\n2 + 2\n</think>\n\n4").status == "right"
    assert verdict("4").parts == (False, True)
    assert verdict("<think>\n2 + 2\n</think>\n\n5") == verdict("<think>\n2 + 2\n</think>\n\n5")
    assert (verdict("4").score, verdict("4", partial=True).score) == (0.0, 0.5)
    assert verify("checks", "2 + 2\n</think>\n\n4", checks, in_thinking=True).status == "right"


def test_a_check_that_fails_is_an_error_unless_another_is_wrong():
    broken = {"verifier": "number", "reference": "none"}
    assert verify("checks", "4", [broken]).status == "error"
    assert verify("checks", "4", [broken, {"verifier": "exact", "reference": "4"}]).status == "error"
    assert verify("checks", "4", [broken, {"verifier": "exact", "reference": "5"}]).status == "wrong"
    for check in ("math", {"verifier": "maths"}, {"verifier": "checks", "reference": []}, {"verifier": "math", "x": 1}):
        assert verify("checks", "4", [check]).status == "error"
