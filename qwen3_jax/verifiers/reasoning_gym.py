"""Scores of reasoning-gym's own: each of its sets judges the answers to its problems.

verify("reasoning_gym", answer, {"set": "leg_counting", "config": {"seed": 0, "size": 10}, "index": 3, "answer": "12"})

The functions are the package's and take their time; they run in a process that is ended. See `entry_of` for the reference.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.errors import UserError
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong


@dataclass(frozen=True)
class ReasoningGymSettings:
    """Of `verify_reasoning_gym`.

    Attributes:
        seconds: for one answer; after them it is "timed_out".
        tag: the answer is what stands last between <tag> and </tag>; "" is all of it.
        needs_tag: an answer without the tag is unparsable; otherwise all of it counts.
    """

    seconds: float = 20.0
    tag: str = "answer"
    needs_tag: bool = True

    def __post_init__(self) -> None:
        check_bounds(vars(self), "settings of 'reasoning_gym': ", seconds=above(0, finite=True))


def package() -> Any:
    """The package reasoning_gym; a UserError where it is not installed."""
    try:
        import reasoning_gym
        from reasoning_gym import factory
    except ImportError:
        raise UserError('reasoning_gym needs the package reasoning-gym: pip install "qwen3-jax[reasoning]".') from None
    del reasoning_gym
    return factory


def preload() -> None:
    """Import the package."""
    package()


@functools.lru_cache(maxsize=8)
def _dataset(name: str, config: str) -> Any:
    try:
        return package().create_dataset(name, **json.loads(config))
    except (AssertionError, TypeError, ValueError) as error:
        raise BadReference(f"reasoning_gym's {name} cannot be made: {error}") from None


def entry_of(name: str, config: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Problem `index` of a set, made anew from its seed: `question`, `answer` and `metadata`, which is no JSON in every set."""
    return _dataset(name, json.dumps(config, sort_keys=True))[index]


def verify_reasoning_gym(answer: str, reference: Any, settings: ReasoningGymSettings) -> Verdict:
    """The score that the set gives, between 0 and 1; right is 1.

    Args:
        reference: an object with `set`, `config` (its fields, the seed among them) and `index`, from which the problem is made
            anew, and `answer`, its own: a set of another version of the package, which makes other problems, is refused.
    """
    if not isinstance(reference, Mapping) or not {"set", "config", "index", "answer"} <= reference.keys():
        raise BadReference("'reasoning_gym' needs an object with set, config, index and answer")
    entry = entry_of(reference["set"], reference["config"], reference["index"])
    if str(entry["answer"]) != reference["answer"]:
        raise BadReference("this version of reasoning-gym makes another problem from the same seed")
    text = answer.strip()
    if settings.tag:
        tag = re.escape(settings.tag)
        tagged = re.findall(rf"<{tag}>(.*?)</{tag}>", answer, re.DOTALL)
        if not tagged and settings.needs_tag:
            return unparsable(f"the answer is not between <{settings.tag}> and </{settings.tag}>")
        text = tagged[-1].strip() if tagged else text
    dataset = _dataset(reference["set"], json.dumps(reference["config"], sort_keys=True))
    score = min(max(float(dataset.score_answer(answer=text, entry=entry)), 0.0), 1.0)
    if score == 1:
        return right(f"{reference['set']} accepts {text[:80]!r}")
    return wrong(
        f"{reference['set']} gives {text[:80]!r} the score {score:.2f}; its own answer is {reference['answer'][:80]!r}",
        score,
    )
