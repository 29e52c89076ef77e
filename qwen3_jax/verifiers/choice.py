r"""The letter of a multiple choice.

verify("choice", r"So it is \boxed{C}.", "C")
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.number import NO_SPACES
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong

# "answer" in the languages of MMMLU and in other large ones
_ANSWER = (
    "respuesta|réponse|antwort|risposta|resposta|ответ|відповідь|odpowiedź|odpověď|svar|vastaus|válasz|răspuns|cevap|yanıt"
    "|jawaban|jibu|ìdáhùn|idahun|đáp án|câu trả lời|απάντηση|उत्तर|উত্তর|جواب|إجابة|پاسخ|תשובה|คำตอบ"
    "|答え|正解|解答|回答|答案|정답|답"
)
_WRAP = r"(?:\\(?:text|math)\w{0,8} ?\{ ?)*"


@dataclass(frozen=True)
class ChoiceSettings:
    """Of `verify_choice`.

    Attributes:
        letters: of the choices, in order.
    """

    letters: str = "ABCD"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.letters, str)
            or not self.letters.isalpha()
            or not self.letters.isupper()
            or len(set(self.letters)) != len(self.letters)
        ):
            raise UserError(f"settings of 'choice': letters is {self.letters!r}; it must be different capital letters.")


def verify_choice(answer: str, reference: Any, settings: ChoiceSettings) -> Verdict:
    r"""Whether the answer chooses the reference's letter.

    Its letter is looked for in this order, the last of a kind counts: `\boxed{C}`; `"answer": "C"` in JSON, <answer>C</answer>;
    "answer is (C)" or "Answer: C", in many languages; "C is correct", "I choose C"; a bold C; the only letter before ")" or "."
    at the start of a line or a bold text; the answer as a whole. An answer whose last choice is "C or D" chooses none.

    Args:
        reference: a letter, or the index of a choice from 0.
    """
    letters = settings.letters
    expected = reference
    if isinstance(reference, int) and not isinstance(reference, bool) and 0 <= reference < len(letters):
        expected = letters[reference]
    if not isinstance(expected, str) or expected.strip().strip("()").upper() not in set(letters):
        raise BadReference(f"'choice' compares with one of {', '.join(letters)} or an index, got {reference!r:.200}")
    expected = expected.strip().strip("()").upper()
    text = re.sub(r"\s+", lambda space: "\n" if "\n" in space[0] else " ", unicodedata.normalize("NFKC", answer))
    letter = _choice(text, letters)  # runs of space would take the patterns time in the cube of their length
    if letter is None:
        return unparsable("the answer chooses no letter, or several")
    if letter == expected:
        return right(f"the answer chooses {letter}", extracted=letter)
    return wrong(f"it chooses {letter}, not {expected}", extracted=letter)


def _choice(text: str, letters: str) -> str | None:
    one = f"[{letters}]"
    for pattern in _patterns(letters):
        matches = list(pattern.finditer(text))
        if matches:
            return _letter(matches[-1], one)
    stands = rf"\*\*\(?({one})[).:][^*\n]{{1,300}}\*\*|(?m:^ ?\(?({one})[).:](?=\s|$))"
    starts = {_letter(match, one) for match in re.finditer(stands, text)}
    if starts:
        return starts.pop() if len(starts) == 1 else None
    whole = re.fullmatch(rf"[\W_]*({one}|{one.lower()})[\W_]*", text)
    return whole[1].upper() if whole else None


@functools.cache
def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    """The kinds of a choice, in order; of each a group is the letter."""
    one, either = f"[{letters}]", f"[{letters}{letters.lower()}]"
    ends = rf"(?![^\W{NO_SPACES}]|-|['’]\w)"
    opening = rf"(?:\*\*|\$|\\\(|\s|[(\[\"'`])*(?:\\(?:boxed|fbox)\{{ ?)?{_WRAP}"
    capital = rf"{opening}\(?({one}){ends}"
    wrapped = rf"{opening}\(?({one}|{one.lower()}(?=\)|[.*]*\s*\Z)){ends}"
    kinds = (
        (rf"\\(?:boxed|fbox)\s*\{{ ?{_WRAP}\(?({either})\)?\s*[.}}:)]",),
        (
            rf"(?i:[\"'`](?:answer|{_ANSWER})[\"'`]\s*:\s*[\"'`(\[]{{0,2}})({either})"  # JSON, as Qwen asks for it
            rf"(?=[\"'`.,:)\]}}]|\s*(?:\Z|[}}\n]))",
            rf"(?i:<answer>)\s*\(?({either})\)?(?=[.:\s<]|\Z)",
        ),
        (
            rf"(?i:\b(?:answer|choice|option)\b(?:\s+(?:is|would\s+be|to\s+this\s+question\s+is))?(?:\s+letter)?|选(?:择|项)?)"
            rf"\s*[\"'`*]{{0,3}}\s*[:=]?{wrapped}",
            rf"(?i:{_ANSWER})[\"'`*]{{0,3}}(?: ?(?:是|为|は|은|는|이|:)| [^\W\d_]{{1,20}}){{0,3}}?[\"'`*]{{0,3}}{capital}",
        ),
        (
            rf"(?<!\bor )(?<!\band )(?<!\bnor )(?<![\w'’-])\(?({one}){ends}\)?\**\s+is\s+(?:the\s+)?(?:correct|right|best)\b",
            rf"(?<!not )(?<!n't )\b(?i:choose|pick|select|go with)(?:\s+(?:option|answer|choice))?{capital}",
        ),
        (rf"\*\*\(?({one})[).:]?\*\*",),
    )
    return tuple(re.compile("|".join(forms)) for forms in kinds)


def _letter(match: re.Match[str], one: str) -> str | None:
    """The letter of a choice; None if another one stands beside it ("C or D")."""
    behind = match.string[match.end() : match.end() + 40]
    joined = r"(?:,?\s*(?:\b(?:or|and)\b|/|&|或|和)|,)"
    if re.match(rf"[)*\"'`$}}]*\s*{joined}\s*[(*\"'`$]*{one}(?![\w'’-])(?!\s+[a-z])", behind):
        return None
    return next(group for group in match.groups() if group).upper()
