"""ToolUse: generated conversations with functions, of one turn, of several turns, and of several steps within a turn.

Source: Qwen3 technical report, section 4.7, table 22: the accuracies of intent, format and parameters; the report publishes no
data. The earlier turns and steps of a conversation are given, so that each problem is one request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks.facts import CAPITALS

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ToolUseOptions:
    """Options of ToolUse.

    Attributes:
        conversations: their number; each is one to three problems.
        seed: of all that is drawn.
    """

    conversations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(vars(self), conversations=whole(1), seed=whole(0))


def _tool(name: str, about: str, required: str, /, **properties: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required.split()}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


def _text(about: str, *values: str) -> dict[str, Any]:
    return {"type": "string", "description": about, **({"enum": list(values)} if values else {})}


TOOLS = {
    tool["function"]["name"]: tool
    for tool in (
        _tool("get_weather", "The weather of a city on a day.", "city day",
              city=_text("Name of the city."), day=_text("Which day.", "today", "tomorrow")),
        _tool("get_stock_price", "The price of a company's share in US dollars.", "company",
              company=_text("Name of the company.")),
        _tool("convert_currency", "Convert an amount of money.", "amount source target",
              amount={"type": "number", "description": "How much."}, source=_text("ISO code of the currency, such as USD."),
              target=_text("ISO code of the currency, such as EUR.")),
        _tool("set_alarm", "Set an alarm.", "hour minute",
              hour={"type": "integer", "description": "0 to 23."}, minute={"type": "integer", "description": "0 to 59."}),
        _tool("find_contact", "Find the email address of a person.", "name", name=_text("Name of the person.")),
        _tool("send_email", "Send an email.", "address subject",
              address=_text("The email address."), subject=_text("The subject line.")),
        _tool("play_music", "Play music of an artist.", "artist", artist=_text("Name of the artist.")),
    )
}  # fmt: skip
_COMPANIES = ("Apple", "Toyota", "Siemens", "Samsung", "Nestle", "Shell", "Sony", "Nokia")
_CURRENCIES = (("euros", "EUR"), ("Japanese yen", "JPY"), ("Swiss francs", "CHF"), ("British pounds", "GBP"))
_NAMES = ("Maria", "Ahmed", "Yuki", "Elena", "David", "Priya", "Lars", "Chen")
_ARTISTS = ("Miles Davis", "The Beatles", "Maria Callas", "Bob Marley", "Daft Punk")
_SUBJECTS = ("Lunch on Friday", "Minutes of the meeting", "Travel plans", "New schedule")
_TALK = (
    "Thank you, that is all for today.", "What is the difference between a simile and a metaphor?",
    "Tell me a joke about cats.", "Write a haiku about autumn.",
)  # fmt: skip


class _Step(NamedTuple):
    """What the model should do next: the calls that are right, what their results are, and what is then said."""

    calls: tuple[tuple[str, dict[str, Any]], ...]
    results: tuple[Any, ...] = ()
    says: tuple[str, ...] = ()


def generate_tool_use(rows: Iterable[Row], options: ToolUseOptions) -> Iterator[Problem]:
    """Conversations in turn of one request, of two turns, and of two steps; the group is which."""
    del rows
    for number in range(options.conversations):
        rng = random.Random(f"tool_use/{options.seed}/{number}")
        kind, make = _KINDS[number % len(_KINDS)]
        for place, (messages, step) in enumerate(make(rng)):
            used = {name for name, _ in step.calls} | _called(messages)
            others = [name for name in TOOLS if name not in used]
            tools = [TOOLS[name] for name in {*used, *rng.sample(sorted(others), min(3, len(others)))}]
            tools.sort(key=lambda tool: str(tool["function"]["name"]))
            reference: dict[str, Any] = {
                "calls": [{"name": name, "arguments": arguments} for name, arguments in step.calls],
                "tools": tools,
            }
            if step.says:
                reference["says"] = list(step.says)
            yield Problem(f"{kind}/{number}/{place}", tuple(messages), reference, tools=tuple(tools), group=kind)


def _called(messages: Iterable[Message]) -> set[str]:
    return {call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _done(step: _Step, serial: int = 0) -> list[Message]:
    """The messages of a step that was made: the assistant's calls and their results."""
    calls = [
        {"id": f"call_{serial}_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(step.calls)
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)}
        for call, result in zip(calls, step.results, strict=True)
    ]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _weather(rng: random.Random) -> tuple[str, str, str, int]:
    city = rng.choice(CAPITALS)[1]
    return (
        city,
        rng.choice(("today", "tomorrow")),
        rng.choice(("sunny", "cloudy", "rainy", "windy")),
        rng.randrange(-5, 35),
    )


def _single_turn(rng: random.Random) -> Iterator[tuple[list[Message], _Step]]:
    """One call, two calls at once, or none."""
    kind = rng.randrange(5)
    city, day, _, _ = _weather(rng)
    if kind == 0:
        hour, minute = rng.randrange(5, 12), rng.choice((5, 10, 20, 30, 45))
        yield (
            [_user(f"Wake me at {hour}:{minute:02d} in the morning.")],
            _Step((("set_alarm", {"hour": hour, "minute": minute}),)),
        )
    elif kind == 1:
        other = rng.choice([name for _, name in CAPITALS if name != city])
        calls = tuple(("get_weather", {"city": name, "day": day}) for name in (city, other))
        yield [_user(f"What will the weather be {day} in {city} and in {other}?")], _Step(calls)
    elif kind == 2:
        amount, (spoken, code) = rng.randrange(10, 900), rng.choice(_CURRENCIES)
        arguments = {"amount": amount, "source": "USD", "target": code}
        yield [_user(f"How much are {amount} US dollars in {spoken}?")], _Step((("convert_currency", arguments),))
    elif kind == 3:
        yield [_user(rng.choice(_TALK))], _Step(())
    else:
        artist = rng.choice(_ARTISTS)
        yield [_user(f"Play something by {artist}, please.")], _Step((("play_music", {"artist": artist}),))


def _multi_turn(rng: random.Random) -> Iterator[tuple[list[Message], _Step]]:
    """A request whose meaning lies in the turn before; then one that needs no function."""
    city, day, sky, degrees = _weather(rng)
    other = rng.choice([name for _, name in CAPITALS if name != city])
    first = _Step((("get_weather", {"city": city, "day": day}),), ({"sky": sky, "celsius": degrees},))
    messages = [_user(f"What is the weather in {city} {day}?")]
    yield list(messages), first
    messages += [*_done(first), {"role": "assistant", "content": f"In {city} it is {sky} {day}, {degrees} degrees."}]
    messages.append(_user(f"And in {other}?"))
    second = _Step((("get_weather", {"city": other, "day": day}),), ({"sky": "cloudy", "celsius": degrees - 3},))
    yield list(messages), second
    messages += [
        *_done(second, 1),
        {"role": "assistant", "content": f"In {other} it is cloudy {day}, {degrees - 3} degrees."},
    ]
    messages.append(
        _user("Which of the two cities is the warmer one? Give its name alone, and do not look it up again.")
    )
    yield messages, _Step((), says=(city,))


def _multi_step(rng: random.Random) -> Iterator[tuple[list[Message], _Step]]:
    """A request that needs a function on the result of another; then the answer."""
    if rng.random() < 0.5:
        company, (spoken, code) = rng.choice(_COMPANIES), rng.choice(_CURRENCIES)
        price, amount = rng.randrange(20, 400), rng.randrange(401, 1000)
        messages = [_user(f"What does a share of {company} cost in {spoken}?")]
        first = _Step((("get_stock_price", {"company": company}),), ({"company": company, "usd": price},))
        arguments = {"amount": price, "source": "USD", "target": code}
        second = _Step((("convert_currency", arguments),), ({"amount": amount, "currency": code},))
        last = _Step((), says=(str(amount),))
    else:
        name, subject = rng.choice(_NAMES), rng.choice(_SUBJECTS)
        address = f"{name.lower()}{rng.randrange(10, 99)}@example.com"
        messages = [_user(f"Send {name} an email with the subject {subject!r}, and tell me the address it went to.")]
        first = _Step((("find_contact", {"name": name}),), ({"name": name, "address": address},))
        second = _Step((("send_email", {"address": address, "subject": subject}),), ({"sent": True},))
        last = _Step((), says=(address,))
    yield list(messages), first
    messages += _done(first)
    yield list(messages), second
    messages += _done(second, 1)
    yield messages, last


_Make = Callable[[random.Random], Iterator[tuple[list[Message], _Step]]]
_KINDS: tuple[tuple[str, _Make], ...] = (
    ("single_turn", _single_turn), ("multi_turn", _multi_turn), ("multi_step", _multi_step),
)  # fmt: skip

TOOL_USE = Task(
    name="tool_use",
    about="functions in one turn, several turns and several steps: intent, format and parameters",
    problems=generate_tool_use,
    verifier="tool_use",
    settings={"loose": True},
    metric="score",
    options=ToolUseOptions,
    reference="Qwen3 technical report, section 4.7",
)
TASKS = (TOOL_USE,)
