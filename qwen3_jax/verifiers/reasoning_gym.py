"""Scores of reasoning-gym's own: each of its sets judges the answers to its problems.

verify("reasoning_gym", answer, {"set": "leg_counting", "config": {"seed": 0}, "index": 3, "question": ..., "answer": "12"})

The functions are the package's and take their time; they run in a process that is ended.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.errors import UserError
from qwen3_jax.processes import child_environment
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong

_FIELDS = ("set", "config", "index", "question", "answer")


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


@functools.lru_cache(maxsize=64)
def _entry(name: str, config: str, index: int) -> dict[str, Any]:
    """A problem, made anew: what the set needs of it to judge an answer is no JSON in every set."""
    return _dataset(name, config)[index]


def generate(name: str, config: Mapping[str, Any], size: int) -> list[tuple[str, str]]:
    """(question, answer) of the first problems of a set, made in a process of its own.

    Some sets depend on the order of Python's sets of texts, which is another in each process; in that one and in those that
    judge answers it is always the same.

    Args:
        config: fields of the set's configuration, the seed among them.

    Raises:
        UserError: the set refuses its configuration, or fails.
    """
    return generate_several([(name, config, size)])[0]


def generate_several(sets: Sequence[tuple[str, Mapping[str, Any], int]]) -> list[list[tuple[str, str]]]:
    """The same for several sets at once, in one process: (name, configuration, number of problems) of each.

    Raises:
        UserError: as `generate`.
    """
    asked = json.dumps([[name, json.dumps(config), size] for name, config, size in sets])
    command = [sys.executable, "-m", "qwen3_jax.verifiers.reasoning_gym", asked]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1][:300]
        names = ", ".join(name for name, _, _ in sets)
        raise UserError(f"reasoning_gym's {names} could not be made ({reason}).")
    made = json.loads(done.stdout.splitlines()[-1])
    return [[(question, answer) for question, answer in problems] for problems in made]


def main() -> None:
    """Print the problems of each set as one line of JSON."""
    made = [[_dataset(name, config)[index] for index in range(size)] for name, config, size in json.loads(sys.argv[1])]
    print(json.dumps([[[str(one["question"]), str(one["answer"])] for one in problems] for problems in made]))


def verify_reasoning_gym(answer: str, reference: Any, settings: ReasoningGymSettings) -> Verdict:
    """The score that the set gives, between 0 and 1; right is 1.

    Args:
        reference: an object with `set`, `config` (its fields, the seed among them) and `index`, from which the problem is made
            anew, and `question` and `answer`, its own: another version of the package, which makes other problems, is refused.
    """
    if not isinstance(reference, Mapping) or not set(_FIELDS) <= reference.keys():
        raise BadReference(f"'reasoning_gym' needs an object with {', '.join(_FIELDS)}")
    config = json.dumps(reference["config"])
    entry = _entry(reference["set"], config, reference["index"])
    if str(entry["question"]) != reference["question"]:
        raise BadReference("this version of reasoning-gym makes another problem from the same seed")
    text = answer.strip()
    if settings.tag:
        tag = re.escape(settings.tag)
        tagged = re.findall(rf"<{tag}>(.*?)</{tag}>", answer, re.DOTALL)
        if not tagged and settings.needs_tag:
            return unparsable(f"the answer is not between <{settings.tag}> and </{settings.tag}>")
        text = tagged[-1].strip() if tagged else text
    dataset = _dataset(reference["set"], config)
    score = min(max(float(dataset.score_answer(answer=text, entry=entry)), 0.0), 1.0)
    if score == 1:
        return right(f"{reference['set']} accepts {text[:80]!r}")
    return wrong(
        f"{reference['set']} gives {text[:80]!r} the score {score:.2f}; its own answer is {reference['answer'][:80]!r}",
        score,
    )


if __name__ == "__main__":
    main()
