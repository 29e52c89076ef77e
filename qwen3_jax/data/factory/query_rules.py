"""Rules for queries: several parts, general writing. They look at the form of a query, and less at its words.

A query is cut into segments: sentences, lines, items of an enumeration. A demand is a segment that asks: a question, or one
that begins with a verb of asking, behind a label, an adverb or a clause ("Using this, find ..."). Two demands are several
parts. A query that asks for something to be written, and for no value, is general writing.
"""

from __future__ import annotations

import re

from qwen3_jax.data.factory.queries import without_flag

# Verbs that demand an answer; what "write", "convert" or "sort" begins is often a rule of how to answer.
_VERBS = (
    r"(?:calculate|compare|compute|derive|describe|determine|discuss|estimate|evaluate|explain|factor|find|give|"
    r"identify|"
    r"prove|show|simplify|sketch|solve|state|tell (?:me|us)|verify|work out)\b"
)
_ASKING = r"(?:what|how|why|when|where|which|who|whose|whom)\b"
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_OPTIONS = re.compile(r"\([A-J]\)\s*[-+$\d]\S*")
_MARKS = re.compile(r"[*_#>`]+")
# "1.", "(a)", "ii)", "Part A:", "Question 2 -", bullets.
_LABEL = re.compile(
    r"\s*(?:\(([a-z]|[ivx]{1,4}|\d{1,2})\)|([a-z]|[ivx]{1,4}|\d{1,2})[).:]|[-•–+](?=\s)|"
    r"(?:part|question|problem|task|exercise|item|q)\s*#?([a-z]|[ivx]{1,4}|\d{1,2})\b\s*[:.)–—-]?)\s*",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"(?:^|[\n.?!;:]\s*)(?:(?:part|question|problem|task|exercise|subquestion|sub-question|q)\s*#?"
    r"(?P<number>\d{1,2}|[a-z]|[ivx]{1,4})\b\s*[:.)–—-]|(?P<ordinal>first|second|third|fourth)\s+"
    r"(?:part|question|problem|task)\s*[:.–—-])\s+\w",
    re.IGNORECASE,
)
_CUT = re.compile(
    r"(?<=[.?!。？！;；])[\s)*]+|\n+|\s+(?=\((?:[a-z]|[ivx]{1,4}|\d{1,2})\)\s+\S)|\s+(?=(?:[a-z]|"
    r"[ivx]{1,4})\)\s+\S)|\s+(?=[-•–]\s+[a-z]+\s)",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"^(?:\W|(?:please|then|and|now|next|finally|also|hence|so|lastly|furthermore|moreover|additionally|afterwards?|"
    r"first(?:ly)?|second(?:ly)?|third(?:ly)?|in addition|after that|besides|kindly|can you|could you|would you|"
    r"will you|i(?:'d| would) like "
    r"you to|i (?:want|need) you to|you (?:should|must|have to|are to))\b)+",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"^(?:using|with|from|based on|given|for|if|when|once|after|assuming|suppose|knowing|having|in (?:this|"
    r"that) case)\b"
    r"[^,.?!]{0,80},\s*",
    re.IGNORECASE,
)
# How the one answer is to be given, which is no further demand.
_FORM = re.compile(
    r"\b(?:answers?|simplest|lowest terms|in the form|nearest|decimal places?|significant|step by step|boxed|"
    r"reasoning|working|"
    r"your (?:work|steps|solution|final)|units?)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"^\W*(?:did you know|right|ok(?:ay)?|you know what|guess what|(?:can|could) you help(?: me)?|are you ready)\b",
    re.IGNORECASE,
)
_BOTH = re.compile(
    rf"(?:,|\band|;)\s+(?:then\s+|also\s+|finally\s+)?(?:(?:{_VERBS})(?! (?:as|by|in|to)\b)|"
    r"how (?:many|much|long|far|old|often)|what (?:is|are|was|would)|by how|why|how)\b",
    re.IGNORECASE,
)
_PAIR = re.compile(r"\bboth (?:the|its|their|his|her|of)\b[^.?!\n]{0,40}\band\b", re.IGNORECASE)
_BLANK = re.compile(r"[=:]\s*(?:_{2,}|\.{4,}|…{2,})")
_NEED = re.compile(
    r"i (?:also )?(?:need|want|would like|wonder)(?: to know)?\s+(?:the|its|their|whether|if|how|"
    r"what|which|why)\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"\b(?:know|answer|solve|find|determine|following|asks?|need|tackle|address)\b[^.?!\n]{0,30}\b(?:two|three|"
    r"four|five|both|"
    r"several|\d)\s+(?:\w+\s+)?(?:things|questions|parts|tasks|problems|quantities|values|answers|subquestions|"
    r"sub-questions)\b",
    re.IGNORECASE,
)

_REQUEST = (
    r"^(?:please\s+|can you\s+|could you\s+|would you\s+|will you\s+|help me(?: to)?\s+|i(?:'d| would) like you to\s+|"
    r"i (?:want|need) you to\s+|let's\s+|now\s+|then\s+|just\s+|kindly\s+)*"
)
# What a user has written by somebody else; "write" needs no more, the others need something that can be written.
_WRITE = re.compile(
    _REQUEST + r"(?:write|compose|draft|pen|rewrite|paraphrase|continue|author|ghostwrite)\b", re.IGNORECASE
)
_MAKE = re.compile(
    _REQUEST + r"(?:create|craft|generate|make(?: up)?|come up with|invent|prepare|produce|design|do|give (?:me|us)|"
    r"tell (?:me|us)|"
    r"put together|brainstorm|think of|suggest|imagine|sing|perform|recite|"
    r"i(?:'d| would)? (?:like|love|need|want))\s+(?:(?:me|us)\s+)?(?:an?|some|another|something|the (?:lyrics|"
    r"text|script|opening)|"
    r"(?:two|three|five|ten|a few|several) (?!equal|different (?:ways|numbers)))\b",
    re.IGNORECASE,
)
_WORDED = re.compile(
    r"\b\d+\s*[- ]?\s*(?:word|sentence|paragraph|line|stanza|verse|page)s?\b|\bin the (?:style|voice|tone) of\b|"
    r"\b(?:vivid|poetic|"
    r"creative|heartfelt|persuasive|humorous|funny|witty|moving|catchy|inspiring)(?:ly)?\b|"
    r"\ba day in the life\b|\bimagine (?:you|that "
    r"you|yourself)\b|\bpretend (?:to be|you)\b|\brole-?play\b|\b(?:act|speak|answer|write) as (?:if|a|an)\b|"
    r"\bonce upon a time\b",
    re.IGNORECASE,
)
_FORMAL = re.compile(
    r"\b(?:numbers?|fractions?|decimals?|equations?|expressions?|formulas?|formulae|polynomials?|functions?|"
    r"programs?|code|"
    r"algorithms?|class(?:es)?|methods?|regex|sql|python|java|javascript|c\+\+|bash|html|css|json|quer(?:y|ies)|"
    r"proofs?|"
    r"inequalit(?:y|ies)|sets?|matri(?:x|ces)|vectors?|sums?|products?(?! description)|ratios?|"
    r"percent(?:age)?s?|digits?|"
    r"answers?|solutions?|terms|integrals?|derivatives?|series|sequences?|systems?|tables?|graphs?|intervals?|"
    r"coordinates?|"
    r"logarithms?|notation|statements?|counter-?examples?|examples? of|values?|constraints?|configurations?|reactions?|"
    r"names?|integers?|outputs?|palindromes?|lists?|binary|hexadecimal|roman numerals?|first \w+ (?:terms|"
    r"primes)|as an? (?:fraction|decimal|"
    r"product|sum|"
    r"power|percentage|single))\b|\$",
    re.IGNORECASE,
)
# Verbs after which one answer is right; "describe", "outline" and "suggest" have many.
_EXACT = re.compile(
    r"(?:(?:your|the) (?:task|job|goal|aim|question) |arrange|assign|decode|decrypt|encode|fill|form|generate|"
    r"given|output|"
    r"partition|play|reorder|restore|return|reverse|simulate|spell|split|unscramble|use|add|divide|multiply|"
    r"subtract|take|answer|approximate|calculate|check|choose|classify|complete|compute|"
    r"convert|count|"
    r"deduce|derive|determine|differentiate|establish|estimate|evaluate|expand|express|factor(?:i[sz]e)?|"
    r"figure out|find|give|"
    r"graph|identify|integrate|let|list|locate|measure|minimi[sz]e|maximi[sz]e|name|obtain|order|pick|plot|"
    r"predict|prove|rank|"
    r"rearrange|reduce|round|say|select|show|simplify|solve|sort|state|sum(?: up)?|tell (?:me|us)|translate|"
    r"verify|work out)\b",
    re.IGNORECASE,
)
_MATHS = re.compile(r"[=<>≤≥^√∑∫]|\\[a-z]+|\d\s*[-+*/×÷]\s*\d")
# What is written ends here, and what it is about begins.
_OBJECT_END = re.compile(r"\b(?:about|of|on|for|with|which|who|set in|from|by|where|when|to)\b|[,:;]", re.IGNORECASE)
_VALUE = re.compile(
    r"\bhow (?:many|much|long|far|old|often|tall|high|fast|big|large|wide|deep)\b|^(?:what|which|who|when|where|"
    r"whose)\b|\bwhat "
    r"(?:is|are|was|were) the\b|^(?:find|compute|calculate|determine|evaluate|solve|prove|simplify|estimate|"
    r"derive|verify)\b|"
    r"\bwork out\b",
    re.IGNORECASE,
)
_CHINESE_WRITING = re.compile(r"写一(?:篇|首|封|个故事|段|则|份)|作文|编一个|续写|创作")


def several_parts(query: str) -> str | None:
    """Whether a query asks several things, of which a verifier sees the last alone."""
    plain = _plain(query)
    numbered = {(match["number"] or match["ordinal"]).lower() for match in _NUMBERED.finditer(plain)}
    if len(numbered) >= 2:
        return f"it has the parts {', '.join(sorted(numbered)[:6])}"
    counted = _COUNTED.search(plain)
    if counted is not None:
        return f"it counts what it asks: {counted.group()[:60]!r}"
    if len(_BLANK.findall(_CODE.sub(" ", query))) >= 2:
        return "it has several blanks to fill in"
    demands = [one for one in _segments(plain) if _asks(one)]
    if len(demands) >= 2:
        return f"it asks {len(demands)} things: {demands[1][:60]!r} is the second"
    first = _bare(demands[0]) if demands else ""
    both = _BOTH.search(first, 1) or _PAIR.search(first)
    is_demand = re.match(f"{_VERBS}|{_ASKING}|by how", first, re.IGNORECASE)
    if is_demand and both is not None and not _FORM.search(first[both.start() :]):
        return f"it asks for two things: {both.group().strip(' ,;')!r}"
    return None


def general_writing(query: str) -> str | None:
    """Whether a query asks for a text that no reference can judge."""
    text = _plain(query)
    if _CHINESE_WRITING.search(text):
        return "it asks for a text"
    segments = [_CLAUSE.sub("", one.strip()) for one in _segments(text)]
    if any(_VALUE.search(_BEFORE.sub("", one).strip()) for one in segments if not _worded(one)):
        return None
    for one in segments:
        is_text = _worded(one) and _BEFORE.sub("", one).strip()
        made = _WRITE.match(one) or _MAKE.match(one)
        if is_text or (made and not _FORMAL.search(_OBJECT_END.split(one[made.end() :], maxsplit=1)[0])):
            return f"it asks for a text: {' '.join(one.split())[:80]!r}"
    if not any(_verifiable(one) for one in segments):
        return "it asks for nothing that has one right answer"
    return None


def _verifiable(segment: str) -> bool:
    """Whether a segment may ask for what has one right answer: a question, a formula, a verb of mathematics, a formal thing."""
    bare = _BEFORE.sub("", segment).strip()
    is_question = segment.rstrip(" )\"'").endswith(("?", "？", ":", "="))
    return is_question or bool(
        _EXACT.match(bare) or _NEED.match(bare) or _FORMAL.search(segment) or _MATHS.search(segment)
    )


def _plain(query: str) -> str:
    """A query without code, marks of Markdown, options and flag."""
    return _OPTIONS.sub(" ", _MARKS.sub(" ", _CODE.sub(" ", without_flag(query))))


def _worded(segment: str) -> bool:
    """Whether a segment says how a text is to be, and that it is to be written."""
    return bool(_WORDED.search(segment)) and bool(
        _WRITE.match(segment)
        or _MAKE.match(segment)
        or re.match(r"(?:please\s+)?(?:describe|imagine|pretend)\b", segment, re.IGNORECASE)
    )


def _segments(text: str) -> list[str]:
    """Sentences, lines and items of enumerations, without their labels."""
    parts = (part.strip() for part in _CUT.split(text))
    return [
        rest
        for part in parts
        if part and (rest := _LABEL.sub("", part, count=1).strip() if _LABEL.match(part) else part)
    ]


def _asks(segment: str) -> bool:
    """Whether a segment is a demand."""
    if _ASIDE.match(segment):
        return False
    if segment.rstrip(" )\"'").endswith(("?", "？")):
        return True
    bare = _bare(segment)
    if bare.startswith(("for example", "For example", "e.g.")):
        return False
    if _NEED.match(bare):
        return True
    if re.match(_VERBS, bare, re.IGNORECASE):
        return not _FORM.search(segment)
    return segment.endswith(";") and re.match(_ASKING, bare, re.IGNORECASE) is not None


def _bare(segment: str) -> str:
    """A segment without what may stand before its verb."""
    return _BEFORE.sub("", _CLAUSE.sub("", _BEFORE.sub("", segment).strip())).strip()
