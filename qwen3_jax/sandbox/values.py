"""Inside the sandbox: Python values as JSON, without code. Plain values are written out; of all others a number is sent."""

from collections import deque
from decimal import Decimal
from fractions import Fraction


class Far:
    """An object of the other process, by its number there."""

    far_number: int

    def __init__(self, number):
        self.__dict__["far_number"] = number


def encode(value, keep):
    """`value` as JSON. Of an object without a form of its own the number is sent that `keep` gives it."""
    if isinstance(value, Far):
        return ["object", value.far_number]
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else str.__str__(value)
    for kind, write in _WRITE.items():
        if isinstance(value, kind):
            return [kind.__name__, write(value, keep)]
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():  # a number of numpy
        return ["int", int(value)] if hasattr(value, "__index__") else ["float", float(value)]
    return ["object", keep(value)]


def decode(value, find):
    """The value that `encode` wrote; `find` gives the object of a number."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "object":
        return find(content)
    return _READ[kind](content, find)


def _items(value, keep):
    return [encode(item, keep) for item in value]


def _back(content, find):
    return [decode(item, find) for item in content]


_WRITE = {
    int: lambda value, keep: int(value),
    float: lambda value, keep: float(value),
    complex: lambda value, keep: [value.real, value.imag],
    bytes: lambda value, keep: value.hex(),
    bytearray: lambda value, keep: value.hex(),
    list: _items,
    tuple: _items,
    set: _items,
    frozenset: _items,
    deque: _items,
    dict: lambda value, keep: [[encode(key, keep), encode(item, keep)] for key, item in value.items()],
    range: lambda value, keep: [value.start, value.stop, value.step],
    Fraction: lambda value, keep: [value.numerator, value.denominator],
    Decimal: lambda value, keep: str(value),
}
_READ = {
    "int": lambda content, find: int(content),
    "float": lambda content, find: float(content),
    "complex": lambda content, find: complex(*content),
    "bytes": lambda content, find: bytes.fromhex(content),
    "bytearray": lambda content, find: bytearray.fromhex(content),
    "list": _back,
    "tuple": lambda content, find: tuple(_back(content, find)),
    "set": lambda content, find: set(_back(content, find)),
    "frozenset": lambda content, find: frozenset(_back(content, find)),
    "deque": lambda content, find: deque(_back(content, find)),
    "dict": lambda content, find: {decode(key, find): decode(item, find) for key, item in content},
    "range": lambda content, find: range(*content),
    "Fraction": lambda content, find: Fraction(*content),
    "Decimal": lambda content, find: Decimal(content),
}
