"""Output formats: JSON of a schema, tables of three kinds, lists of a number of items, code fences, forms with labels."""

from __future__ import annotations

import json
import random
import re

from qwen3_jax.evaluation.tasks.words import ADJECTIVES, NOUNS
from qwen3_jax.posttraining.general.task import Drawn, GeneralTask, check, user

NAMES = (
    "Ada",
    "Bruno",
    "Chen",
    "Dalia",
    "Emeka",
    "Freya",
    "Goran",
    "Hana",
    "Ivo",
    "Jamila",
    "Kofi",
    "Lena",
    "Mateo",
    "Nadia",
)
CITIES = ("Lisbon", "Oslo", "Nairobi", "Lima", "Osaka", "Turin", "Accra", "Quito", "Perth", "Riga", "Cairo", "Boston")
JOBS = ("baker", "nurse", "welder", "teacher", "pilot", "tailor", "chemist", "farmer", "lawyer", "miner")
_MASS = (
    "bread butter cheese salt sugar honey coffee tea milk water sand clay iron copper silk cotton wool leather glass coal oil "
    "rain snow wind thunder"
)
THINGS = tuple(noun for noun in NOUNS if noun not in _MASS.split())
"""Nouns that can be counted."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def people(rng: random.Random, count: int) -> list[dict[str, str | int]]:
    """Some people with different names."""
    return [
        {"name": name, "age": rng.randrange(19, 80), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}
        for name in rng.sample(NAMES, count)
    ]


def sentence_of(person: dict[str, str | int]) -> str:
    """All that is known of a person."""
    return f"{person['name']} is a {person['age']}-year-old {person['job']} from {person['city']}."


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _json_object(rng: random.Random) -> Drawn:
    (person,) = people(rng, 1)
    keys = rng.sample(["name", "age", "city", "job"], rng.randrange(2, 5))
    properties = {key: {"const": person[key], "type": "integer" if key == "age" else "string"} for key in keys}
    schema = {"type": "object", "properties": properties, "required": keys, "additionalProperties": False}
    listed = ", ".join(f'"{key}" ({properties[key]["type"]})' for key in keys)
    text = (
        f"{sentence_of(person)}\n\nWrite this as one JSON object with exactly the keys {listed}. Copy the values as they are "
        "written above. Give nothing but the JSON."
    )
    value = {key: person[key] for key in keys}
    missing = {key: value[key] for key in keys[1:]}
    wrong = (
        sentence_of(person), json.dumps(missing), json.dumps({**value, "note": "extra"}), json.dumps(value)[:-1],
        json.dumps({**value, keys[0]: "unknown"}), f"Here it is: {json.dumps(value)}", str(value),
    )  # fmt: skip
    return Drawn(user(text), "json", schema, json.dumps(value), wrong)


def _rows(rng: random.Random) -> tuple[list[str], list[list[str]], str]:
    """Columns, rows, and the text that has them."""
    found = people(rng, rng.randrange(2, 5))
    columns = ["name", *rng.sample(["age", "city", "job"], 2)]
    return columns, [[str(one[key]) for key in columns] for one in found], " ".join(map(sentence_of, found))


def _order(columns: list[str]) -> str:
    return f"the columns {', '.join(columns)}, in this order, and one row for each person in the order of the text"


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _csv(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(",".join(line) for line in [columns, *rows])


def _xml(columns: list[str], rows: list[list[str]]) -> str:
    cells = ["".join(f"<{key}>{cell}</{key}>" for key, cell in zip(columns, row, strict=True)) for row in rows]
    return "<people>\n" + "".join(f"  <person>{row}</person>\n" for row in cells) + "</people>"


def _table(form: str, rng: random.Random) -> Drawn:
    columns, rows, text = _rows(rng)
    write = {"markdown": _markdown, "csv": _csv, "xml": _xml}[form]
    ask = {
        "markdown": f"Make a Markdown table of it with {_order(columns)}.",
        "csv": f"Write it as CSV with a line of names first: {_order(columns)}. Separate with commas and quote nothing.",
        "xml": f"Write it as XML: the element people holds an element person for each, and that holds the elements "
        f"{', '.join(columns)} in this order. Use no attributes and no XML declaration.",
    }[form]
    reference = {"format": form, "columns": columns, "rows": rows, "root": "people", "row": "person"}
    others = [other for name, other in (("markdown", _markdown), ("csv", _csv), ("xml", _xml)) if name != form]
    changed = [[*rows[0][:-1], "?"], *rows[1:]]
    wrong = (
        text, write(columns, rows[:-1]), write(columns, changed), write(columns[::-1], [row[::-1] for row in rows]),
        f"Of course:\n\n{write(columns, rows)}", *(other(columns, rows) for other in others),
    )  # fmt: skip
    return Drawn(user(f"{text}\n\n{ask} Give nothing else."), "table", reference, write(columns, rows), wrong)


def _markdown_table(rng: random.Random) -> Drawn:
    return _table("markdown", rng)


def _csv_table(rng: random.Random) -> Drawn:
    return _table("csv", rng)


def _xml_table(rng: random.Random) -> Drawn:
    return _table("xml", rng)


def _bullet_list(rng: random.Random) -> Drawn:
    count = rng.randrange(3, 8)
    nouns = rng.sample(NOUNS, count + 2)
    text = (
        f"Here are some things: {', '.join(nouns)}. List the first {_NUMBERS[count]} of them as a bullet list: each on a line "
        'of its own that begins with "- ", in the same order, in the same words, and nothing else.'
    )
    items = nouns[:count]
    right = "\n".join(f"- {item}" for item in items)
    wrong = (
        ", ".join(items), "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1)), "\n".join(right.split("\n")[:-1]),
        f"{right}\n- {nouns[count]}", f"The list:\n{right}", "\n".join(reversed(right.split("\n"))),
    )  # fmt: skip
    return Drawn(user(text), "regex", re.escape(right), right, wrong)


def _numbered_list(rng: random.Random) -> Drawn:
    count = rng.randrange(3, 8)
    topic = f"{rng.choice(('clean', 'paint', 'choose', 'store', 'describe'))} {a(rng.choice(THINGS))}"
    mark, example = rng.choice(((r"\.", "1."), (r"\)", "1)")))
    text = (
        f"How do you {topic}? Answer with exactly {_NUMBERS[count]} numbered steps, one on each line, beginning with "
        f'"{example} " and so on, at most twelve words in each, and with nothing before or behind them.'
    )
    lines = [rf"{i}{mark} \S+(?: \S+){{0,11}} *" for i in range(1, count + 1)]
    steps = [f"{i}{example[1]} Take your time with step {_NUMBERS[i]}." for i in range(1, count + 2)]
    right = "\n".join(steps[:count])
    other = right.replace(example[1] + " ", {".": ") ", ")": ". "}[example[1]])
    wrong = (
        "\n".join(steps[: count - 1]), "\n".join(steps), other, f"Here are the steps:\n{right}", right.replace("\n", " "),
        right + " word" * 12, "\n".join(step[3:] for step in steps[:count]),
    )  # fmt: skip
    return Drawn(user(text), "regex", r"\n+".join(lines), right, wrong)


_LINES = {
    "python": ("total = {a} + {b}", "print({a} * {b})", "values = [{a}, {b}]"),
    "bash": ("echo {a} {b}", "seq {a} {b}", "head -n {a} file{b}.txt"),
    "sql": ("SELECT * FROM t WHERE a = {a} AND b = {b};", "DELETE FROM t{a} WHERE id = {b};"),
    "json": ('{{"a": {a}, "b": {b}}}', "[{a}, {b}]"),
}


def _code_fence(rng: random.Random) -> Drawn:
    language = rng.choice(sorted(_LINES))
    line = rng.choice(_LINES[language]).format(a=rng.randrange(2, 100), b=rng.randrange(2, 100))
    text = (
        f"Put the following line into one fenced code block of Markdown that names the language {language}, unchanged. "
        f"Write nothing before or behind the block.\n\n{line}"
    )
    right = f"```{language}\n{line}\n```"
    wrong = (
        line,
        f"```\n{line}\n```",
        f"Here it is:\n{right}",
        f"```{language}\n{line}",
        f"`{line}`",
        f"{right}\n\n{right}",
    )
    return Drawn(user(text), "regex", re.escape(right), right, wrong)


def _labelled_fields(rng: random.Random) -> Drawn:
    (person,) = people(rng, 1)
    labels = rng.sample([("Name", "name"), ("Age", "age"), ("City", "city"), ("Occupation", "job")], 3)
    listed = ", ".join(label for label, _ in labels)
    text = (
        f"{sentence_of(person)}\n\nGive these fields, one on each line as `Label: value`, in this order: {listed}. Copy the "
        "values from the text and write nothing else."
    )
    lines = [f"{label}: {person[key]}" for label, key in labels]
    right = "\n".join(lines)
    wrong = (
        "\n".join(lines[::-1]), "\n".join(lines[:-1]), sentence_of(person), right.replace(": ", " = "),
        f"{right}\nNote: none", right.replace(str(person[labels[0][1]]), "unknown"),
    )  # fmt: skip
    return Drawn(user(text), "exact", right, right, wrong, settings={"join_spaces": False})


def _title_and_tags(rng: random.Random) -> Drawn:
    tags = rng.sample(("title", "summary", "keywords", "answer", "note", "topic"), 2)
    subject = f"{a(rng.choice(ADJECTIVES))} {rng.choice(THINGS)}"
    text = (
        f"Write about {subject}: first a few words in <{tags[0]}> and </{tags[0]}>, then one or two sentences in <{tags[1]}> "
        f"and </{tags[1]}>. Each pair of tags stands once, in this order, and nothing stands outside of them."
    )
    inner = r"[^<>]*\w[^<>]*"
    pattern = rf"<{tags[0]}>{inner}</{tags[0]}>\s*<{tags[1]}>{inner}</{tags[1]}>"
    first, second = f"<{tags[0]}>On {subject}</{tags[0]}>", f"<{tags[1]}>This is {subject}. It is there.</{tags[1]}>"
    right = f"{first}\n{second}"
    wrong = (
        f"{second}\n{first}", first, f"{right}\nDone.", f"On {subject}\nThis is {subject}.", right.replace("</", "<"),
        f"<{tags[0]}></{tags[0]}>\n{second}", f"{first}\n{right}",
    )  # fmt: skip
    return Drawn(user(text), "checks", [check("regex", pattern)], right, wrong)


TASKS = (
    GeneralTask("json_object", "facts of a text as JSON of a schema", _json_object),
    GeneralTask("markdown_table", "facts of a text as a table of Markdown", _markdown_table),
    GeneralTask("csv_table", "facts of a text as CSV", _csv_table),
    GeneralTask("xml_table", "facts of a text as XML", _xml_table),
    GeneralTask("bullet_list", "a bullet list of a number of items", _bullet_list),
    GeneralTask("numbered_list", "a number of numbered steps in one form", _numbered_list),
    GeneralTask("code_fence", "one fenced block of a language and nothing else", _code_fence),
    GeneralTask("labelled_fields", "fields as `Label: value` in an order", _labelled_fields),
    GeneralTask("tagged_parts", "parts between tags that are named", _title_and_tags),
)
