"""Inside the sandbox: Python values as JSON, without code. Plain values are written out; of all others a number is sent."""

from collections import deque
from decimal import Decimal
from fractions import Fraction


def encode(value, kept):
    """`value` as JSON. Objects without a form of their own are appended to `kept`, and their place is sent."""
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else str.__str__(value)
    for kind, write in _WRITE.items():
        if isinstance(value, kind):
            return [kind.__name__, write(value, kept)]
    if hasattr(value, "__index__") and hasattr(value, "dtype"):  # numpy's integers
        return ["int", int(value)]
    if hasattr(value, "__float__") and hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        return ["float", float(value)]
    kept.append(value)
    return ["object", len(kept) - 1]


def decode(value, find):
    """The value that `encode` wrote; `find` gives the object of a number."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "object":
        return find(content)
    return _READ[kind](content, find)


def _items(value, kept):
    return [encode(item, kept) for item in value]


def _back(content, find):
    return [decode(item, find) for item in content]


_WRITE = {
    int: lambda value, kept: int(value),
    float: lambda value, kept: float(value),
    complex: lambda value, kept: [value.real, value.imag],
    bytes: lambda value, kept: value.hex(),
    bytearray: lambda value, kept: value.hex(),
    list: _items,
    tuple: _items,
    set: _items,
    frozenset: _items,
    deque: _items,
    dict: lambda value, kept: [[encode(key, kept), encode(item, kept)] for key, item in value.items()],
    range: lambda value, kept: [value.start, value.stop, value.step],
    Fraction: lambda value, kept: [value.numerator, value.denominator],
    Decimal: lambda value, kept: str(value),
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
