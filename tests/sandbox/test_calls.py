"""Assertions over two processes: functions, classes, exceptions and changed arguments behave as in one."""

import math
import re
from collections import deque
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_jax import UserError
from qwen3_jax.sandbox import check_calls
from qwen3_jax.sandbox.values import Far, decode, encode

SOLUTION = """
import math
from collections import namedtuple
LIMIT = 3
Point = namedtuple("Point", "x y")

def add(a, b=1, *, c=0): return a + b + c
def kinds(): return [None, True, 1, 1.5, 2j, "ü", b"x", (1, [2]), {"a": {1}}, {(1, 2): 3}, range(3), float("inf")]
def squares(n):
    for i in range(n): yield i * i
def forever():
    n = 0
    while True:
        yield n
        n += 1
def sort(items): items.sort(); items.append(LIMIT)
def swap(mapping): mapping.clear(); mapping["new"] = [1]
def fail(kind): raise kind("no")
def custom():
    class Odd(Exception): pass
    raise Odd("odd")
def value_error(): raise ValueError("bad value")
def big(): return 10 ** 5000

class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def total(self): return self.a + self.b
    def __eq__(self, other): return (self.a, self.b) == (other.a, other.b)
    def __len__(self): return 2
    def __getitem__(self, place): return (self.a, self.b)[place]
def longest(pairs): return max(pair.total() for pair in pairs)
"""

TESTS = [
    "assert add(1) == 2 and add(1, 2, c=3) == 6 and add('a', 'b', c='c') == 'abc'",
    "assert kinds() == [None, True, 1, 1.5, 2j, 'ü', b'x', (1, [2]), {'a': {1}}, {(1, 2): 3}, range(3), float('inf')]",
    "assert [type(x) for x in kinds()[1:4]] == [bool, int, float]",
    "assert list(squares(4)) == [0, 1, 4, 9] and sum(squares(4)) == 14",
    "items = [3, 1, 2]\nsort(items)\nassert items == [1, 2, 3, 3]",
    "mapping = {'old': 1}\nswap(mapping)\nassert mapping == {'new': [1]}",
    "assert LIMIT == 3",
    "assert Pair(1, 2).total() == 3 and Pair(1, 2).a == 1 and Pair(1, 2) == Pair(1, 2) and Pair(1, 2) != Pair(2, 2)",
    "assert len(Pair(5, 6)) == 2 and Pair(5, 6)[1] == 6 and list(Pair(5, 6)) == [5, 6] and 5 in Pair(5, 6)",
    "assert longest([Pair(5, 24), Pair(15, 25), Pair(27, 40)]) == 67",
    "from itertools import islice\nassert list(islice(forever(), 3)) == [0, 1, 2]",
    "numbers = forever()\nassert next(numbers) == 0 and next(numbers) == 1",
    "assert Point(1, 2) == (1, 2)",
    "try: value_error()\nexcept ValueError as error: assert str(error) == 'bad value'\nelse: assert False",
    "try: add(1, 'x')\nexcept TypeError: pass\nelse: assert False",
    "try: custom()\nexcept Exception as error: assert 'odd' in str(error)\nelse: assert False",
    "assert big() == 10 ** 5000",
    "pair = Pair(1, 2)\npair.a = 9\nassert pair.total() == 11",
]


def test_tests_of_functions_and_classes_pass():
    checked = check_calls(SOLUTION, TESTS, stop_at_first=False)
    assert checked.passed == (True,) * len(TESTS), checked.reason
    assert checked.ok


def test_each_assertion_is_judged_and_the_first_failure_is_the_reason():
    tests = ["assert add(1) == 2", "assert add(1) == 3", "assert add(2) == 3", "assert add() == 1"]
    checked = check_calls(SOLUTION, tests, stop_at_first=False)
    assert checked.passed == (True, False, True, False)
    assert checked.reason == "AssertionError in 'assert add(1) == 3'"
    assert check_calls(SOLUTION, tests).passed == (True, False)


def test_the_form_of_humaneval():
    test = "def check(candidate):\n    for x in range(3):\n        assert abs(candidate(x) - math.sqrt(x)) < 1e-6\n"
    right = "import math\ndef root(x):\n    return math.sqrt(x)"
    assert check_calls(right, [test], setup="import math", entry_point="root").ok
    checked = check_calls("def root(x): return x", [test], setup="import math", entry_point="root")
    assert not checked.ok
    assert checked.reason.startswith("AssertionError in ")
    assert (
        check_calls("def other(x): return x", [test], entry_point="root").reason == "the program has no function 'root'"
    )


def test_a_program_that_does_not_load_or_end_fails_with_its_reason():
    assert re.search("SyntaxError.* exit code 1", check_calls("def f(:", ["assert f(1)"]).reason)
    assert "ZeroDivisionError" in check_calls("1 / 0", ["assert f(1)"]).reason
    from qwen3_jax.sandbox import Limits

    slow = check_calls("def f(x):\n    while True: pass", ["assert f(1)"], limits=Limits(seconds=1))
    assert "longer than 1 s" in slow.reason or "processor time" in slow.reason
    printed = check_calls("print('noise' * 10)\ndef f(x):\n    print(x)\n    return x", ["assert f(1) == 1"])
    assert printed.ok


def test_what_can_not_be_tested_from_another_process_is_refused_by_name():
    with pytest.raises(UserError, match="a test gives the program a function"):
        check_calls("def f(g): return g(1)", ["assert f(lambda x: x) == 1"])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(deque)
        | st.dictionaries(st.integers() | st.text(), inner)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.integers())
    ),
    max_leaves=8,
)


@given(plain)
def test_plain_values_come_back_as_they_were(value):
    def refuse(value):
        raise AssertionError(value)

    back = decode(encode(value, refuse), None)
    assert back == value
    assert type(back) is type(value)


def test_objects_are_numbers_on_the_way():
    kept = []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    found = [object(), object()]
    assert decode(encode(found, keep), kept.__getitem__) == found
    assert encode(Far(7), keep) == ["object", 7]
    assert math.isnan(decode(encode(float("nan"), keep), None))
    assert decode(encode([Fraction(1, 3), Decimal("0.1")], keep), None) == [Fraction(1, 3), Decimal("0.1")]
