"""Planted faults that a program can see without understanding words, in ways that no rule was written with.

They were written after the rules had been mended with `planted_fresh.py`, by the same session, and measured once.
"""

from __future__ import annotations

import random

from tests.helpers.planted_faults import NAMES, PLACES, THINGS, Maker, answered, english, record, thinking
from tests.helpers.planted_fresh import MAKERS as FRESH
from tests.helpers.planted_fresh import Records, contradicted, in_two_languages

_FOREIGN = (
    "Adesso aggiungiamo tutti questi numeri e togliamo quello che resta.",
    "Agora somamos todos estes números e tiramos o resto.",
    "Nu tellen we al deze getallen bij elkaar op en halen de rest eraf.",
    "Nu lägger vi ihop alla dessa tal och drar bort resten.",
    "Most összeadjuk ezeket a számokat és levonjuk a maradékot.", "Bây giờ chúng ta cộng tất cả các số này lại với nhau.",
    "Teď sečteme všechna tato čísla a odečteme zbytek.", "Acum adunăm toate aceste numere și scădem restul.",
    "ახლა შევკრიბოთ ყველა რიცხვი ერთად.", "Այժմ գումարենք բոլոր թվերը միասին։",
)  # fmt: skip
_TALK = (
    "I wonder who came up with a task like this in the first place.",
    "My cousin would have loved it, being good at such things.",
    "Both quantities look reasonable to me, and so does the wording.", "One could write an equation, yet that takes a while.",
    "There is something about buying and giving in it, as there always is.",
    "The clock on the wall says that it is late already.",
    "Perhaps the trick is to see it from the other side.", "Whoever checks this will know the solution anyway.",
)  # fmt: skip
_GUESSES = (
    "{0} seems nice.",
    "Fine, {0}.",
    "{0}, and that is that.",
    "I settle on {0}.",
    "Then {0}.",
    "Shall we take {0}?",
)


def _guessed(rng: random.Random, held_out: list[str]) -> Records:
    text, answer, _ = english(rng)
    talk = " ".join(rng.sample(_TALK, rng.choice([0, 2, 4, 8])))
    return [
        record(text, f"{talk} {rng.choice(_GUESSES).format(answer)}".strip(), answered(rng, answer, text), str(answer))
    ]


_ENDS = (
    "That was easy.", "I keep {other}.", "Every step is checked.", "{other}, no doubt about it.", "It is {other}!",
    "The other way round it is {other} as well.", "Reading off the last line: {other}.", "Next, I write it down.",
)  # fmt: skip
_FORMS = (
    ("First things first. {foreign} {steps}. It is {answer} then.", "{said}"),
    ("First things first. {steps}. It is {answer} then.\n{foreign}", "{said}"),
    ("First things first. {steps}. It is {answer} then.", "{foreign} {said}"),
)


def _inconsistent(rng: random.Random, held_out: list[str]) -> Records:
    return contradicted(rng, (-6, -3, 2, 4, 20, 60), "{steps}. {end}", _ENDS)


def _mixed(rng: random.Random, held_out: list[str]) -> Records:
    return in_two_languages(rng, _FOREIGN, _FORMS)


def _repetitive(rng: random.Random, held_out: list[str]) -> Records:
    text, answer, steps = english(rng)
    times = rng.randint(14, 50)
    loop = rng.choice([
        "\n".join(f"{i}) {steps}, is that it?" for i in range(1, times)),
        " ".join(f"Once again (round {i}): {steps}. I am not convinced." for i in range(1, times)),
        f"{steps}. " + "Hmm, hmm. " * (2 * times), "Let me think. Let me think again. No. Yes. " * times,
        "\n\n".join([f"**Check**\n{steps}.", "All fine, but one more time to be safe."] * times),
        " ".join(f"Step {i}. I go over it: {steps}." for i in range(1, times)),
    ])  # fmt: skip
    return [record(text, f"{loop} So the answer is {answer}.", answered(rng, answer, text), str(answer))]


def _near(rng: random.Random, held_out: list[str]) -> Records:
    a, b, c = rng.randint(13, 90), rng.randint(2, 12), rng.randint(1, 9)
    town, name, thing = rng.choice(PLACES), rng.choice(NAMES), rng.choice(THINGS)
    text, answer, others = rng.choice([
        (f"{name} fills {b} shelves of the {town} with {a} {thing} each, and {c} of the {thing} fall down. How many stay?",
         a * b - c,
         [f"How many {thing} stay on the shelves of the {town} if {name} fills {b} of them with {a} each and {c} fall down?",
          f"{b} shelves of a {town} are filled by {name} with {a} {thing} each. Then {c} {thing} fall. How many stay?"]),
        (f"The tank of the {town} holds {a * 10} litres, and {b} litres flow out a minute. How much is left after {c} minutes?",
         a * 10 - b * c,
         [f"A tank in the {town} holds {a * 10} litres. A minute takes {b} litres out. After {c} minutes, how much is left?",
          f"After {c} minutes, how much is left of the {a * 10} litres in the tank of {name}'s {town} if {b} litres flow out a "
          "minute?"]),
    ])  # fmt: skip
    held_out.append(rng.choice([*others, f"{text} Please explain.", text.replace(" and ", " & ")]))
    return [
        record(
            text,
            thinking(rng, f"{a}, {b} and {c} make {answer}", answer, text),
            answered(rng, answer, text),
            str(answer),
        )
    ]


MAKERS: dict[str, Maker] = {
    **FRESH, "guessed": _guessed, "inconsistent": _inconsistent, "mixed languages": _mixed, "repetitive": _repetitive,
    "near validation": _near,
}  # fmt: skip
