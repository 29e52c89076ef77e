"""Tool calls: one, several, none, none that fits, an argument that is missing, and later turns and steps of a conversation."""

from __future__ import annotations

import json
import random
from typing import Any

from qwen3_jax.evaluation.tasks.facts import CAPITALS
from qwen3_jax.evaluation.tasks.tool_use import TOOLS, ToolUseOptions, generate_tool_use
from qwen3_jax.posttraining.general.task import Drawn, GeneralTask, check, matches, user

_UNSEEN = 1_000_000  # seeds of evaluation's generator from here on
Call = tuple[str, dict[str, Any]]

CANNOT = (
    r"\b(?:cannot|can['’]?t|can not|unable|not able|don['’]?t have|do not have|no (?:tool|function|way)|lack|"
    r"isn['’]?t possible|is not possible|not possible|impossible|without)\b|无法|不能|没有"
)
"""Words that say that something cannot be done."""


def written(calls: list[Call]) -> str:
    """Calls as Qwen3 writes them."""
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls
    )


def _offered(
    rng: random.Random, *needed: str, without: tuple[str, ...] = (), count: int = 4
) -> tuple[dict[str, Any], ...]:
    """Tools in random order: those that are needed, and others."""
    others = sorted(set(TOOLS) - set(needed) - set(without))
    names = [*needed, *rng.sample(others, max(0, count - len(needed)))]
    rng.shuffle(names)
    return tuple(TOOLS[name] for name in names)


def _a_call(rng: random.Random) -> tuple[str, Call]:
    """A request, and the call that it needs."""
    kind = rng.randrange(5)
    city, day = rng.choice(CAPITALS)[1], rng.choice(("today", "tomorrow"))
    if kind == 0:
        return f"What is the weather in {city} {day}?", ("get_weather", {"city": city, "day": day})
    if kind == 1:
        hour, minute = rng.randrange(5, 12), rng.choice((5, 10, 20, 30, 45))
        return f"Set an alarm for {hour}:{minute:02d} in the morning.", ("set_alarm", {"hour": hour, "minute": minute})
    if kind == 2:
        amount = rng.randrange(10, 900)
        arguments = {"amount": amount, "source": "USD", "target": "EUR"}
        return f"Convert {amount} US dollars (USD) to euros (EUR).", ("convert_currency", arguments)
    if kind == 3:
        artist = rng.choice(("Miles Davis", "The Beatles", "Maria Callas", "Bob Marley"))
        return f"Play music by {artist}.", ("play_music", {"artist": artist})
    company = rng.choice(("Apple", "Toyota", "Siemens", "Samsung", "Nestle", "Shell"))
    return f"What does a share of {company} cost?", ("get_stock_price", {"company": company})


def _changed(call: Call) -> Call:
    """The call with another value of one argument."""
    name, arguments = call
    key = sorted(arguments)[0]
    value = arguments[key]
    return name, {**arguments, key: value + 1 if isinstance(value, int) else f"{value} x"}


def _reference(calls: list[Call], tools: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {"calls": [{"name": name, "arguments": arguments} for name, arguments in calls], "tools": list(tools)}


def _judged(text: str, calls: list[Call], tools: tuple[dict[str, Any], ...], wrong: list[str]) -> Drawn:
    """All calls must be right: half of them is no half of an answer."""
    checks = [check("tool_calls", _reference(calls, tools), loose=True)]
    return Drawn(user(text), "checks", checks, written(calls), tuple(wrong), tools=tools)


def _one_call(rng: random.Random) -> Drawn:
    text, call = _a_call(rng)
    tools = _offered(rng, call[0])
    other = next(tool["function"]["name"] for tool in tools if tool["function"]["name"] != call[0])
    name, arguments = call
    wrong = [
        "I can do that.", written([_changed(call)]), written([(other, arguments)]), written([call, call]),
        written([(name, dict(list(arguments.items())[1:]))]), written([(name, {**arguments, "note": "x"})]),
        json.dumps({"name": name, "arguments": arguments}), written([call])[:-20],
    ]  # fmt: skip
    return _judged(text, [call], tools, wrong)


def _several_calls(rng: random.Random) -> Drawn:
    day, count = rng.choice(("today", "tomorrow")), rng.randrange(2, 4)
    if rng.random() < 0.5:
        cities = rng.sample([city for _, city in CAPITALS], count)
        calls: list[Call] = [("get_weather", {"city": city, "day": day}) for city in cities]
        text = f"Compare the weather {day} in {', '.join(cities[:-1])} and {cities[-1]}. Ask for all of them at once."
    else:
        companies = rng.sample(("Apple", "Toyota", "Siemens", "Samsung", "Nestle", "Shell"), count)
        calls = [("get_stock_price", {"company": company}) for company in companies]
        text = f"Look up the share prices of {', '.join(companies[:-1])} and {companies[-1]}, all at once."
    wrong = [
        written(calls[:-1]),
        written([*calls[:-1], _changed(calls[-1])]),
        written([*calls, calls[0]]),
        "One moment.",
    ]
    return _judged(text, calls, _offered(rng, calls[0][0]), wrong)


_TALK = (
    ("What is the difference between a simile and a metaphor?", "A simile says that one thing is like another."),
    ("Tell me a joke about cats.", "Why did the cat sit on the clock? It wanted to be on time."),
    ("Write a haiku about autumn.", "Leaves fall on the road. The wind carries them away. Evening comes early."),
    ("Thank you, that is all for today.", "You are welcome."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What does the word harbour mean?", "A harbour is a place where ships lie safe."),
)


def _no_call(rng: random.Random) -> Drawn:
    text, answer = rng.choice(_TALK)
    tools = _offered(rng)
    called: Call = _a_call(rng)[1]
    checks = [check("tool_calls", {"calls": [], "tools": list(tools)}), check("length", {"min": 2}, unit="words")]
    wrong = ("", written([called]), f"{answer}\n{written([called])}")
    return Drawn(user(text), "checks", checks, answer, wrong, tools=tools)


def _unfit_tools(rng: random.Random) -> Drawn:
    """No tool that is offered does what is asked: none must be called, and the answer must say so."""
    text, call = _a_call(rng)
    tools = _offered(rng, without=(call[0],), count=3)
    name = tools[0]["function"]["name"]
    said = {
        "get_weather": r"weather", "set_alarm": r"alarm", "convert_currency": r"conver|currenc|exchange|euro",
        "play_music": r"music|play", "get_stock_price": r"price|share|stock",
    }[call[0]]  # fmt: skip
    checks = [check("tool_calls", {"calls": [], "tools": list(tools)}), matches(CANNOT), matches(said)]
    subject = {"get_weather": "look up the weather", "set_alarm": "set an alarm", "convert_currency": "convert currencies",
               "play_music": "play music", "get_stock_price": "look up the price of a share"}[call[0]]  # fmt: skip
    wrong = (
        "", written([call]), written([(name, call[1])]), "Done.", "I cannot answer.", f"I will {subject} now.",
        f"I cannot {subject}.\n{written([(name, {})])}",
    )  # fmt: skip
    ask = f"{text} Use the functions that you have for it; if none fits, say what you cannot do, and guess nothing."
    return Drawn(user(ask), "checks", checks, f"I cannot {subject} with the functions that I have.", wrong, tools=tools)


_INCOMPLETE = (
    ("get_weather", "What will the weather be tomorrow?", r"city|where|place|location|town", "For which city?"),
    ("set_alarm", "Set an alarm, please.", r"time|when|hour|o'clock", "At what time shall the alarm ring?"),
    (
        "convert_currency",
        "Convert 50 US dollars (USD) for me.",
        r"currency|into what|to what|which",
        "Into which currency?",
    ),
    (
        "send_email",
        "Send an email with the subject 'Lunch on Friday'.",
        r"address|whom|who|recipient",
        "To which address?",
    ),
    ("get_stock_price", "What does a share cost?", r"company|which|whose", "Of which company?"),
    ("play_music", "Play some music of that artist.", r"artist|who|which", "Which artist do you mean?"),
)


def _missing_argument(rng: random.Random) -> Drawn:
    """A required argument is not known: the answer must ask for it and call nothing."""
    name, text, about, question = rng.choice(_INCOMPLETE)
    guesses: dict[str, dict[str, Any]] = {
        "get_weather": {"city": "Paris", "day": "tomorrow"}, "set_alarm": {"hour": 7, "minute": 0},
        "convert_currency": {"amount": 50, "source": "USD", "target": "EUR"}, "get_stock_price": {"company": "Apple"},
        "send_email": {"address": "a@example.com", "subject": "Lunch on Friday"}, "play_music": {"artist": "The Beatles"},
    }  # fmt: skip
    tools = _offered(rng, name)
    checks = [check("tool_calls", {"calls": [], "tools": list(tools)}), matches("[?？]"), matches(about)]
    wrong = (
        "", written([(name, guesses[name])]), written([(name, {})]), f"{question}\n{written([(name, guesses[name])])}", "Done.",
        "What?", question.replace("?", "."),
    )  # fmt: skip
    ask = f"{text} If something is missing for it, ask me instead of guessing."
    return Drawn(user(ask), "checks", checks, question, wrong, tools=tools)


def _tool_turns(rng: random.Random) -> Drawn:
    """A later turn or step of a conversation of the evaluation's ToolUse; all of it must be right."""
    options = ToolUseOptions(conversations=3, seed=_UNSEEN + rng.randrange(10**9))
    problems = [one for one in generate_tool_use((), options) if one.group != "single_turn"]
    problem = rng.choice(problems)
    assert isinstance(problem.prompt, tuple)
    reference = problem.reference
    calls = [(call["name"], call["arguments"]) for call in reference["calls"]]
    tools = problem.tools
    if calls:
        right, wrong = written(calls), ["It is done.", written([_changed(calls[0])]), written([*calls, *calls])]
    else:
        right = f"The answer is {' and '.join(reference['says'])}."
        wrong = ["", "I do not know.", written([("play_music", {"artist": "Daft Punk"})])]
    checks = [{"verifier": "tool_use", "reference": reference, "settings": {"loose": True}}]
    return Drawn(problem.prompt, "checks", checks, right, tuple(wrong), tools=tools)


TASKS = (
    GeneralTask("tool_one", "one call, with the right function and arguments", _one_call),
    GeneralTask("tool_several", "several calls at once", _several_calls),
    GeneralTask("tool_none", "functions are offered, and none is needed", _no_call),
    GeneralTask("tool_unfit", "no function fits: say so and call none", _unfit_tools),
    GeneralTask("tool_ask", "an argument is missing: ask for it", _missing_argument),
    GeneralTask("tool_turns", "later turns and steps (conversations of the evaluation's ToolUse)", _tool_turns),
)
