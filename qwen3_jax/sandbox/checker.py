"""Inside the sandbox, in a process of its own: the assertions. The functions that they call lie in another process, whose
answers are data: it can't end this process, change it, or look into it.

Writes one line of JSON to standard output: {"passed": [true, false, ...], "reason": ..., "can": true}.
"""

import builtins
import json
import os
import sys
import types
from typing import Any

from values import Far, decode, encode

MOST = 1 << 24  # characters of one reply


class Ended(BaseException):
    """The program is not there any more. No `except Exception` of a test hides it."""


class CannotSend(BaseException):
    """A test gives the program something that can't leave this process."""


class Failed(Exception):
    """An exception of the program that is no built-in one."""


class Distant(Far):
    """An object of the program: what is done with it is done over there."""

    __hash__ = object.__hash__

    def __call__(self, *args, **kwargs):
        return ask("call", self, *args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return ask("getattr", self, name)

    def __setattr__(self, name, value):
        ask("setattr", self, name, value)

    def __iter__(self):
        iterator = ask("iter", self)
        while True:
            try:
                item = ask("next", iterator)
            except StopIteration:
                return
            yield item

    def __next__(self):
        return ask("next", self)

    def __eq__(self, other):  # an object that says it equals everything equals nothing that was written here
        return isinstance(other, Far) and (self.far_number == other.far_number or ask("eq", self, other) is True)

    def __contains__(self, item):
        return any(item == other for other in self)

    def __bool__(self):
        return ask("bool", self) is True

    def __str__(self):
        return str(ask("str", self))

    def __repr__(self):
        return str(ask("repr", self))


def _forward(name):
    return lambda self, *args: ask(name, self, *args)


def _compare(name):
    def compare(self, other):
        return ask(name, self, other) is True if isinstance(other, Far) else NotImplemented

    return compare


for _name in ("len", "getitem", "setitem", "float", "int"):
    setattr(Distant, f"__{_name}__", _forward(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Distant, f"__{_name}__", _compare(_name))


def ask(do, *args, **kwargs):
    """One request; raises what the program raised."""
    sent = {"do": do, "args": [encode(value, _cannot_send) for value in args]}
    sent["kwargs"] = {name: encode(value, _cannot_send) for name, value in kwargs.items()}
    reply = exchange(sent)
    for place, value in reply.get("changed", {}).items():
        _put_back(args[int(place)], decode(value, Distant))
    return decode(reply["value"], Distant)


def _cannot_send(value):
    raise CannotSend(f"a test gives the program a {type(value).__name__}, which can't leave the process of the tests")


def _put_back(argument, new):
    if isinstance(argument, list) and isinstance(new, list):
        argument[:] = new
    elif isinstance(argument, (dict, set)) and type(new) is type(argument):
        argument.clear()
        argument.update(new)


def exchange(request):
    try:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
    except BrokenPipeError:
        raise Ended from None
    return read()


def read():
    line = replies.readline(MOST)
    if not line.endswith("\n"):
        raise Ended
    reply = json.loads(line)
    if "raised" in reply:
        raise _error(str(reply["raised"]), str(reply["kind"]), str(reply["text"]))
    return reply


def _error(name, kind, text):
    """The built-in exception of this name; never another built-in, whatever the reply says."""
    text = text if kind == name else f"{kind}: {text}"
    builtin = getattr(builtins, name, None)
    if isinstance(builtin, type) and issubclass(builtin, Exception):
        try:
            return builtin(text)
        except TypeError:
            pass  # it takes other arguments
    return Failed(text)


def check(plan):
    """Run the assertions one by one; returns whether each passed, and why the first that did not."""
    names = read()["names"]
    space: dict[str, Any] = {"__name__": "tests"}
    space |= {name: decode(exchange({"do": "name", "name": name})["value"], Distant) for name in names}
    entry = plan["entry_point"]
    if entry is not None:
        if entry not in space:
            return [False], f"the program has no function {entry!r}"
        space["candidate"] = space[entry]
    exec(compile(plan["setup"], "setup", "exec"), space)
    passed, reason = [], None
    for text in plan["assertions"]:
        try:
            exec(compile(text, "assertion", "exec"), space)
            if entry is not None and isinstance(space.get("check"), types.FunctionType):
                space.pop("check")(space[entry])
            passed.append(True)
        except (Ended, CannotSend):
            raise
        except BaseException as error:
            passed.append(False)
            detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            reason = reason or f"{detail[:200]} in {text.strip()[:200]!r}"
            if plan["stop_at_first"]:
                break
    return passed, reason


def main():
    with open("plan.json", encoding="utf-8") as file:
        plan = json.load(file)
    out, sys.stdout = sys.stdout, sys.stderr
    sys.set_int_max_str_digits(0)
    can = True
    try:
        passed, reason = check(plan)
    except CannotSend as error:
        passed, reason, can = [], str(error), False
    except Ended:
        passed, reason = [], "the program ended before its tests did"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        passed, reason = (
            [],
            f"the program could not be loaded, or sent no reply of a known form: {type(error).__name__}: {error}",
        )
    except Exception as error:
        passed, reason = [], f"{type(error).__name__}: {error}"
    print(json.dumps({"passed": passed, "reason": reason, "can": can}), file=out, flush=True)
    os._exit(0)


if __name__ == "__main__":
    replies, requests = (
        os.fdopen(int(text), mode, encoding="utf-8") for text, mode in zip(sys.argv[-2:], "rw", strict=True)
    )
    main()
