"""The device programs of a model that is called layer by layer: equal layers share one small program, called for each of them.

A whole program of an unrolled model has the instructions of every layer: compiling one of Qwen3-0.6B takes some 20 CPU seconds
for each shape; this takes 5. From layer to layer the host calls the next program, which takes it a fraction of a millisecond:
little beside the time of a large layer on a CPU, much beside that of a small one (`is_better`).

`prefill`, `decode` and `verify` take the arguments of `program`'s, without structures and parameters, and return the same.

Shapes: as in `program`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.generation.parts import (
    Steps,
    decode_rows,
    guessed_tokens,
    last_states,
    prefill_rows,
    small,
    take,
    verified,
)  # fmt: skip
from qwen3_jax.generation.rows import Output, Progress, Settings, State
from qwen3_jax.generation.sampling import Seen
from qwen3_jax.kernels import Pages, Rows, is_one_cpu
from qwen3_jax.model import Entered, Hidden, Qwen3, run_group

# Bytes of a layer whose products with one token take some forty times as long as the call of a program.
_LEAST_LAYER_BYTES = 16 << 20


def is_better(model: Qwen3) -> bool:
    """Return whether to call a model layer by layer: on one CPU device, with several layers that are apart and large."""
    if model.scan_layers or not is_one_cpu(model.execution.placement):
        return False
    layers = [sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(group))) for group in model.groups]
    return len(layers) > 1 and min(layers) >= _LEAST_LAYER_BYTES


class _Module:
    """A module as its structure and a list of its arrays; JAX looks a program up by the structure, whose hash is kept."""

    def __init__(self, module: nnx.Module):
        self._graphdef, state = nnx.split(module)
        leaves, self._treedef = jax.tree.flatten(state)
        # Committed, as the results of programs are: a program is compiled anew for arrays that are not. Nothing is copied.
        self.leaves = jax.device_put(leaves, *leaves[0].devices())
        self._hash = hash((self._graphdef, self._treedef))

    def merge(self, leaves: Sequence[jax.Array]) -> Any:
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, _Module) and (self._graphdef, self._treedef) == (other._graphdef, other._treedef)


class LayeredPrograms:
    """The programs of a model whose layers are apart (`scan_layers=False`).

    Args:
        model: its arrays are shared, not copied.
        report_experts: return the experts of each token.
    """

    def __init__(self, model: Qwen3, report_experts: bool):
        self._report_experts = report_experts
        # Equal layers are one object, which JAX recognises without comparing.
        kinds: dict[_Module, _Module] = {}
        modules = [_Module(group) for group in model.groups]
        self._layers = [(kinds.setdefault(module, module), module.leaves) for module in modules]
        rest = nnx.merge(*nnx.split(model))
        rest.groups = nnx.List([])
        self._rest = _Module(rest)
        (self._device,) = self._rest.leaves[0].devices()

    def prefill(
        self, state: State, settings: Settings, progress: Progress, tokens_df: Any, counts_dr: Any, tables_drw: Any
    ) -> tuple[State, Progress, Output, jax.Array, jax.Array | None]:
        """See `program.prefill`."""
        rest = self._rest, self._rest.leaves
        entered, rows = _enter_prefill(*rest, settings, progress, tokens_df, counts_dr, tables_drw)
        x_dfd, groups, experts = self._run_layers(entered, state.groups, rows)
        states_dfd, last_b1d, progress, reported = _leave_prefill(*rest, progress, counts_dr, x_dfd, experts)
        seen, progress, output = _answer(*rest, state.seen, settings, progress, last_b1d, None)
        return State(groups, (), seen), progress, output, states_dfd, reported

    def decode(
        self, most: int, state: State, settings: Settings, progress: Progress, tables_drw: Any, steps: Any, least: Any,
        allowed_bw: Any = None,
    ) -> tuple[State, Progress, Output]:  # fmt: skip
        """See `program.decode`. The host waits for each step, to learn how many rows are unfinished."""
        rest = self._rest, self._rest.leaves
        groups, seen = state.groups, state.seen
        taken, unfinished = _start_steps(*rest, most, self._report_experts, settings, seen, progress)
        # Committed, as the next steps' are, or the first step would be compiled by itself.
        taken = jax.device_put(taken, self._device)
        for _ in range(int(steps)):
            if int(unfinished) < int(least):
                break
            entered, rows, running = _enter_decode(*rest, settings, taken, tables_drw)
            x_b1d, groups, experts = self._run_layers(entered, groups, rows)
            seen, after, output = _answer(*rest, seen, settings, running, x_b1d, allowed_bw)
            taken, unfinished = _advance(allowed_bw is not None, taken, settings, after, output, experts)
        return State(groups, (), seen), taken.progress, taken.outputs

    def verify(
        self, state: State, settings: Settings, progress: Progress, tables_drw: Any, guess_bg: Any
    ) -> tuple[State, Progress, Output]:
        """See `program.verify`; there is no draft model."""
        rest = self._rest, self._rest.leaves
        entered, rows = _enter_verify(*rest, settings, progress, tables_drw, guess_bg)
        x_bgd, groups, experts = self._run_layers(entered, state.groups, rows)
        seen, *results = _leave_verify(*rest, state.seen, settings, progress, guess_bg, x_bgd, experts)
        return State(groups, (), seen), *results

    def _run_layers(
        self, entered: Entered, groups: tuple[Pages, ...], rows: Rows
    ) -> tuple[jax.Array, tuple[Pages, ...], list[jax.Array]]:
        """Return the last layer's output, the layers' pages, and the experts of each MoE layer, if they are reported."""
        x_btd, pools, reported = entered.x_btd, [], []
        for (module, leaves), pages in zip(self._layers, groups, strict=True):
            x_btd, pool, experts = _layer(
                module, self._report_experts, leaves, x_btd, pages, entered.rope, entered.chosen_btn, rows
            )
            pools.append(pool)
            if experts is not None:
                reported.append(experts)
        return x_btd, tuple(pools), reported


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _layer(module: _Module, report_experts: bool, leaves, x_btd, pages, rope, chosen_btn, rows):
    block = module.merge(leaves)
    x_btd, pages, routed = run_group(block, x_btd, rope, None, pages, rows, "none", chosen_btn, None, report_experts)
    return x_btd, pages, None if routed is None else routed.experts


def _reported(experts: Sequence[jax.Array]) -> jax.Array | None:
    return jnp.stack(experts, axis=2) if experts else None


@functools.partial(jax.jit, static_argnums=0)
def _enter_prefill(module: _Module, leaves, settings, progress, tokens_df, counts_dr, tables_drw):
    rows, adapter_df = prefill_rows(settings, progress, tokens_df, counts_dr, tables_drw)
    return module.merge(leaves).enter(tokens_df, rows=rows, adapter=adapter_df), rows


@functools.partial(jax.jit, static_argnums=0)
def _leave_prefill(module: _Module, leaves, progress, counts_dr, x_dfd, experts):
    last_bd, progress = last_states(progress, counts_dr, x_dfd)
    return module.merge(leaves).norm(x_dfd), last_bd[:, None], progress, small(_reported(experts))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _answer(module: _Module, leaves, seen, settings, progress, x_b1d, allowed_bw):
    """Sample a token of each row from the output of the last layer: one program for prefills and decode steps.

    It takes as long to compile as a layer.
    """
    model = module.merge(leaves)
    logits_bv = model.logits(model.norm(x_b1d)[:, 0], settings.adapter)
    seen, progress, output = take(model, settings, seen, progress, logits_bv, allowed_bw)
    return seen, progress, jax.tree.map(lambda x_b: x_b[None], output)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _start_steps(module: _Module, leaves, most, report_experts, settings, seen: Seen, progress):
    steps = Steps.start(module.merge(leaves), most, settings, seen, progress, report_experts)
    return steps, steps.unfinished


@functools.partial(jax.jit, static_argnums=0)
def _enter_decode(module: _Module, leaves, settings, steps: Steps, tables_drw):
    running = steps.running
    rows = decode_rows(running, tables_drw)
    entered = module.merge(leaves).enter(running.token[:, None], rows=rows, adapter=settings.adapter[:, None])
    return entered, rows, running


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(constrained: bool, steps: Steps, settings, progress, output, experts):
    output = jax.tree.map(lambda x_1b: x_1b[0], output).replace(experts=small(_reported(experts), 0))
    steps = steps.after(settings, progress, output, constrained)
    return steps, steps.unfinished


@functools.partial(jax.jit, static_argnums=0)
def _enter_verify(module: _Module, leaves, settings, progress, tables_drw, guess_bg):
    tokens_bt, adapter_bt = guessed_tokens(settings, progress, guess_bg)
    rows = decode_rows(progress, tables_drw)
    return module.merge(leaves).enter(tokens_bt, rows=rows, adapter=adapter_bt), rows


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _leave_verify(module: _Module, leaves, seen, settings, progress, guess_bg, x_bgd, experts):
    model = module.merge(leaves)
    hidden = Hidden(model.norm(x_bgd), None, None, _reported(experts))
    return verified(model, seen, settings, progress, guess_bg, hidden)
