"""Bounds of configuration fields: which end belongs to the interval, what is no number, and what the message says."""

import math

import numpy as np
import pytest

from qwen3_jax.bounds import above, at_least, between, check_bounds, whole
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import DataConfig, RunningSum, Source
from qwen3_jax.data.config import Cleaning, LengthShare
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.serving.guard import Limits
from qwen3_jax.sweeps.config import MixtureConfig, ScalingConfig, Target, Verify
from qwen3_jax.training.config import LossConfig, OptimizerConfig, TrainConfig
from qwen3_jax.training.stage_config import StageConfig

CASES = {
    "at least": (at_least(2), [2, 2.5, math.inf], {1: "at least 2", 1.99: "at least 2", math.nan: "at least 2"}),
    "half open": (at_least(0, below=1), [0, 0.99], {1: "at least 0 and below 1", -0.1: "at least 0 and below 1"}),
    "above": (above(0), [1e-9, math.inf], {0: "above 0", -1: "above 0", math.nan: "above 0"}),
    "finite": (above(0, finite=True), [1e300], {0: "above 0 and finite", math.inf: "above 0 and finite"}),
    "between": (between(0.1, 0.9), [0.1, 0.9], {0.09: "between 0.1 and 0.9", 0.91: "between 0.1 and 0.9"}),
    "whole": (whole(1), [1, 10**12, np.int64(1)], {0: "at least 1", 1.5: "a whole number", "1": "a whole number"}),
    "whole range": (whole(1, 3), [1, 3], {0: "between 1 and 3", 4: "between 1 and 3", True: "a whole number"}),
    "number": (at_least(0), [np.float32(0)], {"0": "a number", False: "a number"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_ends_of_an_interval_and_what_is_no_number(case):
    bound, accepted, refused = CASES[case]
    check_bounds({"field": accepted}, field=bound)
    for value, rule in refused.items():
        for given in (value, [*accepted, None, value], (value,)):
            with pytest.raises(UserError) as refusal:
                check_bounds({"field": given}, "part.", field=bound)
            assert str(refusal.value) == f"part.field is {value!r}; it must be {rule}."


def test_none_is_skipped_and_a_bound_of_no_field_is_a_bug():
    check_bounds({"field": None, "other": -1}, field=whole(1))
    with pytest.raises(KeyError):
        check_bounds({"field": 1}, feild=whole(1))


RUN = dict(output="o", train="t", tokens=1e6)
SCALING = dict(output="o", train="t")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RunningSum(max_digits=27), "running_sum.max_digits is 27; it must be between 2 and 26."),
        (lambda: RunningSum(thinking=0, non_thinking=0, disabled=0, truncated=0), "running_sum.thinking, non_thinking"),
        (lambda: BudgetCurveConfig("s", problems=0), "budget_curve.problems is 0; it must be at least 1."),
        (lambda: BudgetCurveConfig("s", budgets=[4, -1, None]), "budget_curve.budgets is -1; it must be at least 0."),
        (lambda: Target(parameters=0.0, tokens=1.0), "target.parameters is 0.0; it must be above 0 and finite."),
        (lambda: ScalingConfig(**SCALING, rate_points=2), "rate_points is 2; it must be at least 3."),
        (lambda: ScalingConfig(**SCALING, rate_ratio=1.0), "rate_ratio is 1.0; it must be above 1."),
        (lambda: ScalingConfig(**SCALING, level=1.0), "level is 1.0; it must be between 0.5 and 0.999."),
        (lambda: ScalingConfig(**SCALING, tokens=[1e6, -1.0]), "tokens is -1.0; it must be above 0 and finite."),
        (lambda: ScalingConfig(**SCALING, seeds=[1, 1]), "seeds must hold at least one seed, and none twice; got [1, 1]."),
        (lambda: Verify(seeds=[-1]), "verify.seeds is -1; it must be at least 0."),
        (lambda: Verify(seeds=[]), "verify.seeds must hold at least one seed"),
        (lambda: MixtureConfig(**RUN, mixtures=3), "mixtures is 3; it must be at least 4."),
        (lambda: MixtureConfig(**RUN, min_weight=0.6), "min_weight is 0.6; it must be between 0 and 0.5."),
        (lambda: MixtureConfig(**RUN, objective={"web": -1.0}), "objective.web is -1.0; it must be at least 0."),
        (lambda: MixtureConfig(**RUN, objective={}), "objective names no held-out loss"),
    ],
)  # fmt: skip
def test_a_broken_bound_names_its_field(build, message):
    with pytest.raises(UserError) as refusal:
        build()
    assert str(refusal.value).startswith(message)


SOURCES = [Source("s", "x")]
SMALL = 1e-9
# What builds a configuration; and of each field the last value on either side of its bound: (accepted, refused).
EDGES = {
    "running_sum": (
        RunningSum,
        {
            "problems": (1, 0), "eval_problems": (1, 0), "min_digits": (2, 1), "max_digits": (26, 27),
            **dict.fromkeys(("thinking", "non_thinking", "disabled", "truncated"), (0, -SMALL)),
        },
    ),
    "shortest sums": (lambda **field: RunningSum(min_digits=5, **field), {"max_digits": (5, 4)}),
    "longest sums": (lambda **field: RunningSum(max_digits=26, **field), {"min_digits": (26, 27)}),
    "cleaning": (Cleaning, {"similarity": (0.1, 0.1 - SMALL), "ngram": (1, 0), "max_malformed": (0, -1)}),
    "cleaning, above": (Cleaning, {"similarity": (0.99, 0.99 + SMALL)}),
    "source": (lambda **field: Source("s", "x", **field), {"weight": (SMALL, 0), "eval_fraction": (0, -SMALL)}),
    "source, above": (
        lambda **field: Source("s", "x", **field),
        {"weight": (1e300, math.inf), "eval_fraction": (1 - SMALL, 1)},
    ),
    "length class": (lambda **field: LengthShare(**(dict(above=0, up_to=1, weight=1) | field)), {
        "above": (0, -1), "up_to": (1, 0), "weight": (SMALL, 0),
    }),
    "data": (
        lambda **field: DataConfig(SOURCES, **field),
        {
            **dict.fromkeys(("sequence_length", "batch_size", "packing_rows"), (1, 0)),
            **dict.fromkeys(("prefetch_batches", "seed"), (0, -1)),
        },
    ),
    "optimizer": (
        OptimizerConfig,
        {
            **dict.fromkeys(("learning_rate", "final_learning_rate", "decay_share", "beta1", "beta2"), (0, -SMALL)),
            **dict.fromkeys(("weight_decay", "eps", "spike_sigmas"), (0, -SMALL)),
            "warmup_steps": (0, -1), "clip_norm": (SMALL, 0), "spike_window": (2, 1), "max_skips": (1, 0),
        },
    ),
    "optimizer, above": (
        OptimizerConfig, dict.fromkeys(("final_learning_rate", "decay_share", "beta1", "beta2"), (1, 1 + SMALL)),
    ),
    "loss": (LossConfig, {"z_loss": (0, -SMALL), "chunk_tokens": (1, 0)}),
    "stage": (lambda **field: StageConfig(**(dict(name="s", steps=1) | field)), {
        "steps": (1, 0), "rope_theta": (SMALL, 0), "weights": ({"s": SMALL}, {"s": 0}),
    }),
    "run": (
        lambda **field: TrainConfig(**(dict(data=DataConfig(SOURCES), run_dir="r", steps=200) | field)),
        {
            **dict.fromkeys(("micro_batches", "log_every", "eval_batches", "checkpoint_keep"), (1, 0)),
            **dict.fromkeys(("eval_every", "checkpoint_every", "checkpoint_keep_best"), (0, -1)),
        },
    ),
    "steps": (
        lambda **field: TrainConfig(
            data=DataConfig(SOURCES), run_dir="r", optimizer=OptimizerConfig(warmup_steps=0), **field
        ),
        {"steps": (1, 0)},
    ),
    "architecture": (
        lambda **field: Qwen3Config(**(dict(num_attention_heads=1, num_key_value_heads=1) | field)),
        {
            "num_experts": (0, -1), "head_dim": (2, 0),
            **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), (1, 0)),
            **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "max_position_embeddings"), (1, 0)),
            **dict.fromkeys(("moe_intermediate_size", "decoder_sparse_step"), (1, 0)),
        },
    ),
    "limits": (Limits, dict.fromkeys(
        ("body_bytes", "messages", "max_tokens", "n", "requests", "waiting", "seconds"), (1, 0)
    )),
    "budget curve": (
        lambda **field: BudgetCurveConfig("s", **field),
        {"budgets": ([0], [-1]), **dict.fromkeys(("problems", "max_new_tokens", "batch_size"), (1, 0))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_each_field_is_bounded_where_its_documentation_says(name):
    build, fields = EDGES[name]
    for field, (accepted, refused) in fields.items():
        build(**{field: accepted})
        with pytest.raises(UserError, match=rf"{field}(\.s)?\b.* is .*; it must be"):
            build(**{field: refused})


POSITIVE, FROM_0, FROM_1 = (0, -1.0, math.inf), (-1, 0.5, True), (0, -1, 1.5)  # values that are refused
REFUSED = {
    "running_sum": (RunningSum, {}, dict(problems=FROM_1, eval_problems=FROM_1, min_digits=(1, 27), max_digits=(1, 27),
        thinking=(-0.1,), non_thinking=(-0.1,), disabled=(-0.1,), truncated=(-0.1,))),
    "cleaning": (Cleaning, {}, dict(similarity=(0.09, 1.0), ngram=FROM_1, max_malformed=FROM_0)),
    "source": (Source, dict(name="s", path="x"), dict(weight=POSITIVE, eval_fraction=(-0.1, 1))),
    "lengths": (LengthShare, dict(above=0, up_to=9, weight=1.0), dict(above=(-1, 9), up_to=(0,), weight=POSITIVE)),
    "data": (DataConfig, dict(sources=[Source("s", "x")]), dict(sequence_length=FROM_1, batch_size=FROM_1, packing_rows=FROM_1,
        prefetch_batches=FROM_0, seed=FROM_0)),
    "budget_curve": (BudgetCurveConfig, dict(source="s"), dict(budgets=([-1], [0.5]), problems=FROM_1, max_new_tokens=FROM_1,
        batch_size=FROM_1)),
    "target": (Target, dict(parameters=1.0, tokens=1.0), dict(parameters=POSITIVE, tokens=POSITIVE, sequence_length=FROM_1)),
    "verify": (Verify, {}, dict(tokens=POSITIVE, seeds=([], [1, 1], [-1]))),
    "scaling": (ScalingConfig, SCALING, dict(tokens=([0.0], [1.0, -1.0]), learning_rates=([0.0],), batch_tokens=([0], [1.5]),
        rate_points=(2,), batch_points=(0,), widen=(-1,), eval_tokens=(0,), rate_ratio=(1,), batch_ratio=(1,), window=POSITIVE,
        prior_deviation=POSITIVE, max_extrapolation=POSITIVE, warmup_share=(-0.1, 0.91), level=(0.49, 0.9991),
        seeds=([-1], []))),
    "mixture": (MixtureConfig, RUN, dict(tokens=POSITIVE, target_tokens=POSITIVE, max_epochs=POSITIVE, eval_tokens=FROM_1,
        mixtures=(3,), min_weight=(-0.1, 0.51), warmup_share=(-0.1, 0.91), seed=(-1,), concentration=([1.0], [0, 1], [2, 1]))),
    "architecture": (Qwen3Config, {}, dict.fromkeys((
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "moe_intermediate_size", "decoder_sparse_step"), FROM_1)
        | dict(num_experts=FROM_0)),
}  # fmt: skip


@pytest.mark.parametrize("section", REFUSED)
def test_every_bounded_field_refuses_what_is_just_outside(section):
    cls, needed, refused = REFUSED[section]
    cls(**needed)
    for name, values in refused.items():
        for value in values:
            with pytest.raises(UserError, match=name):
                cls(**needed | {name: value})
