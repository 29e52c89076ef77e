"""Thinking sections, repetition, mixing of languages, length."""

import random

import pytest

from qwen3_jax.verifiers import verify


def status(name, answer, reference=None, **settings):
    return verify(name, answer, reference, settings).status


@pytest.mark.parametrize(
    ("answer", "thinks", "keeps_format"),
    [
        ("<think>\nabc\n</think>\n\n4", True, True),
        ("<think>\n\n</think>\n\n4", False, True),
        ("4", False, True),
        ("<think>\nabc", None, False),
        ("<think>\nabc\n</think>\n\n", None, False),
        ("4 <think>\nabc\n</think>", None, False),
        ("<think>\na\n</think>\n\n<think>\nb\n</think>\n\n4", None, False),
        ("<think>\na <think> b\n</think>\n\n4", None, False),
        ("abc\n</think>\n\n4", None, False),
        ("</think>\n\n4", None, False),
        ("", None, False),
    ],
)
def test_thinking(answer, thinks, keeps_format):
    assert status("thinking", answer) == ("right" if keeps_format else "wrong")
    for asked in (True, False):
        assert status("thinking", answer, asked) == ("right" if keeps_format and thinks == asked else "wrong")


def test_thinking_that_the_prompt_opened():
    assert verify("thinking", "abc\n</think>\n\n4", True, in_thinking=True).status == "right"
    assert verify("thinking", "abc", True, in_thinking=True).reason == "the thinking section is not closed"
    assert verify("thinking", "<think>\nabc\n</think>\n\n", True, {"content": False}).status == "right"
    assert verify("thinking", "4", "yes").status == "error"


WORDS = [f"word{number}" for number in range(500)]


def test_repetition():
    draw = random.Random(0)
    text = " ".join(draw.choices(WORDS, k=800))
    assert status("repetition", text) == "right"
    for unit, times in (
        ("again ", 50),
        ("I am in a loop. ", 12),
        ("我在重复。", 12),
        (" ".join(WORDS[:150]) + " ", 4),
        ("=", 60),
    ):
        verdict = verify("repetition", f"{text} {unit * times} {text[:50]}")
        assert (verdict.status, verdict.score) == ("wrong", 0.0), unit
        assert "in a loop" in verdict.reason
    assert status("repetition", text + " again again again") == "right"
    assert status("repetition", "<think>\n" + "wait " * 90 + "\n</think>\n\n4") == "wrong"
    long = " ".join(draw.choices(WORDS, k=300))  # longer than any passage that is looked for as a loop
    copied = verify("repetition", f"{long}\n\n{long}")
    assert copied.status == "wrong"
    assert 0.4 < copied.score < 0.6
    assert status("repetition", f"{long}\n\n{long}", most=0.6) == "right"
    assert status("repetition", "") == "right"


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("This is English, with naïve and Größe.", None, "right"),
        ("This is English", "en", "right"),
        ("This is 中文 mixed in here", None, "wrong"),
        ("我们用 Python 写代码，今天天气很好，我们去公园。", None, "right"),
        ("我们用 Python 写代码，今天天气很好，我们去公园。", "zh-CN", "right"),
        ("This is English", "zh", "wrong"),
        ("今日は天気がいいですね。カメラを買いました。", None, "right"),
        ("今日は天気がいいですね。", "ja", "right"),
        ("今日は天気がいいですね。", "zh", "wrong"),
        ("한국어 문장입니다. 漢字도 있다.", "ko", "right"),
        ("Привет, как дела?", "ru", "right"),
        ("Привет, 你好", "ru", "wrong"),
        ("The angle is $\\alpha$ and θ = 2π, see `变量` or\n```python\n# 注释\n```", "en", "right"),
        ("<think>\n嗯，让我想想\n</think>\n\nThe answer is four.", "en", "wrong"),  # thinking counts
        ("42", None, "unparsable"),
        ("text", "english language", "error"),
    ],
)
def test_language(answer, reference, expected):
    assert status("language", answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "settings", "expected", "score"),
    [
        ("one two three", 3, {}, "right", 1),
        ("one two three", {"min": 3}, {}, "right", 1),
        ("one two three", {"max": 3}, {}, "right", 1),
        ("one two three", {"min": 6}, {}, "wrong", 0.5),
        ("one two three", {"max": 2}, {}, "wrong", 0.5),
        ("one two three", {"max": 1}, {}, "wrong", 0),
        ("one two three", {"min": 1, "max": 5}, {}, "right", 1),
        ("我们去公园", 5, {"tolerance": 0}, "right", 1),
        ("it's 1.5 km", {"min": 5, "max": 5}, {}, "right", 1),
        ("abc", 3, {"unit": "characters"}, "right", 1),
        ("One. Two? Three!", 3, {"unit": "sentences"}, "right", 1),
        ("一。二。", 2, {"unit": "sentences"}, "right", 1),
        ("a\n\nb\n \nc", 3, {"unit": "paragraphs"}, "right", 1),
        ("a\n\nb", 2, {"unit": "lines"}, "right", 1),
        ("<think>\none two three four\n</think>\n\none", 1, {}, "right", 1),
        ("one", {"min": 5, "max": 3}, {}, "error", 0),
        ("one", {"least": 5}, {}, "error", 0),
        ("one", -1, {}, "error", 0),
        ("one", {}, {}, "error", 0),
        ("one", "three", {}, "error", 0),
    ],
)
def test_length(answer, reference, settings, expected, score):
    verdict = verify("length", answer, reference, settings)
    assert (verdict.status, verdict.score) == (expected, score), verdict
