"""A recipe: phases in order, each a training run or commands, with what it takes from the phases before.

    folder: runs/recipe
    phases:
      - name: corpus
        run: python examples/collect_corpus.py --output {here}
      - name: pretrain
        train: configs/pretrain/laptop.yaml
        set: {"data.sources": [{name: text, path: "{corpus}"}]}
      - name: cold-start
        train: configs/posttrain/cold-start-laptop.yaml
        set: {model.init_from: "{pretrain}/hf", seed: "{seed}"}
      - name: measured
        run:
          - qwen3 eval --model {cold-start}/hf --task running_sum --output {here}
    claims:
      long-stage: {run: "{pretrain}"}

`claims` says which phases are evidence for which of the report's claims (`qwen3_jax.recipes.report_claims`), for the page.

`{NAME}` is the folder of an earlier phase, `{here}` that of the phase itself, `{folder}` the recipe's, `{seed}` its seed. `set`
is laid over the configuration, by dotted key. A training phase runs in FOLDER/NAME.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.json_fields import digest
from qwen3_jax.shipped import shipped_file, shipped_word
from qwen3_jax.yaml_files import read_yaml

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_PLACE = re.compile(r"\{([A-Za-z0-9_-]+)\}")
_RESERVED = ("here", "folder", "seed")
_KEYS = ("name", "about", "train", "set", "plan", "run")
ROLES = {
    "long-stage": ("run",),
    "reasoning": ("run",),
    "fusion": ("before", "after", "flags"),
    "budget": ("eval",),
    "general": ("flags before", "flags after", "sums before", "sums after"),
    "distillation": ("off-policy eval", "on-policy eval", "rl eval", "on-policy", "rl", "teacher"),
    "balance": ("global", "micro"),
    "laws": ("sweep",),
    "mixture": ("search",),
}
"""Of each claim (`qwen3_jax.recipes.report_claims`) the evidence that a recipe has to name."""


@dataclass(frozen=True)
class Phase:
    """One phase as the file has it.

    Attributes:
        name: a unique label, and the name of its folder.
        about: what it is for, in one line.
        train: a configuration file, or the configuration itself; None of commands.
        set: dotted keys of the configuration, with their values.
        plan: further keys, for `--plan` alone: what stands for checkpoints that earlier phases have not made yet.
        run: commands, in order; () of a training run.
    """

    name: str
    about: str = ""
    train: str | Mapping[str, Any] | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    run: tuple[str, ...] = ()

    @property
    def takes(self) -> list[str]:
        """Names of the phases whose folders it reads, in order."""
        texts = [*self.run, _json(self.train), _json(self.set)]
        found = dict.fromkeys(name for text in texts for name in _PLACE.findall(text))
        return [name for name in found if name not in _RESERVED]


@dataclass(frozen=True)
class Recipe:
    """A recipe with its options.

    Attributes:
        file: that it was read from.
        folder: where its phases have their folders.
        seed: what `{seed}` stands for.
        phases: in order.
        about: what it is for.
        claims: by claim, which place is which evidence: {"budget": {"eval": "{measured}"}}.
    """

    file: Path
    folder: Path
    seed: int
    phases: tuple[Phase, ...]
    about: str = ""
    claims: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """Return what a report needs: JSON values; places of claims are relative to the folder."""
        claims = {
            claim: {role: _PLACE.sub(lambda match: match[1], place) for role, place in roles.items()}
            for claim, roles in self.claims.items()
        }
        phases = [{"name": phase.name, "about": phase.about} for phase in self.phases]
        return {"about": self.about, "seed": self.seed, "phases": phases, "claims": claims}

    def phase(self, name: str) -> Phase:
        """Return a phase by name.

        Raises:
            UserError: the recipe has no such phase.
        """
        names = [phase.name for phase in self.phases]
        if name not in names:
            raise UserError(f"{self.file} has no phase {name!r}; it has {', '.join(names)}.{nearest(name, names)}")
        return self.phases[names.index(name)]

    def chosen(self, names: Sequence[str]) -> list[Phase]:
        """Return the phases with some names, in the recipe's order; all of them for no names.

        Raises:
            UserError: the recipe has no such phase.
        """
        for name in names:
            self.phase(name)
        return [phase for phase in self.phases if not names or phase.name in names]

    def place(self, phase: Phase) -> Path:
        """The folder of a phase."""
        return self.folder / phase.name

    def filled(self, phase: Phase, value: Any) -> Any:
        """Return a value of a phase with its places filled in; a text that is nothing but `{seed}` becomes the number."""
        if isinstance(value, Mapping):
            return {key: self.filled(phase, one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.filled(phase, one) for one in value]
        if not isinstance(value, str):
            return value
        if value == "{seed}":
            return self.seed
        places = {"here": self.place(phase), "folder": self.folder, "seed": self.seed}
        places |= {other.name: self.place(other) for other in self.phases}
        return _PLACE.sub(lambda match: str(places.get(match[1], match[0])), value)

    def stages(self, phase: Phase) -> list[str]:
        """Return the names of a training phase's stages, to be planned one by one; [] where it has none."""
        config = read_yaml(shipped_file(phase.train)) if isinstance(phase.train, str) else phase.train or {}
        stages = {**config, **phase.set, **phase.plan}.get("stages")
        if not isinstance(stages, list) or not all(isinstance(stage, dict) and "name" in stage for stage in stages):
            return []  # none, or no stages: the configuration itself is refused
        return [str(stage["name"]) for stage in stages]

    def commands(self, phase: Phase, *, planned: bool = False) -> list[list[str]]:
        """Return the command lines of a phase, as lists of words without the interpreter; with `planned`, to be planned."""
        if phase.train is None:
            lines = [[str(self.filled(phase, word)) for word in shlex.split(text)] for text in phase.run]
            return [[shipped_word(word) for word in words] for words in lines]
        config = phase.train if isinstance(phase.train, str) else str(self.place(phase)) + ".yaml"
        more = dict(phase.set) | (dict(phase.plan) if planned else {})
        settings = {"run_dir": str(self.place(phase)), **self.filled(phase, more)}
        return [
            ["qwen3", "train", f"--config={config}", *(f"--{key}={_flag(value)}" for key, value in settings.items())]
        ]

    def key(self, phase: Phase) -> str:
        """Return a digest of what decides a phase's result: commands, configuration, and the phases that it takes from."""
        return self._key(phase, {})

    def _key(self, phase: Phase, known: dict[str, str]) -> str:
        if phase.name not in known:
            config: Any = read_yaml(shipped_file(phase.train)) if isinstance(phase.train, str) else phase.train
            values = json.loads(_json([config, phase.set, phase.run]))  # whose keys are all texts
            own = json.dumps(values, sort_keys=True)  # wherever the folder is
            parts = [self._key(self.phase(name), known) for name in phase.takes]
            known[phase.name] = digest(["phase/1", own, self.seed if "{seed}" in own else None, parts])
        return known[phase.name]


def is_recipe(file: Path) -> bool:
    """Whether a configuration file is a recipe: it has `phases`; False for a file that cannot be read."""
    try:
        return "phases" in read_yaml(file)
    except UserError:
        return False


def read_recipe(file: Path, folder: str | None = None, seed: int | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        file: YAML.
        folder, seed: in place of the file's.

    Raises:
        UserError: names the key or the phase that does not fit.
    """
    values = read_yaml(file)
    unknown = [key for key in values if key not in ("folder", "seed", "phases", "about", "claims")]
    if unknown:
        raise UserError(f"{file}: unknown key {unknown[0]!r}; a recipe has folder, seed, about, phases and claims.")
    chosen = values.get("folder") if folder is None else folder
    if not isinstance(chosen, str) or not chosen:
        raise UserError(f"{file}: folder is {chosen!r}; it must be the path of a folder.")
    number = values.get("seed", 0) if seed is None else seed
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise UserError(f"{file}: seed is {number!r}; it must be a whole number of 0 or more.")
    if not isinstance(values.get("phases"), list) or not values["phases"]:
        raise UserError(f"{file}: phases must be a list of at least one phase.")
    phases: list[Phase] = []
    for place, one in enumerate(values["phases"], start=1):
        phases.append(_phase(file, place, one, [phase.name for phase in phases]))
    claims = _claims(file, values.get("claims", {}), [phase.name for phase in phases])
    return Recipe(file, Path(chosen), number, tuple(phases), str(values.get("about", "")), claims)


def _phase(file: Path, place: int, values: Any, before: list[str]) -> Phase:
    label = f"{file}: phase {place}"
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise UserError(f"{label} has no name.")
    name = values["name"]
    label = f"{file}: phase {name!r}"
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise UserError(
            f"{label}: a name has small letters, digits and hyphens, and must not be {', '.join(_RESERVED)}."
        )
    if name in before:
        raise UserError(f"{label} occurs twice.")
    for key in values:
        if key not in _KEYS:
            raise UserError(f"{label}: unknown key {key!r}; a phase has {', '.join(_KEYS)}.{nearest(str(key), _KEYS)}")
    train, run = values.get("train"), values.get("run", [])
    settings, plan = values.get("set", {}), values.get("plan", {})
    run = [run] if isinstance(run, str) else run
    if (train is None) == (not run):
        raise UserError(f"{label} needs either train, a configuration, or run, its commands.")
    if not isinstance(run, list) or not all(isinstance(text, str) and text.strip() for text in run):
        raise UserError(f"{label}: run must be a command, or a list of commands.")
    for key, laid in (("set", settings), ("plan", plan)):
        if not isinstance(laid, dict) or (laid and train is None):
            raise UserError(f"{label}: {key} is laid over a configuration: it must be keys with values, beside train.")
    if train is not None and not isinstance(train, str | dict):
        raise UserError(f"{label}: train must be the path of a configuration, or the configuration itself.")
    if isinstance(train, str) and not shipped_file(train).is_file():
        raise UserError(f"{label}: there is no file {train}.")
    if isinstance(train, str) and "phases" in read_yaml(shipped_file(train)):
        raise UserError(f"{label}: {train} is a recipe; train must be the configuration of one run.")
    if "run_dir" in settings or (isinstance(train, dict) and "run_dir" in train):
        raise UserError(f"{label}: run_dir is the phase's own folder; leave it out.")
    for text in run:
        try:
            first = shlex.split(text)[0]
        except ValueError as error:
            raise UserError(f"{label}: the command {text!r} cannot be split into words ({error}).") from None
        if first not in ("qwen3", "python"):
            raise UserError(f"{label}: a command begins with qwen3 or python, and this one with {first!r}.")
    phase = Phase(name, str(values.get("about", "")), train, settings, plan, tuple(run))
    for other in phase.takes:
        if other not in before:
            raise UserError(f"{label} takes {{{other}}}, and no earlier phase has that name.{nearest(other, before)}")
    return phase


def _claims(file: Path, values: Any, names: list[str]) -> dict[str, dict[str, str]]:
    label = f"{file}: claims"
    if not isinstance(values, dict):
        raise UserError(f"{label} must be claims with their evidence by role.")
    for claim, roles in values.items():
        if claim not in ROLES:
            raise UserError(f"{label}: there is no claim {claim!r}.{nearest(str(claim), list(ROLES))}")
        wanted = ROLES[claim]
        if not isinstance(roles, dict) or not all(isinstance(place, str) for place in roles.values()):
            raise UserError(f"{label}: {claim} must have a place for each role: {', '.join(wanted)}.")
        if set(roles) != set(wanted):
            raise UserError(
                f"{label}: {claim} has the roles {', '.join(map(str, roles))}; it needs {', '.join(wanted)}."
            )
        for place in roles.values():
            for name in _PLACE.findall(place):
                if name not in names:
                    raise UserError(
                        f"{label}: {claim} names the phase {name!r}, which there is not.{nearest(name, names)}"
                    )
    return values


def _flag(value: Any) -> str:
    """A value as a flag's text."""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    """A value of YAML, which has dates, as JSON."""
    return json.dumps(value, default=str)
