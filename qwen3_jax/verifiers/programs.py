"""Programs, run in the sandbox: against standard input and output, or by assertions about their functions.

    verify("code", answer, {"tests": [{"input": "1 2\\n", "output": "3\\n"}]})
    verify("code", answer, {"assertions": ["assert add(1, 2) == 3"]})

Verdicts are computed outside of the program's process. A program that breaks a limit is wrong, and the reason names the limit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from qwen3_jax.bounds import at_least, check_bounds
from qwen3_jax.errors import UserError
from qwen3_jax.sandbox import CannotTest, Checked, Limits, Outcome, SandboxFailed, check_calls, run
from qwen3_jax.verifiers.fences import fenced_blocks
from qwen3_jax.verifiers.verdict import BadReference, Verdict, graded, unparsable

_PYTHON = re.compile(r"(?:python|py)[\d.]*")


@dataclass(frozen=True)
class CodeSettings:
    """Of `verify_code`.

    Attributes:
        limits: of each run of the program; a `Limits`, or its fields as a mapping.
        isolation: see `qwen3_jax.sandbox.find_isolation`; "none" only where the answers are trusted.
        stop_at_first: run no test after the first that fails; the score is then that of the tests before it.
        tolerance: numbers of the output may differ by as much.
    """

    limits: Any = field(default_factory=Limits)
    isolation: str = "auto"
    stop_at_first: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.limits, Mapping):
            try:
                object.__setattr__(self, "limits", Limits(**self.limits))
            except TypeError as error:
                raise UserError(f"settings of 'code': limits: {error}.") from None
        if not isinstance(self.limits, Limits):
            raise UserError(f"settings of 'code': limits is {self.limits!r}; it must be a mapping.")
        check_bounds(vars(self), "settings of 'code': ", tolerance=at_least(0))


def verify_code(answer: str, reference: Any, settings: CodeSettings) -> Verdict:
    """Whether the answer's Python program passes its tests. The score is the share that it passes, `parts` says which.

    The program is the last fenced block of Markdown that is Python's or has no language, of several the last that defines the
    entry point; without fences, the whole answer.

    Args:
        reference: an object with either
            `tests`: a list of {"input": ..., "output": ...}, texts; outputs are compared line by line, without space at the
            ends of lines; with them `prompt` (source that goes before the program); or
            `assertions`: a list of Python texts, or one text; with them `setup` (source that runs before), `entry_point` (the
            function that a `check(candidate)` among them is called with) and `prompt` (source that goes before the program, as
            the beginning of a function that the answer continues).
    """
    if not isinstance(reference, Mapping) or ("tests" in reference) == ("assertions" in reference):
        raise BadReference("'code' needs an object with either tests or assertions")
    entry_point = reference.get("entry_point")
    program = program_of(answer, entry_point if isinstance(entry_point, str) else None)
    if not program.strip():
        return unparsable("the answer holds no program")
    try:
        if "assertions" in reference:
            return _by_assertions(program, reference, settings)
        return _by_output(_text(reference, "prompt") + program, reference["tests"], settings)
    except CannotTest as error:
        raise BadReference(str(error)) from None
    except SandboxFailed as error:
        return Verdict(0.0, "error", f"the sandbox failed: {error}")


def program_of(answer: str, entry_point: str | None = None) -> str:
    """The program in an answer, as `verify_code` finds it. A block that the end of the answer cuts off counts."""
    blocks = fenced_blocks(answer)
    if not blocks:
        return answer
    fitting = [code for language, code in blocks if _PYTHON.fullmatch(language)] or [
        code for language, code in blocks if not language
    ]
    if entry_point is not None:
        fitting = [code for code in fitting if _defines(code, entry_point)] or fitting
    return fitting[-1] if fitting else ""


def _defines(program: str, name: str) -> bool:
    return (
        re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", program, re.MULTILINE)
        is not None
    )


def _text(reference: Mapping[str, Any], key: str) -> str:
    """A text of the reference; "" where it is missing or null."""
    value = reference.get(key)
    if not isinstance(value, str | None):
        raise BadReference(f"{key} must be text, got {value!r:.200}")
    return value or ""


def _by_output(program: str, tests: Any, settings: CodeSettings) -> Verdict:
    if not isinstance(tests, list) or not tests:
        raise BadReference("'code' needs tests, a list of objects with input and output")
    for test in tests:
        if not isinstance(test, Mapping) or not all(isinstance(test.get(key), str) for key in ("input", "output")):
            raise BadReference(f"a test must have the texts input and output, got {test!r:.200}")
    parts: list[bool] = []
    reason = None
    for number, test in enumerate(tests, 1):
        outcome = run(program, test["input"], settings.limits, settings.isolation)
        difference = _difference(outcome, test["output"], settings.tolerance)
        parts.append(difference is None)
        if difference is not None:
            reason = reason or f"test {number} of {len(tests)}: {difference}"
            if settings.stop_at_first:
                break
    return graded(sum(parts) / len(tests), reason or f"the program passes {len(tests)} tests", tuple(parts))


def _difference(outcome: Outcome, expected: str, tolerance: float) -> str | None:
    """Why the output is not what is expected; None if it is."""
    if not outcome.ok:
        return outcome.reason
    lines, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (outcome.stdout, expected))
    for number, (line, want) in enumerate(zip(lines, wanted, strict=False), 1):
        if line != want and not _close(line, want, tolerance):
            return f"line {number} of the output is {line[:100]!r}, not {want[:100]!r}"
    return None if len(lines) == len(wanted) else f"the output has {len(lines)} lines, not {len(wanted)}"


def _close(line: str, want: str, tolerance: float) -> bool:
    words, wanted = line.split(), want.split()
    if not tolerance or len(words) != len(wanted):
        return False
    for word, other in zip(words, wanted, strict=True):
        numbers = [_number(text) for text in (word, other)]
        if word != other and (None in numbers or abs(numbers[0] - numbers[1]) > Fraction(tolerance)):  # type: ignore[operator]
            return False
    return True


def _number(text: str) -> Fraction | None:
    return (
        Fraction(text) if re.fullmatch(r"[+-]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][+-]?\d{1,3})?", text) else None
    )


def _by_assertions(program: str, reference: Mapping[str, Any], settings: CodeSettings) -> Verdict:
    texts = reference["assertions"]
    assertions = [texts] if isinstance(texts, str) else texts
    if not isinstance(assertions, list) or not assertions or not all(isinstance(text, str) for text in assertions):
        raise BadReference("'code' needs assertions, a text or a list of texts")
    setup, prompt, entry_point = (_text(reference, key) for key in ("setup", "prompt", "entry_point"))
    if prompt and not (entry_point and _defines(program, entry_point)):
        program = prompt + program
    elif prompt:  # the answer has the function anew; the prompt's imports and helpers go before it
        program = f"{prompt}\n    pass\n\n{program}"
    checked: Checked = check_calls(
        program,
        assertions,
        setup=setup,
        entry_point=entry_point or None,
        stop_at_first=settings.stop_at_first,
        limits=settings.limits,
        isolation=settings.isolation,
    )
    share = sum(checked.passed) / len(assertions)
    reason = checked.reason or f"the program passes {len(assertions)} tests"
    return graded(share if checked.ok or share < 1 else 0.0, reason, checked.passed)
