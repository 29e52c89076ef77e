"""How a model runs changes no result: the order of tokens, rematerialisation, the compute type of what must be float32."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sharding
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution
from qwen3_jax.model import REMAT, Qwen3, flatten
from qwen3_jax.model.layers import RMSNorm
from qwen3_jax.model.moe import MoE
from qwen3_jax.model.params import Declare
from sharding import Placement
from tests.helpers.tiny_models import TINY, TINY_MOE

TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 16)).astype(np.int32)


def test_a_balanced_row_has_the_logits_of_its_tokens_in_order():
    """Positions, where the call gives none, and the causal mask follow the order."""
    execution = Execution(Placement(sharding.make_mesh(context=2)), balanced=True)
    order = execution.order(16)
    assert order.tolist() != list(range(16))
    model = Qwen3(TINY, rngs=nnx.Rngs(0), execution=execution)
    expected = Qwen3(TINY, rngs=nnx.Rngs(0))(TOKENS)
    np.testing.assert_allclose(model(TOKENS[:, order]), expected[:, order], rtol=0, atol=1e-5)
    for positions in (None, np.tile(np.arange(15), (2, 1))):
        with pytest.raises(sharding.ShardingError, match="15 tokens cannot be balanced over 2 parts"):
            model(TOKENS[:, :15], positions=positions)


def test_execution_is_checked_and_can_be_a_key_of_jit():
    with pytest.raises(UserError, match="no quantization 'int4'; choose one of \\['int8', 'fp8'\\]"):
        Execution(quantization="int4")
    assert hash(Execution()) == hash(Execution(Placement()))
    assert Execution() != Execution(balanced=True)


# Products and loops over blocks that the gradient of one layer computes a second time. Attention is a loop with two products;
# q, k, v, o, gate and up are the products with weights (down's value is not needed).
AGAIN = {"none": (0, 0), "dots": (2, 1), "mlp": (2, 0), "qkv": (3, 0), "attention": (6, 0), "full": (8, 1)}


def primitives(jaxpr) -> collections.Counter:
    """How often each primitive occurs, in inner programs too."""
    count = collections.Counter()
    for equation in jaxpr.eqns:
        count[equation.primitive.name] += 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += primitives(inner)
    return count


def test_what_the_backward_pass_computes_again():
    config = dataclasses.replace(TINY, num_hidden_layers=1)
    counts = {}
    for remat in REMAT:
        graphdef, state = nnx.split(Qwen3(config, rngs=nnx.Rngs(0), scan_layers=False, remat=remat))

        def loss(state, graphdef=graphdef):
            return jnp.square(nnx.merge(graphdef, state).hidden(TOKENS).states).sum()

        count = primitives(jax.make_jaxpr(jax.grad(loss))(state).jaxpr)
        counts[remat] = np.asarray([count["dot_general"], count["scan"]])
    assert {remat: tuple((count - counts["none"]).tolist()) for remat, count in counts.items()} == AGAIN


def test_norms_and_routing_are_float32_in_a_bfloat16_model():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(1, 64, 32)), jnp.bfloat16)
    norm = RMSNorm(32, "hidden", TINY, Declare(nnx.Rngs(0), jnp.dtype("bfloat16")))
    exact = np.asarray(x, np.float64)
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + TINY.rms_norm_eps)
    np.testing.assert_array_equal(norm(x), jnp.asarray(expected, jnp.float32).astype(jnp.bfloat16))

    layer = MoE(TINY_MOE, Declare(nnx.Rngs(0), jnp.dtype("bfloat16")), Execution())
    router = random.normal(size=layer.router.get_value().shape)
    layer.router.set_value(jnp.asarray(router, jnp.bfloat16))
    logits = exact @ np.asarray(layer.router.get_value(), np.float64)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    _, routed = layer(x, None)
    np.testing.assert_allclose(routed.stats.prob, probs.sum((0, 1)), rtol=1e-5)


def test_initial_weights_are_drawn_in_float32_for_any_storage_type():
    narrow, wide = (flatten(Qwen3(TINY, rngs=nnx.Rngs(0), param_dtype=dtype)) for dtype in ("bfloat16", "float32"))
    for name, value in wide.items():
        np.testing.assert_array_equal(narrow[name], value.astype(jnp.bfloat16), err_msg=name)


def test_parameters_have_the_storage_type_and_activations_the_compute_type():
    model = Qwen3(TINY_MOE, rngs=nnx.Rngs(0), dtype="bfloat16", param_dtype="float32")
    assert {value.dtype for value in flatten(model).values()} == {jnp.dtype("float32")}
    assert model.hidden(TOKENS).states.dtype == jnp.bfloat16
    assert model(TOKENS).dtype == jnp.float32
