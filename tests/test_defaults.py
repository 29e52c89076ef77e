"""The defaults of configurations and options: a changed default changes every run that leaves the field out.

Where a number has a source, the row names it. A change here is a change for users: it belongs in CHANGELOG.md.
"""

import dataclasses
import inspect

import pytest

import qwen3_jax
from qwen3_jax.cli import serve
from qwen3_jax.data.config import Cleaning, DataConfig, Labels, RunningSum, Source
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.evaluation.harness_options import HarnessOptions
from qwen3_jax.evaluation.tasks.choices import Languages, ReduxOptions, ShuffleOptions, Subjects
from qwen3_jax.evaluation.tasks.coding import DateWindow
from qwen3_jax.evaluation.tasks.conversations import LengthOptions, ThinkFollowOptions
from qwen3_jax.evaluation.tasks.counterfactual import CounterfactOptions
from qwen3_jax.evaluation.tasks.functions import BfclOptions
from qwen3_jax.evaluation.tasks.generated import RunningSumOptions
from qwen3_jax.evaluation.tasks.instructions import IFEvalOptions
from qwen3_jax.evaluation.tasks.long_context import KINDS, RulerOptions
from qwen3_jax.evaluation.tasks.tool_use import ToolUseOptions
from qwen3_jax.generation import STOP_TEXT, DraftModel, Engine, PromptLookup, Sampling, engine
from qwen3_jax.sandbox import Limits
from qwen3_jax.sweeps.config import MixtureConfig, ScalingConfig
from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig, TokenizerConfig, TrainConfig
from qwen3_jax.training.distillation_config import DistillationConfig, TeacherServer
from qwen3_jax.training.environment_config import EnvironmentConfig
from qwen3_jax.training.methods import LEARNING_RATES, DpoConfig
from qwen3_jax.training.policy_config import EntropyBand, KlConfig, PolicyConfig
from qwen3_jax.training.reward_config import RewardPart
from qwen3_jax.training.rl_config import PromptSource, RlConfig, RolloutConfig
from qwen3_jax.verifiers.checks import ChecksSettings
from qwen3_jax.verifiers.choice import ChoiceSettings
from qwen3_jax.verifiers.content import PremiseSettings, RecallSettings
from qwen3_jax.verifiers.exact import ExactSettings
from qwen3_jax.verifiers.ifeval import IFEvalSettings
from qwen3_jax.verifiers.mathematics import MathSettings
from qwen3_jax.verifiers.number import NumberSettings
from qwen3_jax.verifiers.patterns import JsonSettings, RegexSettings
from qwen3_jax.verifiers.programs import CodeSettings
from qwen3_jax.verifiers.reasoning_gym import ReasoningGymSettings
from qwen3_jax.verifiers.style import LanguageSettings, LengthSettings, RepetitionSettings, ThinkingSettings
from qwen3_jax.verifiers.tables import TableSettings
from qwen3_jax.verifiers.tool_calls import ToolCallSettings

# The fields whose default is a plain value other than None.
DEFAULTS = {
    ModelConfig: dict(dtype="float32", param_dtype="float32", scan_layers=True, remat="none"),
    TokenizerConfig: dict(vocab_size=4096, train_records=2000),
    OptimizerConfig: dict(  # betas and decay of Llama 2 (Touvron et al. 2023, section 2.2); eps of Adam's paper
        warmup_steps=100, schedule="cosine", final_learning_rate=0.1, decay_share=0.2, weight_decay=0.1,
        beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32", spike_sigmas=6.0, spike_window=128,
        max_skips=20,
    ),
    DistillationConfig: dict(form="exact"),
    TeacherServer: dict(timeout=300.0, tries=5, concurrency=16),
    DpoConfig: dict(beta=0.1),  # the paper's, and TRL's
    EnvironmentConfig: dict(
        shared=False, max_turns=8, seconds_per_call=30.0, seconds_per_episode=300.0, max_result_tokens=1024, concurrency=16,
        history="keep",
    ),
    PolicyConfig: dict(algorithm="grpo", importance_level="token", replay_experts=False),
    KlConfig: dict(coefficient=0.0, estimator="k3", unbiased=True),  # DeepSeek-V3.2's form
    EntropyBand: dict(start=0.0),
    PromptSource: dict(format="auto", weight=1.0, eval_fraction=0.0),
    RolloutConfig: dict(
        prompts=32, group_size=8, updates=1, max_new_tokens=1024, temperature=1.0, thinking=1.0, budget_share=1.0, refill=0,
        keep_rate=1.0, keep=20,
    ),
    RlConfig: dict(eval_prompts=64, eval_samples=1),
    RewardPart: dict(
        weight=1.0, gate=False, pass_at=1.0, below=0.0, rubric="quality", reference=False, samples=1, combine="mean",
        highest=10, attempts=3, tries=3, timeout=60.0, concurrency=16, max_new_tokens=4096, scale=1.0, offset=0.0,
        sigmoid=False,
    ),
    LossConfig: dict(z_loss=0.0, chunk_tokens=1024, balance_counts="exact"),
    TrainConfig: dict(
        method="pretrain", run_dir="runs/default",
        micro_batches=1, seed=0, log_every=10, eval_every=0, eval_at_start=False, eval_batches=8, checkpoint_every=0,
        checkpoint_keep=2, checkpoint_keep_best=1, profile=False,
    ),
    DataConfig: dict(sequence_length=512, batch_size=32, seed=0, packing_rows=256, prefetch_batches=4),
    Source: dict(
        format="auto", text_key="text", loss_on="assistant", history="new_sample", read_control_tokens=False, pairs=False,
        weight=1.0, eval_fraction=0.01,
    ),
    Labels: dict(language="und"),
    Cleaning: dict(duplicates="keep", similarity=0.8, ngram=13, max_malformed=0),
    RunningSum: dict(
        problems=50_000, eval_problems=512, min_digits=2, max_digits=12, thinking=0.55, non_thinking=0.15, disabled=0.1,
        truncated=0.2, document=0.0, stop_text=STOP_TEXT,
    ),
    BudgetCurveConfig: dict(problems=200, max_new_tokens=128, batch_size=100),
    ScalingConfig: dict(
        start="step_law", rate_points=5, rate_ratio=2.0, batch_points=3, batch_ratio=2.0, widen=2, warmup_share=0.1,
        eval_tokens=65_536, window=0.15, prior="step_law", prior_deviation=0.3, level=0.9, max_extrapolation=100.0,
    ),
    MixtureConfig: dict(mixtures=24, min_weight=0.01, max_epochs=4.0, warmup_share=0.1, eval_tokens=65_536, seed=0),
    Sampling: dict(
        presence_penalty=0.0, frequency_penalty=0.0, stop=(), stop_token_ids=(), sampled_logprobs=False, n=1
    ),
    HarnessOptions: dict(max_gen_toks=256),  # lm-eval's
    PromptLookup: dict(guesses=4, longest=3, shortest=2),
    DraftModel: dict(guesses=4),
    Limits: dict(seconds=10.0, memory_mb=512, processes=32, file_mb=16, open_files=64, output_kb=1024),
    MathSettings: dict(  # math-verify's, whose time limit is 5 s for each of its steps
        seconds=5.0, float_rounding=6, numeric_precision=15, strict=True, set_as_relation=False, delimit=True,
    ),
    ExactSettings: dict(ignore_case=False, ignore_punctuation=False, join_spaces=True),
    NumberSettings: dict(take="last", tolerance=0.0, relative_tolerance=0.0, percent=False),
    ChoiceSettings: dict(letters="ABCD"),
    RegexSettings: dict(whole=True, ignore_case=False, seconds=2.0),
    JsonSettings: dict(fenced=True, formats=True, seconds=2.0),
    IFEvalSettings: dict(loose=False, seconds=10.0),
    CodeSettings: dict(isolation="auto", stop_at_first=True, tolerance=0.0),
    ToolCallSettings: dict(ordered=False, ignore_case=False, loose=False),
    RecallSettings: dict(need="all", ignore_case=True, whole_words=True),
    PremiseSettings: dict(within=3),
    ReasoningGymSettings: dict(seconds=20.0, tag="answer", needs_tag=True),
    ThinkingSettings: dict(content=True),
    RepetitionSettings: dict(n=20, most=0.2, times=4, loop_units=40, longest=200),
    LanguageSettings: dict(most=0.02, most_latin=0.5),
    LengthSettings: dict(unit="words", tolerance=0.1),
    TableSettings: dict(ordered=True, fenced=True, seconds=2.0),
    ChecksSettings: dict(partial=False),
    Subjects: dict(subjects=()),
    ReduxOptions: dict(answers="ok", subjects=()),
    Languages: dict(languages=(), share=1.0),
    ShuffleOptions: dict(seed=0),
    DateWindow: dict(start="2024-10-01", end="2025-02-28", difficulty=""),
    IFEvalOptions: dict(loose=False),
    BfclOptions: dict(categories=()),
    RulerOptions: dict(lengths=(4096, 8192, 16384, 32768), problems=10, kinds=KINDS, seed=0, tokenizer=""),
    RunningSumOptions: dict(problems=200, seed=0, min_digits=2, max_digits=12, eval_fraction=0.05),
    ThinkFollowOptions: dict(dialogues=50, turns=4, flagged=0.6, seed=0),
    LengthOptions: dict(problems=100, seed=0),
    CounterfactOptions: dict(problems=200, true_premises=0.25, seed=0),
    ToolUseOptions: dict(conversations=100, seed=0),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_defaults_of_configurations(kind):
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    plain = {name: value for name, value in defaults.items() if value is not None and value is not dataclasses.MISSING}
    assert plain == DEFAULTS[kind]


def test_default_learning_rates_of_methods():  # TRL 1.16's for DPO is 1e-6, for SFT 2e-5
    assert dict(pretrain=3e-4, sft=1e-5, dpo=1e-6, reward_model=1e-5, grpo=1e-6, distillation=1e-6) == LEARNING_RATES


def test_defaults_of_the_engine_and_the_server():
    def given(function) -> dict:
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default not in (None, inspect.Parameter.empty)}

    assert given(Engine.__init__) == dict(rows=32, prefix_cache=True, offline=False, report_experts=False)
    assert [getattr(engine, name) for name in ("_ONLINE", "_OFFLINE")] == [(512, 8), (1024, 32)]  # chunk, steps
    assert given(qwen3_jax.generate) == dict(continue_final_message=False, thinking_stop_text=STOP_TEXT, progress=False)
    assert given(qwen3_jax.load) == dict(verify=True)
    options = vars(serve._parser("qwen3 serve").parse_args(["--model", "x"]))
    limits = {name: value for name, value in options.items() if type(value) in (int, float)}
    assert limits == dict(
        port=8000, max_n=16, max_messages=2048, max_body=8 * 2**20, max_requests=512, max_waiting=256, timeout=3600.0,
        rows=32, drain=60,
    )  # fmt: skip
