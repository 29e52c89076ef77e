"""Which mesh, remat policy and number of micro-batches suit a slice: an estimate orders them, the compiler decides.

    python train.py --config configs/scale/qwen3-32b.yaml --plan v6e:8x8 --search

Of each mesh the setting with the shortest estimated step (`estimate`) that should fit is kept; the best few of these are
compiled. Estimates are too rough to choose a remat policy, so for the configuration's own setting and for the best one all
policies that recompute less are compiled, until one does not fit, and other numbers of micro-batches are tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args, get_type_hints

from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.planner.architecture import training_architecture
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


@dataclass(frozen=True)
class SearchResult:
    """One setting that was compiled."""

    mesh: tuple[int, ...]
    remat: str
    micro_batches: int
    estimate: Estimate
    plan: Plan


def search(config: TrainConfig, topology: Topology, limit: int = _COMPILED_SETTINGS) -> list[SearchResult]:
    """Compile the most promising settings for the slice(s); best first, those that do not fit last.

    Args:
        config: the run; its batch and sequence length stay.
        topology: the slice(s).
        limit: meshes to compile, the configuration's own included.

    Raises:
        UserError: no mesh of these devices divides the model and the batch.
    """
    config, _ = across_slices(config, topology)
    model = training_architecture(config)
    settings = _promising(config, model, topology)[:limit]
    with progress_bar("compiling", len(settings) + len(_REMAT)) as bar:
        compiled = _Compiled(model, topology, bar)
        for number, setting in enumerate(settings):
            compiled.result(setting)
            if number == 0:
                _try_policies(compiled, setting)
        _try_policies(compiled, compiled.best())
        _try_micro_batches(compiled, compiled.best(), model)
    return sorted(compiled.results.values(), key=_order)


class _Compiled:
    """Settings that were compiled, each once."""

    def __init__(self, model: Qwen3Config, topology: Topology, bar: Bar):
        self._model, self._topology, self._bar = model, topology, bar
        self.results: dict[tuple[MeshConfig, str, int], SearchResult] = {}
        self._settings: dict[tuple[MeshConfig, str, int], TrainConfig] = {}

    def result(self, setting: TrainConfig) -> SearchResult:
        """Compile a setting, unless it was before."""
        key = (setting.mesh, setting.model.remat, setting.micro_batches)
        if key not in self.results:
            plan = plan_training(setting, self._topology)
            sizes = tuple(plan.mesh[axis] for axis in AXES)
            estimated = estimate(setting, self._model, self._topology, sizes)
            self._settings[key] = setting
            self.results[key] = SearchResult(sizes, setting.model.remat, setting.micro_batches, estimated, plan)
            self._bar.advance(note=f"{describe(sizes)}, remat {setting.model.remat}: {_verdict(plan)}")
        return self.results[key]

    def best(self) -> TrainConfig:
        """The best setting so far."""
        return self._settings[min(self.results, key=lambda key: _order(self.results[key]))]


def _try_policies(compiled: _Compiled, setting: TrainConfig) -> None:
    """Compile the policies that recompute less, until one does not fit; or more, until one fits."""
    place = _REMAT.index(setting.model.remat)
    fits = compiled.result(setting).plan.fits
    for remat in reversed(_REMAT[:place]) if fits else _REMAT[place + 1 :]:
        other = dataclasses.replace(setting, model=dataclasses.replace(setting.model, remat=remat))
        if compiled.result(other).plan.fits != fits:
            return


def _try_micro_batches(compiled: _Compiled, setting: TrainConfig, model: Qwen3Config) -> None:
    """Compile half as many micro-batches (faster) and twice as many (less memory), where they divide."""
    sizes = compiled.result(setting).mesh
    for micro_batches in (setting.micro_batches // 2, setting.micro_batches * 2):
        other = dataclasses.replace(setting, micro_batches=max(micro_batches, 1))
        if micro_batches and mesh_works(other, model, sizes):
            compiled.result(other)
            if compiled.result(other).plan.fits:
                _try_policies(compiled, other)


def _order(result: SearchResult) -> tuple[bool, float]:
    return not result.plan.fits, _step_seconds(result.plan)


def _promising(config: TrainConfig, model: Qwen3Config, topology: Topology) -> list[TrainConfig]:
    """The configuration's own setting, then the best of each other mesh, in the order of their estimates."""
    ranked = sorted(candidates(config, model, topology), key=lambda item: item[1].seconds)
    if not ranked:
        raise UserError(
            f"no mesh of the {len(topology.devices)} devices of {topology.title} divides {config.data.batch_size} rows of "
            f"{config.data.sequence_length} tokens and the model; change data.batch_size (a multiple of the devices is safe)."
        )
    capacity = _MEMORY_SHARE * topology.chip.hbm_gib * GIB
    fitting = [item for item in ranked if item[1].memory <= capacity]
    best_by_mesh: dict[MeshConfig, TrainConfig] = {}
    for setting, _ in fitting or sorted(ranked, key=lambda item: item[1].memory):
        best_by_mesh.setdefault(setting.mesh, setting)
    own = _own_setting(config, topology)
    return ([own] if own is not None else []) + [setting for setting in best_by_mesh.values() if setting != own]


def candidates(config: TrainConfig, model: Qwen3Config, topology: Topology) -> Iterator[tuple[TrainConfig, Estimate]]:
    """Yield every setting that divides the model and the batch, with its estimate."""
    for sizes in factorizations(len(topology.devices), len(AXES)):
        if sizes[0] % topology.slices or (sizes[0] > topology.slices):
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


def table(results: list[SearchResult], topology: Topology) -> str:
    """Return the ranking as text, best first, with the first one's report."""
    heads = f"{'HBM GiB':>8} {'estimate':>8} {'step s':>8} {'MFU':>6} {'bound by':<9}"
    lines = [f"{'mesh':<36} {'remat':<10} {'micro':>5} {heads} compile s"]
    for result in results:
        memory = result.plan.compiled.needed
        bound = result.plan.compiled.roofline
        lines.append(
            f"{describe(result.mesh):<36} {result.remat:<10} {result.micro_batches:>5} "
            f"{'?' if memory is None else f'{memory / GIB:.1f}':>8} {result.estimate.memory / GIB:>8.1f} "
            + (f"{bound.step_s:>8.3f} {result.plan.mfu:>6.1%} {bound.bound:<9}" if bound else f"{'does not fit':>24} ")
            + f" {result.plan.compiled.seconds:.0f}"
        )
    lines.append(f"(HBM of {topology.chip.hbm_gib:g} GiB per chip; estimate: before compiling.) The first one:")
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
