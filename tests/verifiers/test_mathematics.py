"""Mathematical answers: math-verify's own verdicts, and none that hangs or ends the pool."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from qwen3_jax.verifiers import verify, verify_all
from tests.verifiers import math_peer, peer

pytest.importorskip("math_verify")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "number", [40, pytest.param(150, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.soak)]
)
def test_verdicts_are_math_verifys_own(number):
    pairs = math_peer.pairs(number, seed=number)
    verdicts = verify_all("math", pairs, {"seconds": 20.0}, threads=1 if number < 100 else None)
    for pair, verdict, (equal, parsed) in zip(
        pairs, verdicts, peer.verdicts("tests.verifiers.math_peer", pairs), strict=True
    ):
        assert verdict.status == ("right" if equal else "wrong" if parsed else "unparsable"), (pair, verdict)
    counts = Counter(verdict.status for verdict in verdicts)
    assert min(counts["right"], counts["wrong"], counts["unparsable"]) > number / 15, counts


@pytest.mark.parametrize(
    ("number", "seconds"),
    [(10, 0.4), pytest.param(100, 0.4, marks=pytest.mark.slow), pytest.param(200, 1.0, marks=pytest.mark.soak)],
)
def test_hostile_answers_neither_hang_nor_fail_the_pool(number, seconds):
    pairs = math_peer.hostile(number)
    assert verify("math", "$2$", "$2$").status == "right"  # the pool is there
    began = time.monotonic()
    verdicts = verify_all("math", pairs, {"seconds": seconds}, threads=1 if number < 100 else None)
    assert time.monotonic() - began < number * (seconds + 1) + 10
    print(Counter(verdict.status for verdict in verdicts), f"{time.monotonic() - began:.0f} s")
    assert {verdict.status for verdict in verdicts} <= {"wrong", "unparsable", "timed_out", "error"}
    for verdict in verdicts:
        if verdict.status == "timed_out":
            assert verdict.reason.startswith(f"no verdict within {seconds:g} s, while ")
        if verdict.status == "error":
            assert verdict.reason.startswith("the verifier's process ended"), verdict
    assert verify("math", "$2$", "$2$").status == "right"  # the pool goes on


def test_a_time_out_is_no_wrong_answer_and_names_the_step():
    verdict = verify("math", "$9^{9^{9^{9}}}$", "2", {"seconds": 0.5})
    assert (verdict.score, verdict.status) == (0.0, "timed_out")
    assert verdict.reason == "no verdict within 0.5 s, while comparing"


def test_calls_from_several_threads_are_judged_beside_one_another():
    """math-verify itself answers 0 to everything outside of the main thread."""
    found = []

    def judge():
        found.append(verify("math", r"\boxed{\frac{1}{2}}", "$0.5$").status)

    threads = [threading.Thread(target=judge) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["right"] * 4


@pytest.mark.parametrize(
    ("reference", "answer", "status"),
    [
        (r"\frac{\sqrt{3}}{3}", r"\boxed{\frac{1}{\sqrt{3}}}", "right"),  # MATH-500's form, without dollar signs
        (r"\frac{\sqrt{3}}{3}", "3", "wrong"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"$(3, \pi/2)$", "right"),
        ("72", "#### 72", "right"),
        (72, "So 72.", "right"),
        (0.5, r"\boxed{\frac12}", "right"),
        (r"\$32,\!348", r"\boxed{\$32,\!348}", "right"),
        ("1,-2", r"\boxed{1,-2}", "right"),  # a list, not its last number
        ("1,-2", r"\boxed{-2}", "wrong"),
        ("3, 5, 7", r"\boxed{7, 5, 3}", "right"),
        ("1,2", r"\boxed{1.2}", "wrong"),
        (r"\begin{pmatrix} 1 \\(2) \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", "right"),
        ("1,234", r"\boxed{1234}", "right"),
        (1e-07, r"\boxed{0.0000001}", "right"),
        ("2e3", r"\boxed{2000}", "right"),
        ("$2$", "nothing here", "unparsable"),
        ("", "2", "error"),
        (None, "2", "error"),
        ([2], "2", "error"),
    ],
)
def test_references_are_read_as_data_sets_write_them(reference, answer, status):
    assert verify("math", answer, reference).status == status


def test_a_reference_is_read_as_math_verify_does_where_that_is_asked_for():
    reference = r"\sqrt{3}+1"
    assert verify("math", f"${reference}$", reference, {"delimit": False}).status == "error"  # it reads nothing there
    assert verify("math", f"${reference}$", reference).status == "right"
