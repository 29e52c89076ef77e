"""Which mesh, remat policy and number of micro-batches suit a slice: an estimate orders them, the compiler decides.

    python train.py --config configs/scale/qwen3-32b.yaml --plan v6e:8x8 --search

Estimates order the settings, and what was compiled corrects them: each new program moves the estimates of its remat policy. The
configuration's own setting is compiled first, under all policies that recompute less until one does not fit; then, mesh by
mesh, the setting with the shortest estimated step that should fit. A mesh that does not fit or does not compile is replaced by
the next. The best setting is tried under other policies and with other numbers of micro-batches.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args, get_type_hints

from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.compile import DoesNotCompile
from qwen3_jax.planner.estimate import Estimate, estimate
from qwen3_jax.planner.meshes import factorizations
from qwen3_jax.planner.plan import GIB, Plan
from qwen3_jax.planner.topologies import Topology
from qwen3_jax.planner.training_step import across_slices, mesh_works, plan_training
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.training.config import ModelConfig, TrainConfig
from sharding import AXES, MeshConfig, ShardingError
from sharding.mesh import describe

_REMAT = get_args(get_type_hints(ModelConfig)["remat"])  # most memory first
_MEMORY_SHARE = 0.9  # estimates are rough, and a run needs memory for checkpoints and metrics
_COMPILED_SETTINGS = 5
_REPLACEMENTS = 3  # further meshes where others fail

_Key = tuple[MeshConfig, str, int]


@dataclass(frozen=True)
class SearchResult:
    """One setting that was compiled."""

    mesh: tuple[int, ...]
    remat: str
    micro_batches: int
    estimate: Estimate
    plan: Plan


class Ranking(list[SearchResult]):
    """Settings that were compiled, best first; `failed` says what the compiler refused and why."""

    failed: tuple[str, ...] = ()


def search(config: TrainConfig, topology: Topology, limit: int = _COMPILED_SETTINGS) -> Ranking:
    """Compile the most promising settings for the slice(s) or nodes; best first, those that do not fit last.

    Args:
        config: the run; its batch and sequence length stay.
        topology: the slice(s) or nodes.
        limit: meshes to compile, the configuration's own included; a few more where some do not fit or do not compile.

    Raises:
        UserError: no mesh of these devices divides the model and the batch.
        DoesNotCompile: no setting that was tried compiles.
    """
    config, _ = across_slices(config, topology)
    model = training_architecture(config)
    settings = _settings(config, model, topology)
    with progress_bar("compiling", limit + len(_REMAT)) as bar:
        compiled = _Compiled(model, topology, bar)
        for number in range(limit + _REPLACEMENTS):
            own = _own_setting(config, topology) if number == 0 else None
            setting = own or compiled.next_of(settings)
            if setting is None or len(compiled.fitting_meshes) >= limit:
                break
            compiled.fits(setting)
            if number == 0:
                _try_policies(compiled, setting)
        if not compiled.results:
            raise DoesNotCompile(compiled.failed[0])
        _try_policies(compiled, compiled.best())
        _try_micro_batches(compiled, compiled.best(), model)
    ranking = Ranking(sorted(compiled.results.values(), key=_order))
    ranking.failed = tuple(compiled.failed)
    return ranking


class _Compiled:
    """Settings that were compiled, each once, and what they say of the estimates of others.

    Attributes:
        devices: of the topology.
        results: programs, whether they fit or not.
        failed: what the compiler said of those that do not compile.
    """

    def __init__(self, model: Qwen3Config, topology: Topology, bar: Bar):
        self._model, self._topology, self._bar = model, topology, bar
        self.devices = len(topology.devices)
        self.results: dict[_Key, SearchResult] = {}
        self.failed: list[str] = []
        self._settings: dict[_Key, TrainConfig] = {}

    def fits(self, setting: TrainConfig) -> bool:
        """Compile a setting, unless it was before; return whether it compiles and fits."""
        key = _key(setting)
        if key not in self._settings:
            self._settings[key] = setting
            sizes = setting.mesh.sizes(self.devices)
            verdict = "does not compile"
            try:
                plan = plan_training(setting, self._topology)
            except DoesNotCompile as error:
                self.failed.append(f"{describe(sizes)}, remat {setting.model.remat}: {error}")
            else:
                estimated = estimate(setting, self._model, self._topology, sizes)
                self.results[key] = SearchResult(sizes, setting.model.remat, setting.micro_batches, estimated, plan)
                verdict = _verdict(plan)
            self._bar.advance(note=f"{describe(sizes)}, remat {setting.model.remat}: {verdict}")
        return key in self.results and self.results[key].plan.fits

    def best(self) -> TrainConfig:
        """The best setting so far."""
        return self._settings[min(self.results, key=lambda key: _order(self.results[key]))]

    @property
    def fitting_meshes(self) -> set[tuple[int, ...]]:
        """Meshes of which a setting fits."""
        return {result.mesh for result in self.results.values() if result.plan.fits}

    def next_of(self, settings: list[tuple[TrainConfig, Estimate]]) -> TrainConfig | None:
        """The setting with the shortest step that should fit, of the meshes that were not tried; None where none is left.

        Where nothing should fit it is the one that needs least memory. Policies that only failed to compile come last.
        """
        tried = {setting.mesh.sizes(self.devices) for setting in self._settings.values()}
        memory, seconds = (
            self._corrections(lambda r: (r.plan.compiled.needed, r.estimate.memory)),
            self._corrections(lambda r: (_step_seconds(r.plan), r.estimate.seconds)),
        )
        compiling = {result.remat for result in self.results.values()}
        refused = {setting.model.remat for setting in self._settings.values()} - compiling
        left = [
            (setting, one.memory * memory[setting.model.remat], one.seconds * seconds[setting.model.remat])
            for setting, one in settings
            if setting.mesh.sizes(self.devices) not in tried
        ]
        left = [item for item in left if item[0].model.remat not in refused] or left
        capacity = _MEMORY_SHARE * self._topology.capacity_gib * GIB
        fitting = [item for item in left if item[1] <= capacity]
        if fitting:
            return min(fitting, key=lambda item: item[2])[0]
        return min(left, key=lambda item: item[1])[0] if left else None

    def _corrections(self, figures: Callable[[SearchResult], tuple[float | None, float]]) -> dict[str, float]:
        """By remat policy, what to multiply an estimate by: the median of the compiled programs of the policy, else of all."""
        ratios: dict[str, list[float]] = {remat: [] for remat in _REMAT}
        for result in self.results.values():
            compiled, estimated = figures(result)
            if compiled is not None and math.isfinite(compiled):
                ratios[result.remat].append(compiled / estimated)
        every = [ratio for of_policy in ratios.values() for ratio in of_policy] or [1.0]
        return {remat: statistics.median(of_policy or every) for remat, of_policy in ratios.items()}


def _try_policies(compiled: _Compiled, setting: TrainConfig) -> None:
    """Compile the policies that recompute less, until one does not fit; or more, until one fits."""
    place = _REMAT.index(setting.model.remat)
    fits = compiled.fits(setting)
    for remat in reversed(_REMAT[:place]) if fits else _REMAT[place + 1 :]:
        other = dataclasses.replace(setting, model=dataclasses.replace(setting.model, remat=remat))
        if compiled.fits(other) != fits:
            return


def _try_micro_batches(compiled: _Compiled, setting: TrainConfig, model: Qwen3Config) -> None:
    """Compile half as many micro-batches (faster) and twice as many (less memory), where they divide."""
    sizes = setting.mesh.sizes(compiled.devices)
    for micro_batches in (setting.micro_batches // 2, setting.micro_batches * 2):
        other = dataclasses.replace(setting, micro_batches=max(micro_batches, 1))
        if micro_batches and mesh_works(other, model, sizes) and compiled.fits(other):
            _try_policies(compiled, other)


def _order(result: SearchResult) -> tuple[bool, float]:
    return not result.plan.fits, _step_seconds(result.plan)


def candidates(config: TrainConfig, model: Qwen3Config, topology: Topology) -> Iterator[tuple[TrainConfig, Estimate]]:
    """Yield every setting that divides the model and the batch, with its estimate."""
    for sizes in factorizations(len(topology.devices), len(AXES)):
        if sizes[0] not in topology.replicas:
            continue  # whole copies of the weights within a slice only cost memory
        if sizes[2] > 1 and not model.num_experts:
            continue
        rows = config.data.batch_size // (sizes[0] * sizes[1] * sizes[2])
        for micro_batches in (2**power for power in range(rows.bit_length())):
            on_mesh = dataclasses.replace(config, mesh=MeshConfig(*sizes), micro_batches=micro_batches)
            if not mesh_works(on_mesh, model, sizes):
                continue
            for remat in _REMAT:
                setting = dataclasses.replace(on_mesh, model=dataclasses.replace(config.model, remat=remat))
                yield setting, estimate(setting, model, topology, sizes)


def table(results: Ranking, topology: Topology) -> str:
    """Return the ranking as text, best first, with the first one's report and the settings that did not compile."""
    heads = f"{'HBM GiB':>8} {'estimate':>8} {'step s':>8} {'MFU':>6} {'bound by':<9}"
    lines = [f"{'mesh':<36} {'remat':<10} {'micro':>5} {heads} compile s"]
    for result in results:
        memory = result.plan.compiled.needed
        bound = result.plan.compiled.roofline if result.plan.fits else None
        lines.append(
            f"{describe(result.mesh):<36} {result.remat:<10} {result.micro_batches:>5} "
            f"{'?' if memory is None else f'{memory / GIB:.1f}':>8} {result.estimate.memory / GIB:>8.1f} "
            + (f"{bound.step_s:>8.3f} {result.plan.mfu:>6.1%} {bound.bound:<9}" if bound else f"{'does not fit':>24} ")
            + f" {result.plan.compiled.seconds:.0f}"
        )
    lines += [f"does not compile: {text}" for text in results.failed]
    lines.append(
        f"(HBM of {topology.capacity_gib:.4g} GiB per {topology.unit}; estimate: before compiling.) The first one:"
    )
    best = results[0]
    flags = " ".join(f"--mesh.{axis}={size}" for axis, size in zip(AXES, best.mesh, strict=True))
    lines.append(f"  {flags} --model.remat={best.remat} --micro_batches={best.micro_batches}")
    return "\n".join([*lines, best.plan.text()])


def _own_setting(config: TrainConfig, topology: Topology) -> TrainConfig | None:
    """The configuration itself with its mesh filled in, or None where it does not fit the devices."""
    try:
        sizes = config.mesh.sizes(len(topology.devices))
    except ShardingError:
        return None
    model = training_architecture(config)
    works = math.prod(sizes) == len(topology.devices) and mesh_works(config, model, sizes)
    return dataclasses.replace(config, mesh=MeshConfig(*sizes)) if works else None


def _step_seconds(plan: Plan) -> float:
    bound = plan.compiled.roofline
    return math.inf if bound is None else bound.step_s


def _verdict(plan: Plan) -> str:
    bound = plan.compiled.roofline
    return "does not fit" if bound is None or not plan.fits else f"{bound.step_s:.3f} s"


def _key(setting: TrainConfig) -> _Key:
    return setting.mesh, setting.model.remat, setting.micro_batches


def _settings(config: TrainConfig, model: Qwen3Config, topology: Topology) -> list[tuple[TrainConfig, Estimate]]:
    """Every setting of these devices with its estimate.

    Raises:
        UserError: there is none.
    """
    settings = list(candidates(config, model, topology))
    if not settings:
        raise UserError(
            f"no mesh of the {len(topology.devices)} devices of {topology.title} divides {config.data.batch_size} rows of "
            f"{config.data.sequence_length} tokens and the model; change data.batch_size (a multiple of the devices is safe)."
        )
    return settings
