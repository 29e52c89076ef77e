"""Recipes: a prompt, the form of the answer, how it is read, how it is sampled and what becomes of it, in one file.

    recipe = load_recipe("diverse_qa")            # of this project, or the path of a YAML file
    recipe.render("...{{text}}...", {"text": "..."})

A recipe's file can be copied and changed; what it asks is part of the identity of every request. `{{name}}` is replaced by a
value, once: what a document says is never read as a template. Values are JSON: `{{answer.title}}` goes into objects.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.data.factory.parsing import Parser
from qwen3_jax.endpoints import ChatRequest
from qwen3_jax.endpoints.chat import SAMPLING
from qwen3_jax.errors import UserError, nearest, repeated
from qwen3_jax.yaml_files import read_yaml

FOLDER = Path(__file__).parent / "recipes"
_PLACE = re.compile(r"\{\{\s*([A-Za-z_][\w.]*)\s*\}\}")
_REQUIRED = ("name", "version", "about", "prompt", "parser", "record")


@dataclass(frozen=True)
class Recipe:
    """One kind of request, and what is made of its answer.

    Attributes:
        name: part of the identity of every request.
        version: the same.
        about: one line.
        prompt: the user's message: `{{text}}`, the document; `{{query}}`, the last question of a user; `{{passage}}`, a part of
            the document, another one for each sample; `{{response.thinking}}` and `{{response.content}}`, the record's last
            answer; `{{record.KEY}}`; `{{choice.NAME}}`.
        parser: how the answer is read, see `parsing.Parser`.
        record: what is made: JSON with `{{answer...}}`, `{{content}}`, `{{thinking}}`, and all that a prompt may have.
        source: the paper or code that it follows.
        system: the system message; "" is none.
        each: key of a list in what was read; a record for each of its items, as `{{item...}}`.
        schema: a JSON Schema that the answer follows; backends that can, enforce it.
        choices: names with lists of values, of which each sample takes one: styles, audiences, languages.
        sampling: see `qwen3_jax.endpoints.chat.SAMPLING`.
        max_new_tokens: most tokens of an answer.
        enable_thinking: as in `ChatRequest`.
        thinking_budget: as in `ChatRequest`.
        samples: answers for each record.
        attempts: tries, with other seeds, until an answer can be read.
        most_characters: longer texts are left out; None is no limit.
        cut_characters: of longer texts only the beginning is shown, and of responses the end; None is no limit.
        with_record: what is made is added to the record instead of standing alone.
        evidence: key of the answer with a quotation that must occur in the passage; `{{evidence}}` is its place in the
            document, [start, stop] in characters.
        solution: key of the answer with Python code.
        tests: key of the answer with assert statements that the code must pass, in the sandbox.
        example: what it gives, for readers.
    """

    name: str
    version: int
    about: str
    prompt: str
    parser: Parser
    record: Mapping[str, Any]
    source: str = ""
    system: str = ""
    each: str = ""
    schema: Mapping[str, Any] | None = None
    choices: Mapping[str, list[Any]] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_new_tokens: int = 1024
    enable_thinking: bool | None = False
    thinking_budget: int | None = None
    samples: int = 1
    attempts: int = 1
    most_characters: int | None = None
    cut_characters: int | None = None
    with_record: bool = False
    evidence: str = ""
    solution: str = ""
    tests: str = ""
    example: str = ""

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), f"recipe {self.name!r}: ", version=whole(1), max_new_tokens=whole(1), thinking_budget=whole(0),
            samples=whole(1), attempts=whole(1), most_characters=whole(1), cut_characters=whole(1),
        )  # fmt: skip
        for name in self.sampling:
            if name not in SAMPLING:
                raise UserError(f"recipe {self.name!r}: no sampling option {name!r}.{nearest(name, SAMPLING)}")
        if bool(self.solution) != bool(self.tests):
            raise UserError(f"recipe {self.name!r}: give both 'solution' and 'tests', or neither.")
        roots = {"text", "query", "passage", "response", "record", "choice"}
        later = {"answer", "item", "content", "thinking"} | ({"evidence"} if self.evidence else set())
        for of, texts, allowed in (
            ("prompt", [self.system, self.prompt], roots),
            ("record", list(_strings(self.record)), roots | later),
        ):
            for place in (match for text in texts for match in _PLACE.findall(text)):
                root, _, rest = place.partition(".")
                if root not in allowed:
                    raise UserError(
                        f"recipe {self.name!r}: its {of} has {{{{{place}}}}}; there are {', '.join(sorted(allowed))}."
                    )
                if root == "choice" and rest not in self.choices:
                    raise UserError(f"recipe {self.name!r}: its {of} has {{{{{place}}}}}, and no choices of that name.")

    @cached_property
    def identity(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    @property
    def asking(self) -> dict[str, Any]:
        """What requests depend on."""
        names = (
            "system", "prompt", "schema", "choices", "sampling", "max_new_tokens", "enable_thinking", "thinking_budget",
            "samples", "attempts", "most_characters", "cut_characters",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def reading(self) -> dict[str, Any]:
        """What only the records depend on."""
        names = ("record", "each", "with_record", "evidence", "solution", "tests")
        return {"parser": dataclasses.asdict(self.parser), **{name: getattr(self, name) for name in names}}

    def request(self, values: Mapping[str, Any]) -> ChatRequest:
        """The request for one set of values.

        Raises:
            KeyError: the prompt names a value that is not there.
        """
        messages = [{"role": "user", "content": self.render(self.prompt, values)}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.render(self.system, values)})
        return ChatRequest(
            tuple(messages), self.max_new_tokens, dict(self.sampling), enable_thinking=self.enable_thinking,
            thinking_budget=self.thinking_budget, schema=self.schema,
        )  # fmt: skip

    def render(self, template: Any, values: Mapping[str, Any]) -> Any:
        """Put values into a template; a text that is one place alone becomes the value itself.

        Raises:
            KeyError: a value is not there.
        """
        if isinstance(template, str):
            alone = _PLACE.fullmatch(template.strip())
            if alone is not None:
                return _find(alone.group(1), values)
            return _PLACE.sub(lambda match: _as_text(_find(match.group(1), values)), template)
        if isinstance(template, Mapping):
            return {name: self.render(part, values) for name, part in template.items()}
        if isinstance(template, list):
            return [self.render(part, values) for part in template]
        return template


def load_recipe(name: str) -> Recipe:
    """Read a recipe of this project by its name, or a YAML file by its path.

    Raises:
        UserError: there is no such recipe, or a field is wrong; names it.
    """
    own = FOLDER / f"{name}.yaml"
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    if not is_path and not own.exists():
        raise UserError(
            f"there is no recipe {name!r}; there are {', '.join(recipe_names())}.{nearest(name, recipe_names())}"
        )
    path = Path(name).expanduser() if is_path else own
    values = read_yaml(path, "the fields of a recipe")
    fields = {each.name for each in dataclasses.fields(Recipe)}
    for field_name in values:
        if field_name not in fields:
            raise UserError(f"{path}: a recipe has no field {field_name!r}.{nearest(str(field_name), sorted(fields))}")
    for field_name in _REQUIRED:
        if field_name not in values:
            raise UserError(f"{path}: the recipe has no {field_name!r}.")
    _check_types(path, values)
    try:
        return Recipe(**{**values, "parser": Parser.of(values["parser"])})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def recipe_names() -> list[str]:
    """The recipes of this project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _check_types(path: Path, values: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("name", "about", "prompt", "source", "system", "each", "example"), (str,)),
        **dict.fromkeys(("evidence", "solution", "tests"), (str,)),
        **dict.fromkeys(("parser", "record", "choices", "sampling"), (dict,)),
        **dict.fromkeys(("version", "max_new_tokens", "samples", "attempts"), (int,)),
        **dict.fromkeys(("thinking_budget", "most_characters", "cut_characters"), (int, type(None))),
        "schema": (dict, type(None)), "enable_thinking": (bool, type(None)), "with_record": (bool,),
    }  # fmt: skip
    for name, value in values.items():
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and bool not in kinds[name]):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds[name])
            raise UserError(f"{path}: {name!r} is {value!r:.80}; it must be {wanted}.")
    for name, choices in values.get("choices", {}).items():
        if not isinstance(choices, list) or not choices or repeated([str(one) for one in choices]) is not None:
            raise UserError(f"{path}: choices of {name!r} must be a list of different values.")


def _find(place: str, values: Mapping[str, Any]) -> Any:
    value: Any = values
    for part in place.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(place)
        value = value[part]
    return value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
