"""Kernels and whole steps compile for NVIDIA GPUs that are not here: Triton, ptxas and XLA's own compiler run, nothing else.

The slow tier compiles every kernel once for an H100, and one step of each kind; `soak` every form for every card. The table
that `python -m tests.helpers.gpu_table` prints is in docs/gpu_kernels.md.
"""

import jax.numpy as jnp
import pytest

from qwen3_jax.config import Qwen3Config
from tests.helpers.gpu_forms import FORMS
from tests.helpers.gpu_steps import decode_step, train_step, written_arrays
from tests.helpers.gpu_table import outcome
from tests.helpers.gpu_targets import CARDS, card, compiled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_compilation_cache")]

# Decode steps below have the paged kernel in bfloat16.
ONCE = (
    "attention triton, gradient, packed",
    "attention triton, balanced over 4",
    "experts grouped, gradient",
    "experts grouped, one token, in a stack",
    "experts grouped, one token, int8",
    "experts auto, gradient, over 4 devices",
    "paged triton, fp8, pages of 32",
    "product with int8 weights",
)
SIZES = dict(
    vocab_size=2048, hidden_size=1024, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, head_dim=128,
    intermediate_size=1536, tie_word_embeddings=False,
)  # fmt: skip
DENSE = Qwen3Config(**SIZES)
MOE = Qwen3Config(**SIZES, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=384)


@pytest.mark.parametrize("name", ONCE)
def test_every_kernel_compiles_for_an_h100(name):
    assert outcome(name, "h100") == "compiles"


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("on", CARDS)
def test_every_form_compiles_for_every_card_or_is_refused(name, on):
    """By a sentence that names what the form needs; "auto" and "grouped" are never refused."""
    result = outcome(name, on)
    if result != "compiles":
        assert " needs " in result
        assert " auto" not in name
        assert "grouped" not in name


# ---- whole steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "rows", "axes"),
    [
        pytest.param(DENSE, 1, {}, marks=pytest.mark.soak),
        (MOE, 4, {}),
        (DENSE, 1, {"tensor": 4}),
        (MOE, 8, {"data": 2, "expert": 4}),
    ],
    ids=["dense", "moe", "dense over 4", "moe over 8"],
)
def test_a_decode_step_reads_each_weight_once(config, rows, axes):
    """No instruction outside of a fusion writes as many numbers as a weight has on a device, or as the whole weight has."""
    text = compiled(decode_step(config, "h100", rows=rows, context=512, **axes)).as_text()
    d, f = config.hidden_size, config.moe_intermediate_size if config.num_experts else config.intermediate_size
    heads = config.num_attention_heads, config.num_key_value_heads
    matrices = {d * h * config.head_dim for h in heads} | {d * f, config.num_experts * d * f, d * config.vocab_size}
    sizes = matrices | {size // parts for size in matrices for parts in axes.values()}
    written = {key: count for key, count in written_arrays(text).items() if key[1] in sizes and key[1]}
    assert not written
    assert "/paged_decode_" in text


@pytest.mark.parametrize("axes", [pytest.param({"data": 8}, marks=pytest.mark.soak), {"data": 2, "tensor": 4}], ids=str)
def test_a_dense_training_step_compiles(axes):
    text = compiled(train_step(DENSE, "h100", **axes)).as_text()
    calls = [line for line in text.splitlines() if " custom-call(" in line]
    # Remat of all but attention: its kernel's results are saved, so it runs once.
    for name in ("attention_forward", "attention_dq", "attention_dkv"):
        assert sum(f"/{name}/pallas_call" in line for line in calls) == 1


@pytest.mark.parametrize(
    ("axes", "nodes"),
    [pytest.param({"data": 2, "expert": 4}, 1, marks=pytest.mark.soak), ({"data": 4, "expert": 4}, 2)],
    ids=str,
)
def test_a_training_step_of_experts_is_not_dense(axes, nodes):
    """The products are the kernel's, which multiplies a token with its own experts alone."""
    # 256 tokens: a device's buffer holds whatever it may receive, so the program has no second form of the experts.
    text = compiled(train_step(MOE, "h100", rows=16, length=256, nodes=nodes, **axes)).as_text()
    assert "/grouped_product_" in text
    assert "/grouped_gradient_" in text
    assert "ragged-dot" not in text


@pytest.mark.parametrize("on", [*CARDS, "t4"])
@pytest.mark.soak
def test_steps_compile_for_every_card(on):
    dtype = jnp.float16 if on == "t4" else jnp.bfloat16
    for config in (DENSE, MOE):
        compiled(decode_step(config, on, rows=4, context=512, dtype=dtype))
    assert card(on).name
