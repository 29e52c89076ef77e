"""Inside the sandbox: the program whose functions are called. Run with two descriptors, requests and replies, as arguments.

A request and its reply are one line of JSON each; values are those of values.py. What this process sends is data to the process
that checks, never code.
"""

import builtins
import json
import operator
import os
import sys
from collections.abc import Callable

from values import decode, encode

DO: dict[str, Callable] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "iter": iter,
    "next": next, "len": len, "getitem": operator.getitem, "setitem": operator.setitem,
    "str": str, "repr": repr, "bool": bool, "eq": operator.eq, "lt": operator.lt,
    "le": operator.le, "gt": operator.gt, "ge": operator.ge, "float": float, "int": int,
}  # fmt: skip


def main():
    requests, replies = (
        os.fdopen(int(text), mode, encoding="utf-8") for text, mode in zip(sys.argv[-2:], "rw", strict=True)
    )
    sys.set_int_max_str_digits(0)
    sys.argv = ["solution.py"]
    with open("solution.py", encoding="utf-8") as file:
        source = file.read()
    module = type(sys)("solution")
    sys.modules["solution"] = module
    kept = []  # objects that the other side has a number of

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    def answer(reply):
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        exec(compile(source, "solution.py", "exec"), module.__dict__)
    except Exception as error:
        answer(_raised(error))
        sys.exit(1)
    answer(
        {
            "names": [
                name
                for name, value in vars(module).items()
                if not name.startswith("__") and type(value) is not type(sys)
            ]
        }
    )
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "name":
                answer({"value": encode(getattr(module, request["name"]), keep)})
                continue
            args = [decode(value, kept.__getitem__) for value in request["args"]]
            before = request["args"]
            kwargs = {name: decode(value, kept.__getitem__) for name, value in request["kwargs"].items()}
            value = encode(DO[request["do"]](*args, **kwargs), keep)
            after = [encode(argument, keep) if isinstance(argument, (list, dict, set)) else None for argument in args]
            changed = {str(i): new for i, new in enumerate(after) if new is not None and new != before[i]}
            answer({"value": value, "changed": changed})
        except Exception as error:
            answer(_raised(error))


def _raised(error):
    known = next(kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    return {"raised": known, "text": f"{error}"[:300], "kind": type(error).__name__}


if __name__ == "__main__":
    main()
