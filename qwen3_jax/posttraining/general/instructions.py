"""Instructions about words, case, structure, beginning and end, and length: those of IFEval, drawn anew, and LengthCtrl's.

Several instructions are judged together: an answer is right if it follows all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from qwen3_jax.evaluation.tasks.conversations import LengthOptions, generate_length_ctrl
from qwen3_jax.evaluation.tasks.words import ADJECTIVES, NOUNS, PEOPLE
from qwen3_jax.posttraining.general.formats import THINGS, a
from qwen3_jax.posttraining.general.task import Drawn, GeneralTask, check, instruction, user

_UNSEEN = 1_000_000  # seeds of evaluation's generators from here on: an evaluation asks other problems


class _Rule(NamedTuple):
    """An instruction: its check, how it is said, how a text is made to follow it, and texts that break it and no other."""

    check: dict[str, Any]
    said: str
    follow: Callable[[str], str]
    breaks: tuple[str, ...]


_PLAIN = "the {noun} stands near the house and many people like it because it is useful every day of the year."


def _topic(rng: random.Random) -> tuple[str, str]:
    """A request for a text, and a text that answers it: without commas, in small letters."""
    noun = rng.choice(THINGS)
    ask = rng.choice(
        ("Describe {}.", "Write a short text about {}.", "Tell me something about {}.", "Explain what {} is for.")
    )
    return ask.format(a(noun)), _PLAIN.format(noun=noun)


def _keywords(rng: random.Random, text: str) -> _Rule:
    some = ("window", "seven", "copper", "harvest", "winter", "quietly", "friendship", "market")
    words = rng.sample(some, rng.randrange(1, 4))
    listed = ", ".join(words)
    return _Rule(
        instruction("keywords:existence", keywords=words), f"Use the words {listed}.",
        lambda written: f"{written[:-1]} {' '.join(words)}.", (text,),
    )  # fmt: skip


def _forbidden(rng: random.Random, text: str) -> _Rule:
    words = rng.sample(("very", "really", "good", "thing", "important", "great"), rng.randrange(1, 3))
    return _Rule(
        instruction("keywords:forbidden_words", forbidden_words=words), f"Do not use the words {' and '.join(words)}.",
        lambda written: written, (f"{text[:-1]} {words[0]}.", f"{text[:-1]} {words[-1].upper()}."),
    )  # fmt: skip


def _frequency(rng: random.Random, text: str) -> _Rule:
    word, count = rng.choice(("stone", "light", "silver")), rng.randrange(2, 5)
    return _Rule(
        instruction("keywords:frequency", keyword=word, frequency=count, relation="at least"),
        f"Use the word {word} at least {count} times.",
        lambda written: f"{written[:-1]} {' '.join([word] * count)}.",
        (text, f"{text[:-1]} {' '.join([word] * (count - 1))}."),
    )  # fmt: skip


def _letter(rng: random.Random, text: str) -> _Rule:
    letter, count = rng.choice("zqx"), rng.randrange(3, 7)
    return _Rule(
        instruction("keywords:letter_frequency", letter=letter, let_frequency=count, let_relation="at least"),
        f"Let the letter {letter} occur at least {count} times.",
        lambda written: f"{written[:-1]} {letter * count}.", (text.replace(letter, ""),),
    )  # fmt: skip


def _no_comma(rng: random.Random, text: str) -> _Rule:
    del rng
    return _Rule(
        instruction("punctuation:no_comma"),
        "Use no commas.",
        lambda written: written,
        (text.replace(" and", ", and", 1),),
    )


def _lowercase(rng: random.Random, text: str) -> _Rule:
    del rng
    return _Rule(
        instruction("change_case:english_lowercase"), "Write in English and in small letters only.", str.lower,
        (text[0].upper() + text[1:], text.upper()),
    )  # fmt: skip


def _uppercase(rng: random.Random, text: str) -> _Rule:
    del rng
    return _Rule(
        instruction("change_case:english_capital"), "Write in English and in capital letters only.", str.upper,
        (text, text.upper()[:-2] + text[-2:]),
    )  # fmt: skip


def _title(rng: random.Random, text: str) -> _Rule:
    title = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    return _Rule(
        instruction("detectable_format:title"), "Give the text a title in double angular brackets, as <<title>>.",
        lambda written: f"<<{title}>>\n{written}", (text, f"<{title}>\n{text}", f"<<>>\n{text}"),
    )  # fmt: skip


def _placeholders(rng: random.Random, text: str) -> _Rule:
    count = rng.randrange(2, 5)
    places = [f"[{name}]" for name in ("name", "date", "place", "price")[:count]]
    return _Rule(
        instruction("detectable_content:number_placeholders", num_placeholders=count),
        f"Leave at least {count} places open, each in square brackets, as [address].",
        lambda written: f"{written}\n{' '.join(places)}", (text, f"{text}\n{' '.join(places[:-1])}"),
    )  # fmt: skip


def _postscript(rng: random.Random, text: str) -> _Rule:
    marker = rng.choice(("P.S.", "P.P.S"))
    return _Rule(
        instruction("detectable_content:postscript", postscript_marker=marker),
        f"Add a postscript at the end that begins with {marker}", lambda written: f"{written}\n{marker} write soon", (text,),
    )  # fmt: skip


def _highlights(rng: random.Random, text: str) -> _Rule:
    count = rng.randrange(1, 4)
    marked = " ".join(f"*part {name}*" for name in ("one", "two", "three")[:count])
    fewer = " ".join(f"*part {name}*" for name in ("one", "two", "three")[: count - 1])
    return _Rule(
        instruction("detectable_format:number_highlighted_sections", num_highlights=count),
        f"Highlight at least {count} parts with asterisks, as *highlighted part*.",
        lambda written: f"{written} {marked}", (text, f"{text} {fewer}"),
    )  # fmt: skip


def _sections(rng: random.Random, text: str) -> _Rule:
    name, count = rng.choice(("Section", "Part", "Chapter")), rng.randrange(2, 4)
    return _Rule(
        instruction("detectable_format:multiple_sections", section_spliter=name, num_sections=count),
        f"Divide the text into {count} parts, each of which begins with a line `{name} 1`, `{name} 2` and so on.",
        lambda written: "\n".join(f"{name} {i}\n{written}" for i in range(1, count + 1)),
        (text, f"{name} 1\n{text}", f"{name} one\n{text}\n{name} two\n{text}\n{name} three\n{text}"),
    )  # fmt: skip


def _ending(rng: random.Random, text: str) -> _Rule:
    phrase = rng.choice(("that is all there is to say", "ask me again any time", "and so the day ends"))
    return _Rule(
        instruction("startend:end_checker", end_phrase=phrase),
        f"End with exactly these words and nothing after them: {phrase}",
        lambda written: f"{written}\n{phrase}", (text, f"{text}\n{phrase} goodbye", f"{phrase}\n{text}"),
    )  # fmt: skip


def _quotation(rng: random.Random, text: str) -> _Rule:
    del rng
    return _Rule(
        instruction("startend:quotation"), "Put the whole answer into double quotation marks.",
        lambda written: f'"{written}"', (text, f'"{text}', f"'{text}'"),
    )  # fmt: skip


def _repeat(rng: random.Random, text: str) -> _Rule:
    line = f"question {rng.randrange(10, 1000)} about {a(rng.choice(THINGS))}"
    return _Rule(
        instruction("combination:repeat_prompt", prompt_to_repeat=line), f"Begin with this line, word for word: {line}",
        lambda written: f"{line}\n{written}", (text, f"here it is: {line}\n{text}", f"{text}\n{line}"),
    )  # fmt: skip


_Make = Callable[[random.Random, str], _Rule]
_WORDS: tuple[_Make, ...] = (_keywords, _forbidden, _frequency, _letter, _no_comma)
_CASE: tuple[_Make, ...] = (_lowercase, _uppercase)
_STRUCTURE: tuple[_Make, ...] = (_title, _placeholders, _postscript, _highlights, _sections)
_ENDS: tuple[_Make, ...] = (_ending, _quotation, _repeat)


def _one_rule(makes: tuple[_Make, ...], rng: random.Random) -> Drawn:
    ask, text = _topic(rng)
    rule = rng.choice(makes)(rng, text)
    return Drawn(user(f"{ask} {rule.said}"), "checks", [rule.check], rule.follow(text), ("", *rule.breaks))


def _word_rules(rng: random.Random) -> Drawn:
    return _one_rule(_WORDS, rng)


def _case_rules(rng: random.Random) -> Drawn:
    return _one_rule(_CASE, rng)


def _structure_rules(rng: random.Random) -> Drawn:
    return _one_rule(_STRUCTURE, rng)


def _start_and_end_rules(rng: random.Random) -> Drawn:
    return _one_rule(_ENDS, rng)


def _several_rules(rng: random.Random) -> Drawn:
    """One rule about words, one about structure and one about the end; a text that follows all but one is wrong."""
    ask, text = _topic(rng)
    makes = [rng.choice(_WORDS), rng.choice((_title, _placeholders, _highlights)), _ending]
    rules = [make(rng, text) for make in makes[: rng.randrange(2, 4)]]
    right, wrong = text, [""]
    for rule in rules:
        right = rule.follow(right)
    for left_out in rules:
        written = left_out.breaks[0]
        for rule in rules:
            written = rule.follow(written) if rule is not left_out else written
        wrong.append(written)
    said = " ".join(rule.said for rule in rules)
    return Drawn(user(f"{ask} {said}"), "checks", [rule.check for rule in rules], right, tuple(wrong))


def _length_words(rng: random.Random) -> Drawn:
    """A problem of LengthCtrl; see `qwen3_jax.evaluation.tasks`."""
    options = LengthOptions(problems=5, seed=_UNSEEN + rng.randrange(10**9))
    problem = list(generate_length_ctrl((), options))[rng.randrange(5)]
    assert isinstance(problem.prompt, tuple)
    reference = problem.reference
    low, high = (reference["min"], reference["max"]) if isinstance(reference, dict) else (reference, reference)
    unit = "word " if problem.settings["unit"] == "words" else "It goes on. "
    written = (unit * ((low + high + 1) // 2)).strip()
    return Drawn(
        problem.prompt, problem.verifier or "length", reference, written, ("", (unit * (3 * high)).strip()),
        settings=dict(problem.settings),
    )  # fmt: skip


def _length_limit(rng: random.Random) -> Drawn:
    """At most, or exactly, a number of words, sentences, lines or paragraphs; what is more is wrong, not half right."""
    noun, unit = rng.choice(THINGS), rng.choice(("words", "sentences", "lines", "paragraphs"))
    count = rng.randrange(12, 60) if unit == "words" else rng.randrange(2, 7)
    exactly = rng.random() < 0.4
    bounds = {"min": count if exactly else 1, "max": count}
    text = f"Describe {a(noun)} in {'exactly' if exactly else 'at most'} {count} {unit}."

    def written(units: int) -> str:
        if units == 0:
            return ""
        if unit == "words":
            return " ".join((["It", "is", a(noun).split()[0], noun] * units)[:units])
        return {"sentences": " ", "lines": "\n", "paragraphs": "\n\n"}[unit].join([f"It is {a(noun)}."] * units)

    wrong = ["", written(count + 1), written(3 * count), *([written(count - 1)] if exactly else [])]
    return Drawn(user(text), "checks", [check("length", bounds, unit=unit)], written(count), tuple(wrong))


_LANGUAGES = {
    "de": ("German", "Heute ist das Wetter sehr schön und wir gehen zusammen in den Garten hinter dem Haus."),
    "fr": ("French", "Aujourd'hui il fait très beau et nous allons ensemble dans le jardin derrière la maison."),
    "es": ("Spanish", "Hoy hace muy buen tiempo y vamos juntos al jardín que está detrás de la casa."),
    "it": ("Italian", "Oggi il tempo è molto bello e andiamo insieme nel giardino dietro la casa."),
    "pt": ("Portuguese", "Hoje o tempo está muito bonito e vamos juntos para o jardim atrás da casa."),
    "nl": ("Dutch", "Vandaag is het weer heel mooi en we gaan samen naar de tuin achter het huis."),
    "pl": ("Polish", "Dzisiaj pogoda jest bardzo ładna i idziemy razem do ogrodu za domem."),
    "tr": ("Turkish", "Bugün hava çok güzel ve birlikte evin arkasındaki bahçeye gidiyoruz."),
    "ru": ("Russian", "Сегодня очень хорошая погода, и мы вместе идём в сад за домом."),
    "ar": ("Arabic", "الطقس جميل جدا اليوم ونذهب معا إلى الحديقة خلف المنزل."),
    "ja": ("Japanese", "今日はとても良い天気なので、一緒に家の裏の庭へ行きます。"),
    "ko": ("Korean", "오늘은 날씨가 아주 좋아서 우리는 함께 집 뒤의 정원으로 갑니다."),
    "zh": ("Chinese", "今天天气很好，我们一起去房子后面的花园。"),
    "vi": ("Vietnamese", "Hôm nay thời tiết rất đẹp và chúng tôi cùng nhau đi ra khu vườn phía sau nhà."),
}


def _answer_language(rng: random.Random) -> Drawn:
    """The language by name, or that of the question; told by langdetect and by script."""
    code = rng.choice(sorted(_LANGUAGES))
    name, text = _LANGUAGES[code]
    ask = f"{rng.choice(('Describe', 'Say something about', 'Write two sentences about'))} {a(rng.choice(THINGS))}."
    asked = rng.choice(
        (f"{ask} Answer in {name}.", f"Answer in {name}: {ask}", f"{ask} Your answer must be in {name} only.")
    )
    detected = {"zh": "zh-cn"}.get(code, code)
    checks = [check("language", code), instruction("language:response_language", language=detected)]
    others = [words for other, (_, words) in _LANGUAGES.items() if other != code]
    english = "Today the weather is very good, and we go to the garden behind the house together."
    return Drawn(user(asked), "checks", checks, text, (english, *rng.sample(others, 3)))


_RULES = (
    ("Begin every answer with the word {start}.", "start"),
    ("End every answer with the words {end}", "end"),
    ("Never use the word I.", "no_i"),
    ("Never ask the user anything: write no question mark.", "no_question"),
    ("Answer in one line.", "one_line"),
)


def _persona(rng: random.Random) -> Drawn:
    """A part to play, in a system message, whose rules a program can check; they hold in later turns too."""
    who, start = rng.choice(
        (("a pirate", "Ahoy"), ("a butler", "Certainly"), ("a robot", "Beep"), ("a knight", "Hark"))
    )
    end = rng.choice(("at your service.", "over and out.", "so it is written."))
    chosen = rng.sample(_RULES, rng.randrange(2, 5))
    names = {name for _, name in chosen}
    system = f"You are {who}. " + " ".join(text.format(start=start, end=end) for text, _ in chosen)
    patterns = {
        "start": rf"(?si){start}\b.*", "end": rf"(?si).*{end[:-1]}[.!]?", "no_i": r"(?s)(?!.*\bI\b).+",
        "no_question": r"[^?？]+", "one_line": r"[^\n]+",
    }  # fmt: skip
    checks = [check("regex", patterns[name]) for _, name in chosen] + [check("regex", r"(?s).*\w.*")]
    first = f"{start}, all is well here, {end}"
    turns = ["How are you?", first, f"Tell me about {a(rng.choice(THINGS))}."] if rng.random() < 0.5 else [
        f"Tell me about {a(rng.choice(THINGS))}."
    ]  # fmt: skip
    right = f"{start}, it is a fine thing, {end}"
    breaks = {
        "start": f"It is a fine thing, {end}", "end": f"{start}, it is a fine thing.",
        "no_i": f"{start}, I say it is fine, {end}",
        "no_question": f"{start}, is it not fine? Yes, {end}", "one_line": f"{start}, it is\na fine thing, {end}",
    }  # fmt: skip
    messages = ({"role": "system", "content": system}, *(
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)
    ))  # fmt: skip
    return Drawn(messages, "checks", checks, right, ("", *(breaks[name] for name in sorted(names))))


def _audience(rng: random.Random) -> str:
    return f"for {a(rng.choice(PEOPLE))}"


def _word_ban(rng: random.Random) -> Drawn:
    """A description that must not name its thing."""
    noun = rng.choice(THINGS)
    text = f"Write a riddle {_audience(rng)} whose solution is {noun}. Do not use the word {noun}, nor a word that holds it."
    right = "What am I? Many have seen me, and few have asked my name."
    wrong = (f"What am I? I am {a(noun)}.", f"What am I? They call me {noun}s.", f"{noun.upper()}? What am I?", "")
    checks = [check("regex", rf"(?is)(?!.*{noun}).*"), check("length", {"min": 5, "max": 200})]
    return Drawn(user(text), "checks", checks, right, wrong)


TASKS = (
    GeneralTask("word_rules", "words that must or must not occur, letters, commas", _word_rules),
    GeneralTask("case_rules", "small or capital letters only", _case_rules),
    GeneralTask("structure_rules", "titles, placeholders, postscripts, highlights, sections", _structure_rules),
    GeneralTask("start_and_end_rules", "how an answer begins and ends", _start_and_end_rules),
    GeneralTask("several_rules", "two or three instructions at once", _several_rules),
    GeneralTask("length_ctrl", "creative writing of a length (problems of the evaluation's LengthCtrl)", _length_words),
    GeneralTask("length_limit", "at most or exactly a number of words, sentences, lines, paragraphs", _length_limit),
    GeneralTask("answer_language", "an answer in a language that is named", _answer_language),
    GeneralTask("persona", "a part to play with rules, over turns", _persona),
    GeneralTask("word_ban", "a riddle that does not name its solution", _word_ban),
)
