"""Every implementation of the experts against the dense one: values and gradients, on one device and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution, Kernels, expert_mlp
from qwen3_jax.kernels.experts import dispatch, parallel
from qwen3_jax.kernels.experts.dense import dense_mlp
from qwen3_jax.kernels.experts.exchange import exchange
from qwen3_jax.kernels.experts.grouped import choose_product, grouped_mlp
from qwen3_jax.kernels.experts.stack import Stacked
from qwen3_jax.kernels.quantized import dequantize, quantize_weight
from sharding import SERVING, TRAINING, Placement, ShardingError, make_mesh
from tests.helpers import tpu_topologies

TOLERANCE = 2e-5  # of the largest number, in float32
NAMES = ("y", "x", "weight", "gate", "up", "down")


def layer(n=24, d=16, e=4, f=8, k=2, *, seed=0, routing="random", dtype=jnp.float32):
    """Tokens [N, D], their experts and weights [N, K], and the expert weights."""
    random = np.random.default_rng(seed)
    score_ne = random.normal(size=(n, e))
    if routing == "one":
        score_ne[:, 0] += 100  # every token goes to expert 0
    elif routing == "few":
        score_ne[:, k:] -= 100  # only the first k experts have tokens
    elif routing == "uneven":
        score_ne += 2 * np.arange(e)
    index_nk = np.argsort(-score_ne, axis=1)[:, :k].astype(np.int32)
    weight_nk = random.uniform(0.1, 1, size=(n, k))
    arrays = (
        random.normal(size=(n, d)),
        weight_nk,
        *(random.normal(size=s) / 4 for s in [(e, d, f), (e, d, f), (e, f, d)]),
    )
    # Cast by NumPy: no program for each shape.
    x_nd, weight_nk, *weights = (jnp.asarray(a.astype(dtype)) for a in arrays)
    return x_nd, jnp.asarray(index_nk), weight_nk, *weights


def compiled(mlp):
    """arrays -> the output and the gradients of all but the routing, for a loss that weighs every output differently."""

    def loss(floats, index):
        y = mlp(floats[0], index, *floats[1:])
        mix = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y.astype(jnp.float32) * mix).sum(), y

    @jax.jit
    def run(x, index, *floats):
        (_, y), grads = jax.value_and_grad(loss, has_aux=True)([x, *floats], index)
        return y, *grads

    return lambda arrays: run(*arrays)


expected = compiled(dense_mlp)


@functools.cache
def one_device(product):
    """The compiled products of one device; equal shapes share programs."""
    return compiled(functools.partial(grouped_mlp, product=product))


def assert_same(got, wanted, tolerance=TOLERANCE):
    for name, one, other in zip(NAMES, got, wanted, strict=True):
        assert_near(one, other, tolerance, name)


def assert_near(one, other, tolerance=TOLERANCE, name=""):
    assert one.dtype == other.dtype, name
    assert one.shape == other.shape, name
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    assert np.abs(one - other).max() <= tolerance * np.abs(other).max(), name


# One device.


ROUTINGS = ("random", "one", "few", "uneven")
PRODUCTS = ("tiles", "ragged_dot", "megablox", "triton")


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_equal_dense(product, pallas_anywhere):
    for routing in ROUTINGS:
        arrays = layer(routing=routing)
        assert_same(one_device(product)(arrays), expected(arrays))


@settings(max_examples=6)
@given(
    n=st.sampled_from([1, 7, 33, 80]),
    e_k=st.sampled_from([(1, 1), (4, 1), (4, 4), (5, 2), (8, 3)]),
    routing=st.sampled_from(ROUTINGS),
    seed=st.integers(0, 99),
)
def test_tiles_equal_dense_at_any_size(n, e_k, routing, seed):
    e, k = e_k
    arrays = layer(n, e=e, k=k, routing=routing, seed=seed)
    assert_same(one_device("tiles")(arrays), expected(arrays))


def test_tiles_of_several_heights():
    """Experts with several whole tiles and every kind of rest."""
    run = compiled(functools.partial(grouped_mlp, product="tiles"))
    for seed in range(4):
        arrays = layer(900, d=8, e=3, f=4, k=2, routing="uneven", seed=seed)
        assert_same(run(arrays), expected(arrays), 5e-5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_rows_of_no_expert_here_add_nothing(product, pallas_anywhere):
    """The index E, on which expert parallelism builds: no output, no gradient."""
    x, index, *rest = layer()
    index = jnp.where(index < 2, index, 4)
    run, arrays = one_device(product), (x, index, *rest)
    got = run(arrays)
    assert_same(got, expected(arrays))
    assert not np.asarray(got[2])[np.asarray(index) == 4].any()
    nowhere = (x, jnp.full_like(index, 4), *rest)
    assert not any(np.asarray(a).any() for a in run(nowhere))


@pytest.mark.parametrize("product", PRODUCTS)
def test_bf16_is_as_close_to_float32_as_dense_is(product, pallas_anywhere):
    arrays = layer(n=24, dtype=jnp.bfloat16)
    wide = [np.asarray(a).astype(np.float32) if a.dtype == jnp.bfloat16 else a for a in arrays]
    wanted = [np.asarray(a).astype(jnp.bfloat16) for a in expected(wide)]
    assert_same(one_device(product)(arrays), wanted, 0.03)


def test_a_row_alone_is_the_row_in_a_batch():
    x, index, weight, *weights = layer(n=64, e=8, k=2)
    mlp = jax.jit(functools.partial(grouped_mlp, product="tiles"))
    together = mlp(x, index, weight, *weights)
    for row in (0, 13, 63):
        here = slice(row, row + 1)
        alone = mlp(x[here], index[here], weight[here], *weights)
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-6 * float(jnp.abs(together).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_few_rows_of_a_decode_step(routing, dtype):
    """Fewer rows than experts are multiplied one by one, with no gradient; also rows of no expert here."""
    x, index, weight, *weights = layer(n=3, d=512, e=12, f=96, k=4, routing=routing, dtype=dtype)
    index = index.at[1, 2].set(12)
    got = jax.jit(functools.partial(grouped_mlp, product="tiles"))(x, index, weight, *weights)
    wide = [np.asarray(a).astype(np.float32) for a in (x, weight, *weights)]
    wanted = jax.jit(dense_mlp)(wide[0], index, *wide[1:])
    atol = (2e-5 if dtype == jnp.float32 else 0.02) * float(jnp.abs(wanted).max())
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("product", ["megablox", "triton"])
def test_a_layer_of_a_stack_is_that_layer(product, pallas_anywhere):
    x, index, weight, *weights = layer(n=20, e=4, k=2)
    stacks = [jnp.stack([w + 1, w, w * 2]) for w in weights]

    @jax.jit
    def run(layer):
        return grouped_mlp(x, index, weight, *(Stacked(w, layer) for w in stacks), product=product)

    for number, of in ((1, lambda w: w), (2, lambda w: w * 2)):
        wanted = dense_mlp(x, index, weight, *map(of, weights))
        np.testing.assert_allclose(run(number), wanted, rtol=0, atol=TOLERANCE * float(jnp.abs(wanted).max()))


# Meshes.

MESHES = {
    "data8": (dict(data=8), TRAINING),
    "replica2_data2_context2": (dict(replica=2, data=2, context=2), TRAINING),
    "data2_tensor4": (dict(data=2, tensor=4), TRAINING),
    "expert4": (dict(expert=4), TRAINING),
    "expert8": (dict(expert=8), TRAINING),
    "expert2_tensor4": (dict(expert=2, tensor=4), TRAINING),
    "data2_expert2_tensor2": (dict(data=2, expert=2, tensor=2), TRAINING),
    "data2_expert2_context2": (dict(data=2, expert=2, context=2), TRAINING),
    "replica2_expert4": (dict(replica=2, expert=4), TRAINING),
    "serving_data2_expert4": (dict(data=2, expert=4), SERVING),
}
SPECS = {
    "x": ("batch", "length", "hidden"),
    "routing": ("batch", "length", None),
    "wide": ("expert", "embed", "mlp"),
    "narrow": ("expert", "mlp", "embed"),
}


def on_mesh(arrays, placement):
    """The arrays of `layer` as [B = 8, T, ...], placed as a model places them."""
    x, index, weight, *weights = arrays
    shaped = [a.reshape(8, -1, a.shape[-1]) for a in (x, index, weight)] + weights
    names = ["x", "routing", "routing", "wide", "wide", "narrow"]
    return [
        jax.device_put(np.asarray(a), placement.sharding(SPECS[n], a.shape)) if n != "routing" else a
        for a, n in zip(shaped, names, strict=True)
    ]


CASES = [
    (name, implementation)
    for name, (axes, _) in MESHES.items()
    for implementation in (("all_gather", "all_to_all") if "expert" in axes else ("grouped",))
]


def assert_mesh_equals_dense(placement, implementation, routings):
    run = compiled(functools.partial(expert_mlp, execution=Execution(placement, Kernels(experts=implementation))))
    for routing in routings:
        arrays = layer(n=48, e=8, k=2, routing=routing)
        got = run(on_mesh(arrays, placement))
        # The loss weighs outputs by their place, which is the same in [N, D] and [B, T, D].
        assert_same(got, [w.reshape(g.shape) for g, w in zip(got, expected(arrays), strict=True)])


QUICK = {
    "grouped": ("replica2_data2_context2",),
    "all_gather": ("expert2_tensor4", "serving_data2_expert4"),
    "all_to_all": ("expert8", "data2_expert2_context2"),
}


@pytest.mark.parametrize(
    ("name", "implementation"),
    [pytest.param(name, how, marks=[] if name in QUICK[how] else [pytest.mark.slow]) for name, how in CASES],
)
def test_meshes_equal_dense_on_one_device(name, implementation):
    axes, rules = MESHES[name]
    assert_mesh_equals_dense(Placement(make_mesh(**axes), rules), implementation, ("random", "one"))


@pytest.mark.parametrize(
    "name", ["serving_data2_expert4", *(pytest.param(n, marks=pytest.mark.slow) for n in QUICK["grouped"])]
)
def test_outside_of_a_jit_a_mesh_computes_the_same(name):
    """Values and the tokens' gradient; quantised weights as well, which training does not take."""
    axes, rules = MESHES[name]
    placement, arrays = Placement(make_mesh(**axes), rules), layer(n=48, e=8, k=2)
    x, index, weight, *weights = on_mesh(arrays, placement)
    run = functools.partial(expert_mlp, execution=Execution(placement))
    want = expected(arrays)
    assert_near(run(x, index, weight, *weights), want[0].reshape(x.shape))
    mix = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    slope = jax.grad(lambda x: (run(x, index, weight, *weights) * mix).sum())(x)
    assert_near(slope, want[1].reshape(x.shape))
    if rules is SERVING:
        rounded = [quantize_weight(w, "int8", (1,)) for w in weights]
        plain = [dequantize(w, jnp.float32) for w in rounded]
        assert_near(run(x, index, weight, *rounded), run(x, index, weight, *plain))


@pytest.mark.parametrize(
    "name", ["data2_expert2_tensor2", "data2_expert2_context2", "data2_tensor4", "serving_data2_expert4"]
)
def test_tokens_that_do_not_divide_over_the_mesh(name):
    """One row of a few tokens: every device of those axes has them all, and computes its own experts' share."""
    axes, rules = MESHES[name]
    placement = Placement(make_mesh(**axes), rules)
    run = compiled(functools.partial(expert_mlp, execution=Execution(placement)))
    arrays = layer(n=5, e=8, k=2)
    kinds = zip(arrays[3:], ("wide", "wide", "narrow"), strict=True)
    weights = [jax.device_put(np.asarray(w), placement.sharding(SPECS[kind], w.shape)) for w, kind in kinds]
    got = run([*(a[None] for a in arrays[:3]), *weights])
    assert_same(got, [w.reshape(g.shape) for g, w in zip(got, expected(arrays), strict=True)])


def test_all_to_all_in_chunks_where_a_device_would_receive_too_much(monkeypatch):
    """Nothing is dropped when the buffer is too small for the routing; "random" fits at once."""
    monkeypatch.setattr(parallel, "_SMALL", 0)
    assert_mesh_equals_dense(Placement(make_mesh(expert=8)), "all_to_all", ROUTINGS)


def test_exchange_moves_each_row_to_its_device_and_back():
    """Against the definition, with devices that send and receive nothing."""
    counts = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 1, 0], [2, 0, 0, 1]], np.int32)
    rows = np.zeros((4, 6, 2), np.float32)
    for i in range(4):
        rows[i, : counts[i].sum()] = 1 + i * 10 + np.arange(counts[i].sum())[:, None]
    mesh = make_mesh(expert=4)
    spec = jax.P("expert")
    moved, back = jax.jit(
        jax.shard_map(
            lambda x: (
                out := exchange(x[0], jnp.asarray(counts), 8, "expert", False),
                exchange(out, jnp.asarray(counts.T), 6, "expert", False),
            ),
            mesh=mesh,
            in_specs=spec,
            out_specs=(spec, spec),
            check_vma=False,
        )
    )(rows)
    moved = np.asarray(moved).reshape(4, 8, 2)
    for j in range(4):
        starts = np.cumsum(counts, axis=1) - counts
        parts = [rows[i, starts[i, j] : starts[i, j] + counts[i, j]] for i in range(4)]
        wanted = np.concatenate(parts)
        np.testing.assert_array_equal(moved[j, : len(wanted)], wanted)
        assert not moved[j, len(wanted) :].any()
    np.testing.assert_array_equal(np.asarray(back).reshape(rows.shape), rows)


@pytest.mark.parametrize("implementation", ["all_gather", "all_to_all"])
def test_no_weights_travel_along_the_expert_axis(implementation):
    """Without FSDP nothing of the size of a weight is gathered or summed over devices in the forward pass."""
    placement = Placement(make_mesh(expert=4))
    arrays = on_mesh(layer(n=8, e=8, d=64, f=32), placement)
    mlp = functools.partial(expert_mlp, execution=Execution(placement, Kernels(experts=implementation)))
    text = jax.jit(mlp).lower(*arrays).compile().as_text()
    local = 8 // 4 * 64 * 32
    for line in text.splitlines():
        for collective in ("all-gather(", "all-reduce(", "all-to-all(", "collective-permute("):
            if collective in line:
                shape = line.split(" = ")[1].split("[")[1].split("]")[0] if "[" in line.split(" = ")[1] else ""
                assert np.prod([int(s) for s in shape.split(",") if s] or [1]) < local, line


# The choice.


def calls(monkeypatch, implementation="auto", n=48, b=8, **axes):
    """Which inner function a call reaches: "dense", the product of `grouped`, or the form on a mesh."""
    reached = []
    monkeypatch.setattr(dispatch, "dense_mlp", lambda x, *_: reached.append("dense") or x)
    monkeypatch.setattr(dispatch, "grouped_mlp", lambda x, *_, product, **__: reached.append(product) or x)
    monkeypatch.setattr(dispatch, "sharded_mlp", lambda x, *_, over, **__: reached.append(over or "sharded") or x)
    placement = Placement(make_mesh(**axes)) if axes else Placement()
    x, index, weight, *weights = layer(n=n, e=8)
    shaped = [a.reshape(b, n // b, -1) for a in (x, index, weight)]
    expert_mlp(*shaped, *weights, Execution(placement, Kernels(experts=implementation)))
    return reached


def test_auto(monkeypatch):
    assert calls(monkeypatch) == ["tiles"]
    assert calls(monkeypatch, data=1) == ["tiles"]
    assert calls(monkeypatch, data=8) == ["sharded"]
    assert calls(monkeypatch, expert=4) == ["all_gather"]
    assert calls(monkeypatch, expert=4, n=12, b=1) == ["all_tokens"]  # one row on four devices
    assert calls(monkeypatch, data=4, n=12, b=1) == ["sharded"]
    assert calls(monkeypatch, "ragged_dot") == ["ragged_dot"]


def test_names_that_do_not_suit_are_refused(monkeypatch):
    with pytest.raises(ShardingError, match="'grouped' cannot run on this mesh: batch 1 does not divide by 4"):
        calls(monkeypatch, "grouped", n=12, b=1, data=4)
    with pytest.raises(ShardingError, match="'all_to_all' cannot run on this mesh: length 3 does not divide by 2"):
        calls(monkeypatch, "all_to_all", n=12, b=4, expert=4, context=2)
    for name in ("all_to_all", "all_gather"):
        with pytest.raises(ShardingError, match=f"{name!r} needs a mesh whose expert axis"):
            calls(monkeypatch, name, data=8)
    for name in ("grouped", "ragged_dot"):
        with pytest.raises(ShardingError, match=f"{name!r} needs all experts on each device"):
            calls(monkeypatch, name, expert=4)
    with pytest.raises(UserError, match="'triton' needs a GPU, and this is a CPU"):
        calls(monkeypatch, "triton")


def test_products_by_platform():
    assert [choose_product("grouped", p, None, jnp.float32) for p in ("cpu", "tpu")] == ["tiles", "megablox"]


# TPUs that are not here.

TPU_MESHES = {
    "one": (dict(), "grouped"),
    "data4": (dict(data=4), "grouped"),
    "data2_tensor2": (dict(data=2, tensor=2), "grouped"),
    "context2_data2": (dict(context=2, data=2), "grouped"),
    "expert4": (dict(expert=4), "all_to_all"),
    "expert4_all_gather": (dict(expert=4), "all_gather"),
    "data2_expert2": (dict(data=2, expert=2), "all_to_all"),
    "expert2_tensor2": (dict(expert=2, tensor=2), "all_to_all"),
    "expert2_tensor2_all_gather": (dict(expert=2, tensor=2), "all_gather"),
}
# (batch, length, width, expert width); the second is long enough for an all-to-all in chunks, and the third Qwen3-30B-A3B's.
NARROW, LONG, WIDE = (4, 64, 512, 256), (4, 256, 512, 256), (4, 256, 2048, 768)
QUICK = [("expert2_tensor2", "v5e")]
# With QUICK and "expert4" every kernel, exchange and kind of axis.
IN_CI = ("one", "expert4_all_gather", "data2_expert2", "data2_tensor2")
# Every kernel and every exchange; at full width by hand.
FULL = ("one", "expert4", "expert4_all_gather")
ONE = {
    "one": "v5p", "expert4_all_gather": "v5p",
    "data4": "v5e", "data2_tensor2": "v5p", "context2_data2": "v5p", "data2_expert2": "v5p", "expert2_tensor2": "v5p",
    "expert2_tensor2_all_gather": "v5p",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "generation", "sizes"),
    [(name, generation, NARROW) for name, generation in QUICK]
    + [
        pytest.param(name, generation, sizes, marks=mark)
        for name, generation, sizes, mark in [
            ("expert4", "v5p", LONG, pytest.mark.soak),
            ("data2_tensor2", "v5e", NARROW, pytest.mark.soak),
            ("expert4", "v5p", NARROW, pytest.mark.slow),
            *((name, generation, WIDE, pytest.mark.soak) for name in FULL for generation in ("v5p", "v5e")),
            *((name, on, NARROW, pytest.mark.slow if name in IN_CI else pytest.mark.soak) for name, on in ONE.items()),
        ]
    ],
)
def test_compiles_for_tpu(name, generation, sizes, no_compilation_cache):
    """Forward and gradient in bf16."""
    axes, implementation = TPU_MESHES[name]
    placement = Placement(tpu_topologies.topology_mesh(generation, **axes))
    b, t, d, f = sizes
    e, k = 16, 8
    shapes = [(b, t, d), (b, t, k), (b, t, k), (e, d, f), (e, d, f), (e, f, d)]
    kinds = ["x", "routing", "routing", "wide", "wide", "narrow"]
    arrays = [
        jax.ShapeDtypeStruct(
            shape, jnp.int32 if i == 1 else jnp.bfloat16, sharding=placement.sharding(SPECS[kind], shape)
        )
        for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    mlp = functools.partial(expert_mlp, execution=Execution(placement, Kernels(experts=implementation)))
    results_of = jax.jit(
        jax.value_and_grad(lambda x, i, *rest: mlp(x, i, *rest).astype(jnp.float32).sum(), argnums=(0, 2, 3, 4, 5))
    )
    lowered = results_of.lower(*arrays)
    lowered.compile()
    text = lowered.as_text()
    assert text.count("tpu_custom_call") >= 3  # gmm, gmm with transposed weights, tgmm; equal ones are one function
    assert ("ragged_all_to_all" in text) == (implementation == "all_to_all")
