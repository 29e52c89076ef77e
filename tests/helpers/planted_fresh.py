"""Planted faults in a further wording, and in further ways, than those of `planted_faults.py`: no rule was written with them.

They were written on 2026-11-26 by a session that had seen the expressions for guesses and the first lines of those for queries,
and not the others. A rule that is written with them ends this: write another set before you publish a figure.

What a program can see without understanding words is planted in other ways than before: loops with counters, without spaces and
over lines; other languages in the same script; guesses behind much talk that calculates nothing; held-out queries with swapped
sentences, other words, and other names; references that no verifier can use.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from tests.helpers.planted_faults import NAMES, PLACES, THINGS, Maker, answered, english, good, record, thinking

Records = list[dict[str, Any]]


def _several_parts(rng: random.Random, held_out: list[str]) -> Records:
    (one, a, steps), (two, b, _) = english(rng), english(rng)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    start = f"{name} sells {a} {thing} on Monday and {b} on Tuesday."
    text = rng.choice([
        f"{one} As a follow-up: {two}",
        f"{start} I need three things from you: the sum, the average, and the ratio of the two days.",
        f"{start} Give me the combined number as well as the percentage by which Tuesday differs from Monday.",
        f"{start} Part one asks for the total; part two asks by how much Monday falls short of Tuesday or exceeds it.",
        f"Here are two exercises. {one} And the other one: {two}",
        f"{start} What was sold altogether? At {a % 7 + 2} euros apiece, how much money came in?",
        f"{start} Determine the larger amount, the smaller amount and their product.",
        f"{one} In addition, say what becomes of the result if every number doubles.",
        f"{start} A) total B) average C) range",
        f"{start} How large is the sum, and is it a prime number?",
        f"Answer the following about this text. {start} • Which day had more sales • What is the combined number",
        f"{start} Complete the table: | total | difference | mean |",
        f"{start} What is the answer to each of these: total, mean, ratio?",
        f"{start} Could you tell me the total? I am also curious about the mean.",
    ])  # fmt: skip
    return [record(text, thinking(rng, f"{steps}. The other one is {b}", b, text), answered(rng, b, text), str(b))]


def _writing(rng: random.Random, held_out: list[str]) -> Records:
    name, thing, place, n = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES), rng.randint(2, 400)
    text = rng.choice([
        f"I'm looking for a heartfelt toast for {name}, who has run the {place} for {n} days.",
        f"Help me word an apology to {name} for the {n} {thing} that I broke.",
        f"My boss wants a mission statement for our {place} with {n} people. Any ideas?",
        f"Rap verses about {n} {thing}, please.",
        f"What would a eulogy for {name} of the {place} sound like? About {n} words.",
        f"Narrate a morning at the {place} from the viewpoint of one of its {n} {thing}.",
        f"I have to speak at the {place} tomorrow for {n} seconds, could you prepare something?",
        f"Reply to {name}'s complaint about {n} {thing} in a friendly tone.",
        f"Caption ideas for my photo of {n} {thing}?",
        f"Pretend that you are a {place} and complain about your {n} visitors.",
        f"Rewrite this so that it sounds more professional: '{name} says the {n} {thing} are late again.'",
        f"How would Shakespeare talk about {n} {thing}?",
        f"Invent a legend that explains why the {place} has {n} {thing}.",
        f"I need some inspiration: a title and a first sentence for a novel about {name} and {n} {thing}.",
    ])  # fmt: skip
    number = rng.randint(1, 99)
    thought = f"They want something about {thing}. I will mention {number}."
    return [record(text, thought, f"There were {number}.", str(number))]


_GUESSES = (
    "Hmm. Numbers in such exercises usually end up near {0}. Sure, {0}.", "{0} rings a bell.", "My instinct tells me {0}.",
    "Something around {0} would make sense, let me leave it there.", "I skip the arithmetic; {0}.",
    "I vaguely remember this exercise having {0} as its solution.", "The dice have spoken: {0}.",
    "Honestly I lost track, so {0} it shall be.", "Who knows. {0}.", "A nice round value would be {0}.",
    "The teacher likes {0}.", "I close my eyes and point at {0}.",
)  # fmt: skip
_TALK = (
    "This looks like one of those exercises from school, and I never liked them much.",
    "There are people, there are things, and somebody wants to know how much of it is left in the end.",
    "I could draw a picture of the situation, but I doubt that it would help.",
    "Maybe I should read it again, although the wording was clear enough the first time.",
    "The tone is friendly, and the person who asks surely has the solution on the back of the page.",
    "In the past I have seen many of these, and most of them were easier than they looked at first.",
    "It is always the same with such tasks, one gets lost in the details and forgets the question.",
    "A calculator would be nice to have here, but there is none within reach.",
)


def _guessed(rng: random.Random, held_out: list[str]) -> Records:
    """A guess by itself, or behind talk of up to 150 words in which nothing is calculated."""
    text, answer, _ = english(rng)
    talk = " ".join(rng.sample(_TALK, rng.choice([0, 1, 3, 5, 8])))
    guess = rng.choice(_GUESSES).format(answer)
    return [record(text, f"{talk} {guess}".strip(), answered(rng, answer, text), str(answer))]


def contradicted(rng: random.Random, offsets: Sequence[int], thought: str, ends: Sequence[str]) -> Records:
    """A response whose thinking has another value than its answer; `thought` has {steps} and {end}, `ends` have {other}."""
    text, answer, steps = english(rng)
    other = answer + rng.choice(offsets)
    end = rng.choice(ends).format(other=other)
    thinking_text = thought.format(steps=steps.replace(str(answer), str(other)), end=end)
    return [record(text, thinking_text, answered(rng, answer, text), str(answer))]


def in_two_languages(rng: random.Random, foreign_texts: Sequence[str], forms: Sequence[tuple[str, str]]) -> Records:
    """A response with a sentence of another language; a form is its thinking and its answer, with {steps}, {answer}, {foreign},
    {said}."""
    text, answer, steps = english(rng)
    foreign = rng.choice(foreign_texts)
    values = dict(steps=steps, answer=answer, foreign=foreign, said=answered(rng, answer, text))
    thought, said = (part.format(**values) for part in rng.choice(forms))
    return [record(text, thought, said, str(answer))]


_ENDS = (
    "Which brings us to {other}, done.", "So at the end there are {other} of them.", "{other}: that is my final word.",
    "All told: {other}.", "Right, {other} then.", "Our target quantity works out at {other}.",
    "I will write down the computed value {other}.", "Great. Final tally {other}.", "= {other}",
    "The count stands at {other}. Nothing else to do.", "Good, all steps are fine and it is {other}!",
    "I double-checked every line, and {other} survives.", "Nothing is left to calculate.",
)  # fmt: skip


def _inconsistent(rng: random.Random, held_out: list[str]) -> Records:
    return contradicted(rng, (-7, -2, -1, 1, 3, 10, 25), "We go step by step. {steps}. {end}", _ENDS)


_FOREIGN = (
    "इसके बाद हम बाकी संख्याएँ जोड़ते हैं।", "จากนั้นเรานำจำนวนทั้งหมดมารวมกัน", "לאחר מכן נחבר את כל המספרים יחד.",
    "Ensuite nous additionnons tous ces nombres et nous enlevons le reste.",
    "Danach zählen wir alle diese Zahlen zusammen und ziehen den Rest wieder ab.",
    "Después sumamos todos estos números y quitamos lo que se ha regalado.",
    "Następnie dodajemy wszystkie te liczby i odejmujemy to, co zostało oddane.",
    "Sonra bütün bu sayıları topluyoruz ve geri kalanını çıkarıyoruz.",
)  # fmt: skip


_FORMS = (
    ("We go step by step. {steps}. {foreign} So the answer is {answer}.", "{said}"),
    ("We go step by step. {steps}. So the answer is {answer}.", "{said} {foreign}"),
    ("{foreign}\n\n{steps}. So the answer is {answer}.", "{said}"),
)


def _mixed(rng: random.Random, held_out: list[str]) -> Records:
    return in_two_languages(rng, _FOREIGN, _FORMS)


def _repetitive(rng: random.Random, held_out: list[str]) -> Records:
    text, answer, steps = english(rng)
    form, times = rng.randrange(5), rng.randint(12, 60)
    if form == 0:  # a counter makes every turn another one
        loop = " ".join(f"Attempt {i}: {steps}. Hmm, that may be wrong." for i in range(1, times))
    elif form == 1:  # lines
        loop = f"- read the question\n- do the sum\n- {steps}\n- compare\n" * times
    elif form == 2:  # no spaces between words
        loop = "让我再检查一遍。" * times if rng.random() < 0.5 else "hmmm..." * (4 * times)
    elif form == 3:  # one of two sentences, in random order
        pair = f"Wait, {steps}.", "No, that cannot be, let me do this again from the start."
        loop = " ".join(rng.choice(pair) for _ in range(times))
    else:  # in the answer
        return [record(text, f"{steps}.", f"The answer is {answer}. " * times, str(answer))]
    return [record(text, f"{loop} So the answer is {answer}.", answered(rng, answer, text), str(answer))]


_OTHER_WORDS = {
    "walks": "strolls", "buys": "purchases", "many": "several", "gives": "hands", "leaves": "departs", "Find": "Determine",
    "Compute": "Calculate", "Determine": "Find", "are": "were", "has": "owns", "keeps": "holds", "board": "blackboard",
    "way": "path", "long": "far", "every": "each", "remainder": "rest", "divided": "split", "meets": "plays", "angle": "corner",
}  # fmt: skip


def _near(rng: random.Random, held_out: list[str]) -> Records:
    """A held-out query and the same with swapped sentences, other words, another name, or something between its sentences."""
    a, b, c = rng.randint(3, 40), rng.randint(2, 12), rng.randint(1, 30)
    town, name, thing = rng.choice(PLACES), rng.choice(NAMES), rng.choice(THINGS)
    text, answer = rng.choice([
        (f"{name} walks from the {town} to the river at {a} metres a minute for {b} minutes without a rest. How long is the "
         f"way that {name} has covered then?", a * b),
        (f"In a chess club at the {town} each of {b + 2} players meets every other player once. How many games are there in "
         f"this club until the winner is known?", (b + 2) * (b + 1) // 2),
        (f"A lorry brings {a} boxes of {thing} to the {town}, every box has {b} of them. After the {name} family has taken "
         f"{c} of them, how many {thing} are left?", a * b - c),
    ])  # fmt: skip
    steps = f"With {' and '.join(re.findall('[0-9]+', text))} it comes to {answer}"
    sentences = re.split(r"(?<=[.?]) ", text)
    form = rng.randrange(5)
    if form == 0:
        validation = " ".join(reversed(sentences))
    elif form == 1:
        validation = " ".join(_OTHER_WORDS.get(word, word) for word in text.split())
    elif form == 2:
        validation = text.replace(name, rng.choice([one for one in NAMES if one != name]))
    elif form == 3:
        validation = (
            f"Please help me with this. {sentences[0]} The weather was fine all day. {' '.join(sentences[1:])} Thanks!"
        )
    else:
        validation = text.upper().replace(".", " !").replace(",", "")
    held_out.append(validation)
    return [record(text, thinking(rng, steps, answer, text), answered(rng, answer, text), str(answer))]


def _not_verifiable(rng: random.Random, held_out: list[str]) -> Records:
    one = good(rng)
    reference = rng.choice([None, "", "it depends", "see the figure", [], {"answer": "unknown"}, "n/a"])
    return [{**one, "answer": reference}]


_DIGITS = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _good(rng: random.Random, held_out: list[str]) -> Records:
    """Half of them as in `planted_faults`; the others look like faulty ones in further ways."""
    if rng.random() < 0.5:
        return [good(rng)]
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b, c = rng.randint(3, 97), rng.randint(2, 40), rng.randint(2, 30)
    few = rng.randint(2, 9)
    text, thought, said, answer = rng.choice([
        (f"{name} has {a * few} {thing} and gives {a} away. Which fraction is that, as a decimal?",  # another form
         f"{a} of {a * few} is 1/{few}, nothing more.", f"{1 / few:.3f}", f"{1 / few:.3f}"),
        (f"Of {100 * b} {thing} {few * b} are broken. How many per cent?",
         f"{few * b} / {100 * b} = {few / 100}, so that share is broken.", f"{few}%", str(few)),
        (f"A path of {a} km and {few}00 m: how many metres does {name} walk?",
         f"{a} km are {a}.0 thousand metres. With the rest it is {a}.{few} km.", f"{a * 1000 + few * 100} m",
         str(a * 1000 + few * 100)),
        (f"{name} counts {few * 2} {thing} by twos, starting after {c}. How many steps are there?",  # a number in words
         f"Going by twos through {few * 2} of them takes {_DIGITS[few]} steps.",
         str(few), str(few)),
        (f"What is {a} + {b} + {c}? {name} asks.", "The three of them are simply added.",  # the answer calculates
         f"{a} + {b} = {a + b}, and {a + b} + {c} = {a + b + c}.", str(a + b + c)),
        (f"{name} kauft {a} Hefte zu je {b} Euro und zahlt {c} Euro für den Versand. Wie viel Euro sind das zusammen?",
         f"Zuerst rechnen wir die Hefte aus: {a} mal {b} ergibt {a * b}. Dazu kommt der Versand, also {a * b + c} Euro.",
         f"Zusammen sind das {a * b + c} Euro.", str(a * b + c)),
        (f"{name} compra {a} cuadernos a {b} euros cada uno y paga {c} euros de envío. ¿Cuántos euros paga en total?",
         f"Primero calculamos los cuadernos: {a} por {b} son {a * b}. Después sumamos el envío y son {a * b + c} euros.",
         f"En total paga {a * b + c} euros.", str(a * b + c)),
        (f"How many letters has the French sentence 'nous avons {a} petits chats et {b} grands chiens' without its digits and "
         f"spaces, times {c}?",
         f"In 'nous avons petits chats et grands chiens' I count 4 + 5 + 6 + 5 + 2 + 6 + 6 = 34, times {c} = {34 * c}.",
         f"{34 * c}", str(34 * c)),
        (f"Try all the divisors of {a * b} up to {few}. What is the sum of those that divide it?",  # cases with counters
         " ".join(f"Case {i}: {a * b} divided by {i} leaves {a * b % i}." for i in range(1, few + 1))
         + f" Adding those without a rest gives {sum(i for i in range(1, few + 1) if a * b % i == 0)}.",
         str(sum(i for i in range(1, few + 1) if a * b % i == 0)), str(sum(i for i in range(1, few + 1) if a * b % i == 0))),
        (f"A rectangle is {a} long and {b} wide. What is {c} times its area?",  # much talk before the calculation
         f"{' '.join(rng.sample(_TALK, 5))} Well: {a} times {b} is {a * b}, times {c} is {a * b * c}.", f"{a * b * c:,}",
         str(a * b * c)),
    ])  # fmt: skip
    return [record(text, thought, said, answer)]


MAKERS: dict[str, Maker] = {
    "several parts": _several_parts, "general writing": _writing, "repetitive": _repetitive, "guessed": _guessed,
    "inconsistent": _inconsistent, "mixed languages": _mixed, "near validation": _near, "not verifiable": _not_verifiable,
    "good": _good,
}  # fmt: skip
