"""Programs against the tests of a LiveCodeBench problem, which stay as the data set has them until they are needed.

    verify("livecodebench", answer, {"public_test_cases": "[{...}]", "private_test_cases": "eJx...", "func_name": None})

Hidden tests are a JSON text, pickled, compressed and in base64. Nothing but a text is unpickled.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from qwen3_jax.sandbox import Limits
from qwen3_jax.verifiers.programs import CodeSettings, verify_code
from qwen3_jax.verifiers.verdict import BadReference, Verdict

_LARGEST = 1 << 30  # bytes of the unpacked tests of one problem
_STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "json", "typing",
)  # fmt: skip
PRELUDE = "".join(
    [
        *(f"from {module} import *\n" for module in _STARS),
        *(f"import {module}\n" for module in _STARS),
        "import sys\nsys.setrecursionlimit(50000)\n",
    ]
)
"""What runs before each program, as in the published harness: starter code uses names such as List without importing them."""


def verify_livecodebench(answer: str, reference: Any, settings: CodeSettings) -> Verdict:
    """Whether the answer's program passes the public and the hidden tests. Score and parts as of `verify_code`.

    Args:
        reference: an object with `public_test_cases` and `private_test_cases`, each a JSON list of {"input", "output",
            "testtype"} or its packed form, and `func_name`: the method of the class Solution (or the function) that functional
            tests call, null where all tests are of standard input and output.
        settings: `limits` are those of one test.
    """
    if not isinstance(reference, Mapping):
        raise BadReference("'livecodebench' needs an object with public_test_cases and private_test_cases")
    tests = [
        test for key in ("public_test_cases", "private_test_cases") for test in unpacked(reference.get(key) or "[]")
    ]
    if not tests:
        raise BadReference("the problem has no tests")
    function = reference.get("func_name")
    if function is None:
        return verify_code(answer, {"tests": tests, "prompt": PRELUDE}, settings)
    if not isinstance(function, str) or not function.isidentifier():
        raise BadReference(f"func_name is {function!r:.60}; it must be the name of a function")
    setup = f"try:\n    called = Solution().{function}\nexcept NameError:\n    called = {function}\n"
    assertions = [_assertion(test) for test in tests]
    return verify_code(
        answer, {"assertions": assertions, "setup": setup, "prompt": PRELUDE}, _for_all(settings, len(tests))
    )


def _for_all(settings: CodeSettings, tests: int) -> CodeSettings:
    """The settings with time for all functional tests, which run in one process: that of one test, up to ten times."""
    limits: Limits = settings.limits
    times = min(tests, 10)
    cpu = None if limits.cpu_seconds is None else limits.cpu_seconds * times
    return replace(settings, limits=replace(limits, seconds=limits.seconds * times, cpu_seconds=cpu))


def unpacked(tests: Any) -> list[dict[str, str]]:
    """The list of tests from a list, its JSON, or the base64 of its compressed and pickled JSON.

    Raises:
        BadReference: it is in none of these forms; a pickle that holds anything but a text is not read.
    """
    value = tests
    if isinstance(tests, str) and not tests.lstrip().startswith("["):
        try:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.b64decode(tests, validate=True), _LARGEST)
            value = _TextOnly(io.BytesIO(data)).load()
        except (
            binascii.Error,
            zlib.error,
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            IndexError,
            KeyError,
        ) as error:
            raise BadReference(f"the tests are no JSON, nor JSON in pickle, zlib and base64 ({error})") from None
        if not unpacker.eof:
            raise BadReference("the tests are cut off, or unpack to more than a gigabyte")
        if not isinstance(value, str):
            raise BadReference(f"the packed tests must be a text, got {type(value).__name__}")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadReference(f"the tests are no valid JSON ({error})") from None
    if not isinstance(value, list):
        raise BadReference(f"the tests must be a list, got {type(value).__name__}")
    for test in value:
        if not isinstance(test, Mapping) or not all(isinstance(test.get(key), str) for key in ("input", "output")):
            raise BadReference(f"a test must have the texts input and output, got {test!r:.200}")
    return value


class _TextOnly(pickle.Unpickler):
    """Reads a pickle of built-in values; refuses classes, functions and references to anything outside."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside")


def _assertion(test: Mapping[str, str]) -> str:
    """A functional test: each line of the input is an argument in JSON, the output the value in JSON; a tuple is a list."""
    try:
        arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
        expected = json.loads(test["output"])
    except (ValueError, RecursionError) as error:
        raise BadReference(f"a functional test has arguments and a value in JSON ({error}): {test!r:.200}") from None
    call = f"called({', '.join(map(repr, arguments))})"
    if isinstance(expected, list):
        return f"assert {call} in ({expected!r}, {tuple(expected)!r})"
    return f"assert {call} == {expected!r}"
