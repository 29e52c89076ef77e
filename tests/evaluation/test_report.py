"""The page of a run in a real browser: curves, tables, samples to filter, and nothing that a model wrote acts as HTML.

QWEN3_SCREENSHOTS=DIR keeps pictures of it.
"""

import json
import os
from pathlib import Path

import pytest

from qwen3_jax.evaluation import report
from qwen3_jax.evaluation.plan import EvalConfig, Plan
from qwen3_jax.evaluation.reply import Reply
from qwen3_jax.evaluation.results import write_results
from qwen3_jax.evaluation.runner import run
from qwen3_jax.evaluation.samples import SampleFile
from qwen3_jax.evaluation.task import Problem, Task
from tests.helpers.browser import chromium

HOSTILE = [
    "</script><script>document.title = 'owned'</script>", "<img src=x onerror=\"document.title = 'owned'\">", "<!--<script>",
    "&lt;b&gt;\u2028\ud800 x", "'\"`${1}", "<b>bold</b>",
]  # fmt: skip


class Hostile:
    """Answers in which every text is one that pages get wrong."""

    def answers(self, families):
        for item in (item for family in families for item in family):
            number = int(item.key.problem) + item.key.sample
            evil = HOSTILE[number % len(HOSTILE)]
            right = number % 3 > 0 if item.budget is None else number % 3 > 1
            content = f"{evil} {item.question.problem.reference if right else '-1'}"
            calls = ({"name": evil, "arguments": "{}"},)
            if number == 7:
                yield item, Reply.not_asked("the prompt has 99 tokens.")
                continue
            budget = item.budget or 50
            yield (
                item,
                Reply(
                    f"<think>\n{evil}\n</think>\n\n{content}", evil, content, calls, "stop", 5, budget + 9, budget, 4
                ),
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    problems = [
        Problem(str(i), ({"role": "user", "content": f"{HOSTILE[i % 6]} {i}?"},), str(i), group=f"level {i % 2}")
        for i in range(12)
    ]
    tasks = [(Task(name, "", None, "number", samples=2), problems) for name in ("sums", "other <i>")]
    config = EvalConfig(("thinking", "non-thinking"), (0, 64, 256, 1024, None))
    plan = Plan.of(tasks, config, thinks=True, model="m")
    folder = tmp_path_factory.mktemp("report") / "run <&>"
    with SampleFile(folder, plan, {"model": "m", **plan.settings()}) as samples:
        list(run(plan, Hostile(), samples))
        samples.sort()
    report.write_report(folder, write_results(folder))
    return folder


def test_the_page_shows_a_run_and_text_stays_text(folder):
    faults, asked = [], []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto((folder / "report.html").as_uri())
        assert page.locator("h1").text_content() == "run <&>"
        assert page.title() == "run <&>"
        assert page.locator("svg").count() == 2
        assert page.locator("svg").first.text_content().count("unlimited") >= 1
        assert page.locator("table").first.locator("tr").count() == 1 + 2 * 6
        assert page.locator("#count").text_content() == "288 of 288 samples"
        page.select_option("#filter-task", "other <i>")
        page.select_option("#filter-budget", "64")
        page.select_option("#filter-status", "wrong")
        shown = page.locator("details.sample")
        first = next(
            json.loads(line) for line in (folder / "samples.jsonl").read_bytes().splitlines() if _is_first(line)
        )
        assert (
            shown.first.locator("summary")
            .text_content()
            .startswith("wrongother <i> · 0 · thinking, budget 64, sample 0")
        )
        shown.first.locator("summary").click()
        texts = shown.first.locator("pre").all_text_contents()
        assert texts[0] == f"user: {HOSTILE[0]} 0?"
        assert texts[1:4] == ["0", first["thinking"], first["content"]]
        assert texts[4] == HOSTILE[0] + "({})"
        assert texts[5].startswith("wrong, score 0: the answer's number is -1")
        assert float(shown.first.locator("pre.thinking").evaluate("(x) => getComputedStyle(x).opacity")) < 0.7
        page.select_option("#filter-status", "error")
        page.select_option("#filter-budget", "")
        assert "the prompt has 99 tokens." in shown.first.locator("summary").text_content()
        page.fill("#filter-text", "nothing has this")
        assert page.locator("#count").text_content() == "0 of 288 samples"
        pictures = os.environ.get("QWEN3_SCREENSHOTS")
        if pictures:
            page.fill("#filter-text", "")
            page.screenshot(path=f"{pictures}/evaluation_report.png")
        assert page.title() == "run <&>"
    assert faults == []
    assert asked == [(folder / "report.html").as_uri()], "one file, no network"
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def _is_first(line: bytes) -> bool:
    sample = json.loads(line)
    return (sample["task"], sample["problem"], sample["budget"]) == ("other <i>", "0", 64)


def test_a_huge_run_has_a_part_of_its_samples_and_long_texts_are_cut(folder, monkeypatch):
    monkeypatch.setattr(report, "MOST_SAMPLES", 100)
    monkeypatch.setattr(report, "_MOST_TEXT", 30)
    before = (folder / "report.html").read_text()
    text = report.write_report(folder, write_results(folder)).read_text()
    kept = json.loads(text.split('id="samples">')[1].split("</script>")[0])
    assert 70 < len(kept) < 130
    assert f"{len(kept)} of 288 samples are on this page" in text
    assert {sample["budget"] for sample in kept} == {"0", "64", "256", "1024", "unlimited", "-"}
    assert all(len(sample["content"]) < 60 for sample in kept)
    assert "are on this page" not in before
    assert (
        "http"
        not in before.replace("http://www.w3.org", "").replace("http://purl.org", "").split("<h2>")[0].split("svg")[0]
    )
