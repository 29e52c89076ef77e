"""Every attention implementation that runs here equals the formula, in value and gradient; none holds [T, T] scores."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.kernels import ONE_DEVICE, Execution, Kernels, attention
from qwen3_jax.kernels.attention import chunked, splash, triton
from qwen3_jax.kernels.attention.partition import SAVE_NAME, Split, split
from qwen3_jax.kernels.attention.reference import masked_attention
from sharding import Placement, ShardingError, balanced_order, make_mesh
from tests.helpers.attention_cases import assert_close, expected, inputs, packed, reference, value_and_gradients
from tests.helpers.gpu_targets import card

CHUNKED = Execution(kernels=Kernels(attention="chunked"))


def run(name, segment_ids_bt=None):
    """Return function(q, k, v) for an implementation on one device; Pallas kernels are interpreted."""
    return {
        "chunked": lambda *qkv: attention(*qkv, segment_ids_bt, CHUNKED),
        "auto": lambda *qkv: attention(*qkv, segment_ids_bt),
        "splash": lambda *qkv: splash.attention(*qkv, segment_ids_bt, ONE_DEVICE, Split(), interpret=True),
        "triton": lambda *qkv: triton.attention(*qkv, segment_ids_bt, ONE_DEVICE, Split(), interpret=True),
    }[name]


SIZES = ((7, 2, 2), (128, 8, 1), (300, 4, 2))
FORMS = [(name, *size, pack) for name in ("chunked", "splash", "triton") for size in SIZES for pack in (False, True)]


@pytest.mark.parametrize(
    ("name", "t", "n", "k", "pack"),
    [
        pytest.param(*form, marks=[pytest.mark.slow] * ((form[1] == 300) != form[4]))
        for form in FORMS
        if form[0] == "chunked" or form[1] > 7
    ],
)
def test_every_implementation_equals_the_formula(name, t, n, k, pack):
    wanted = expected(2, t, n, k, 32, pack)
    q, k, v, w = inputs(2, t, n, k, 32)
    segments = packed(2, t) if pack else None
    assert_close(value_and_gradients(run(name, segments), q, k, v, w), wanted)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "two passes"])
def test_splash_in_several_blocks(monkeypatch, fused):
    """The two backward kernels of long rows, over blocks small enough to interpret."""
    monkeypatch.setattr(splash, "_BLOCK", 128)
    monkeypatch.setattr(splash, "_FUSED_UP_TO", 4 if fused else 1)
    splash._kernel.cache_clear()
    q, k, v, w = inputs(1, 384, 2, 1, 32)
    segments = packed(1, 384)
    assert_close(value_and_gradients(run("splash", segments), q, k, v, w), expected(1, 384, 2, 1, 32, True))
    splash._kernel.cache_clear()


@pytest.mark.parametrize("name", ["chunked", "splash", "triton"])
def test_bfloat16_is_near_float32(name):
    q, k, v, w = inputs(2, 256, 4, 2, 32, jnp.bfloat16)
    segments = packed(2, 256)
    wanted = expected(2, 256, 4, 2, 32, True, jnp.bfloat16)
    assert_close(value_and_gradients(run(name, segments), q, k, v, w), wanted, part=0.02)


@functools.cache
def _two_ways():
    def flash(q, k, v, segments):
        places = jnp.arange(q.shape[1])[None]
        return chunked.flash(q, k, v, places, segments, segments, block=16)

    def plain(q, k, v, segments):
        return attention(q, k, v, segments, Execution(kernels=Kernels(attention="reference")))

    def both(function, q, k, v, w, segments):
        out, pull = jax.vjp(lambda *qkv: function(*qkv, segments), q, k, v)
        return out, *pull(w)

    return jax.jit(functools.partial(both, flash)), jax.jit(functools.partial(both, plain))


@hypothesis.given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40)), min_size=1, max_size=9), st.integers(0, 3))
@hypothesis.settings(max_examples=40)
def test_any_layout_of_segments(runs, seed):
    """Ids in any order, coming back later, padding first or between: skipped blocks never hold a visible key."""
    row = np.repeat([i for i, _ in runs], [size for _, size in runs])
    segments = jnp.asarray(np.stack([np.resize(row, 75), np.resize(row[::-1], 75)]).astype(np.int32))
    case = inputs(2, 75, 2, 1, 8, seed=seed)
    actual, wanted = (np_arrays(f(*case, segments)) for f in _two_ways())
    assert_close(actual, wanted)


def np_arrays(tree):
    return [np.asarray(x) for x in tree]


def test_blocks_that_nobody_sees_are_not_computed():
    """Values there are NaN, which 0 times would spread."""
    q, k, v, _ = inputs(1, 64, 2, 1, 8)
    places = jnp.arange(64)[None]
    flash = jax.jit(functools.partial(chunked.flash, block=16))
    future = flash(q[:, :32], k, v.at[:, :, 32:].set(jnp.nan), places[:, :32])
    assert np.isfinite(future).all()

    segments = jnp.asarray(np.repeat([1, 2, 0], [32, 16, 16])[None].astype(np.int32))
    for start, stop in ((32, 48), (48, 64)):
        others = np.ones(64, bool)
        others[start:stop] = False
        out = flash(q, k, v.at[:, :, others].set(jnp.nan), places, segments, segments)
        assert np.isfinite(out[:, start:stop]).all()


# ---- over a mesh ---------------------------------------------------------------------------------------------------------


def in_order(function, order):
    """Return function(q, k, v) of natural order around one that wants this order."""
    back = np.argsort(order)

    def call(q, k, v):
        return function(q[:, order], k[:, :, order], v[:, :, order])[:, back]

    return call


def over(execution, t, segments, call):
    order = execution.order(t)
    segments = None if segments is None else segments[:, order]
    return in_order(lambda *qkv: call(*qkv, segments), order)


EACH, SOME, LENGTH, NONE = (
    dict(context=2, data=2, tensor=2),
    dict(context=4, data=2),
    dict(context=8),
    dict(data=4, tensor=2),
)


@pytest.mark.parametrize(
    ("axes", "balanced"),
    [(EACH, True), (SOME, False), (LENGTH, True), (NONE, False)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((EACH, False), (SOME, True), (LENGTH, False), (NONE, True))
    ],
)
def test_chunked_over_a_mesh_equals_one_device(axes, balanced):
    t = 400  # 400 / 8 = 50 and 400 / 16 = 25: no part is whole blocks
    q, k, v, w = inputs(4, t, 4, 2, 16)
    segments = packed(4, t)
    execution = dataclasses.replace(CHUNKED, placement=Placement(make_mesh(**axes)), balanced=balanced)

    def call(q, k, v, segments):
        return attention(q, k, v, segments, execution)

    wanted = expected(4, t, 4, 2, 16, True)
    assert_close(value_and_gradients(over(execution, t, segments, call), q, k, v, w), wanted)


@pytest.mark.parametrize("kernel", [splash, triton], ids=["splash", "triton"])
@pytest.mark.parametrize(
    ("balanced", "pack"),
    [(False, False), (True, True)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((False, True), (True, False))],
)
def test_kernels_over_a_split_length_equal_one_device(kernel, balanced, pack):
    t = 1024
    q, k, v, w = inputs(1, t, 2, 2, 16)
    segments = packed(1, t) if pack else None
    execution = Execution(Placement(make_mesh(context=4, tensor=2)), balanced=balanced)
    parts = split(execution.placement, q.shape, k.shape[1])

    def call(q, k, v, segments):
        return kernel.attention(q, k, v, segments, execution, parts, interpret=True)

    wanted = expected(1, t, 2, 2, 16, pack)
    assert_close(value_and_gradients(over(execution, t, segments, call), q, k, v, w), wanted)


@pytest.mark.slow
def test_32k_tokens_over_eight_parts():
    """Compared at 384 queries at the beginning, in the middle and at the end; the loss weighs nothing else."""
    t, tests = 32_768, np.concatenate([np.arange(128), np.arange(16_300, 16_428), np.arange(32_640, 32_768)])
    q, k, v, w = inputs(1, t, 1, 1, 16)
    w = jnp.zeros_like(w).at[:, tests].set(w[:, tests])
    segments = jnp.asarray(np.repeat([1, 2, 0], [20_000, 12_700, 68])[None].astype(np.int32))
    execution = dataclasses.replace(CHUNKED, placement=Placement(make_mesh(context=8)), balanced=True)

    def call(q, k, v, segments):
        return attention(q, k, v, segments, execution)

    def slices(q, k, v):
        mask = (jnp.arange(t) <= tests[:, None]) & (segments[0] == segments[0, tests][:, None])
        return masked_attention(q, k, v, mask[None])

    out, *gradients = value_and_gradients(over(execution, t, segments, call), q, k, v, w)
    wanted = value_and_gradients(slices, q[:, tests], k, v, w[:, tests])
    assert_close([out[:, tests], gradients[0][:, tests], *gradients[1:]], wanted)


def test_every_part_of_a_balanced_row_meets_as_many_blocks():
    t, parts = 4096, 8
    order = balanced_order(t, parts).reshape(parts, -1)
    k = jnp.zeros((1, 1, t, 1))
    work = []
    for places in order:
        rows = chunked._block_masks(chunked._Mask(jnp.asarray(places)[None], None, None), k, 1, 128, 128)
        work.append(int((rows.stop_i - rows.first_i).sum()))
    assert len(set(work)) == 1
    assert work[0] * parts == 32 * 33 // 2  # of 32 x 32 pairs of blocks


def test_what_does_not_divide_is_an_error_by_name_and_no_matter_to_auto():
    q, k, v, w = inputs(3, 64, 4, 2, 8)
    placement = Placement(make_mesh(data=2, tensor=4))
    with pytest.raises(ShardingError, match="'chunked' cannot divide 2 key/value heads by 4"):
        attention(q, k, v, execution=dataclasses.replace(CHUNKED, placement=placement))
    with pytest.raises(ShardingError, match="'chunked' cannot divide 3 rows by 4"):
        attention(q, k, v, execution=dataclasses.replace(CHUNKED, placement=Placement(make_mesh(data=4))))
    actual = value_and_gradients(functools.partial(attention, execution=Execution(placement)), q, k, v, w)
    assert_close(actual, value_and_gradients(reference(), q, k, v, w))


# ---- memory, checkpoints, choice -----------------------------------------------------------------------------------------


def test_memory_grows_with_the_length_and_not_with_its_square():
    def temporary(t):
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(lambda: inputs(1, t, 2, 1, 16))]
        gradients = jax.grad(lambda q, k, v, w: (attention(q, k, v, execution=CHUNKED) * w).sum(), (0, 1, 2))
        return jax.jit(gradients).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(2048), temporary(16_384)
    assert long < 8.5 * short
    assert long < 16_384**2 / 4  # one bit-packed mask would be an eighth, one bfloat16 head's scores twice T^2


@pytest.mark.parametrize("axes", [{}, {"context": 2, "data": 2}], ids=["alone", "mesh"])
def test_a_checkpoint_policy_can_keep_what_the_backward_pass_needs(axes):
    q, k, v, _ = inputs(2, 256, 2, 1, 8)
    execution = dataclasses.replace(CHUNKED, placement=Placement(make_mesh(**axes) if axes else None))

    def scans(policy):
        def layer(q, k, v):
            return jnp.sin(attention(q * 2, k, v, execution=execution)).sum()

        return str(jax.make_jaxpr(jax.grad(jax.checkpoint(layer, policy=policy)))(q, k, v)).count(" scan[")

    assert scans(jax.checkpoint_policies.nothing_saveable) == 3  # forward, forward anew, backward
    assert scans(jax.checkpoint_policies.save_only_these_names(SAVE_NAME)) == 2


def test_a_kernel_of_another_platform_is_refused():
    q, k, v, _ = inputs(1, 128, 2, 1, 16)
    for name, device in (("splash", "TPU"), ("cudnn", "GPU"), ("triton", "GPU")):
        with pytest.raises(UserError, match=f"attention '{name}' needs a {device}, and this is a CPU"):
            attention(q, k, v, execution=Execution(kernels=Kernels(attention=name)))
    with pytest.raises(UserError, match="no attention kernel 'flash'"):
        Kernels(attention="flash")


@pytest.mark.parametrize(
    ("name", "h"),
    [("l4", 128), ("h100", 72)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("l4", 256), ("h100", 64), ("h100", 128), ("h100", 256))
    ],
)
def test_triton_with_the_blocks_of_a_card(name, h):
    """Those that the card gets for heads of this size; rows that end within a block."""
    q, k, v, w = inputs(2, 200, 4, 2, h)
    blocks = triton.choose_blocks(h, card(name).shared_memory)

    def call(q, k, v):
        return triton.attention(q, k, v, packed(2, 200), ONE_DEVICE, Split(), interpret=True, blocks=blocks)

    assert_close(value_and_gradients(call, q, k, v, w), expected(2, 200, 4, 2, h, True))
