"""Attention over pages against the formula on the whole texts: rows of any length, chunks, stacked layers, meshes, 8 bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sharding
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import ONE_DEVICE, Execution, Kernels, Rows, new_pages, page_size, paged_attention
from qwen3_jax.kernels.paged import triton
from qwen3_jax.kernels.paged.pages import HeadMajor
from qwen3_jax.kernels.paged.rows import places, slots
from sharding import Placement

HEADS, KV_HEADS, SIZE = 4, 2, 16
PAGES, WIDTH, SLOTS = 60, 12, 8
TOKENS = 64  # of a call with prompts
RAGGED = Execution(kernels=Kernels(paged="ragged"))


class Texts:
    """Rows of random queries, keys and values, and a pool in which their pages lie in any order, full of garbage."""

    def __init__(self, lengths, seed=0, shards=1, layers=3, quantized=None, execution=ONE_DEVICE):
        random = np.random.default_rng(seed)
        rows = len(lengths) // shards
        self.random, self.lengths, self.shards, self.rows = random, np.asarray(lengths), shards, rows
        most = WIDTH * SLOTS
        self.q = random.normal(size=(len(lengths), most, HEADS, SIZE)).astype(np.float32)
        self.k, self.v = (random.normal(size=(len(lengths), most, KV_HEADS, SIZE)).astype(np.float32) for _ in range(2))
        self.tables = np.zeros((shards, rows, WIDTH), np.int32)
        for shard in range(shards):
            free = iter(random.permutation(np.arange(1, PAGES)).tolist())
            for row in range(rows):
                used = -(-int(lengths[shard * rows + row]) // SLOTS)
                self.tables[shard, row, :used] = [next(free) for _ in range(used)]
        empty = new_pages(
            shards, PAGES * layers, KV_HEADS, SLOTS, SIZE, jnp.float32, quantized=quantized, execution=execution
        )
        # What earlier owners left must not matter, whatever it is.
        self.pages = empty if quantized else jax.tree.map(lambda x: garbage(x, layers), empty)

    def expected(self, row: int, first: int, count: int) -> np.ndarray:
        """Attention of the queries at first to first + count - 1 of a row, by the formula."""
        if count == 0:
            return np.zeros((0, HEADS, SIZE))
        stop = first + count
        q, k, v = self.q[row, first:stop], self.k[row, :stop], self.v[row, :stop]
        k, v = (np.repeat(x, HEADS // KV_HEADS, axis=1) for x in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) / SIZE**0.5
        scores[:, np.arange(stop)[None] > np.arange(first, stop)[:, None]] = -np.inf
        probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.einsum("nts,snh->tnh", probs / probs.sum(axis=-1, keepdims=True), v)


def garbage(pages, layers):
    """NaN everywhere but in page 0 of each layer."""
    full = np.full(pages.shape, np.nan, pages.dtype)
    full[:, np.arange(layers) * PAGES] = 0
    return jax.device_put(full, pages.sharding)


@functools.cache
def jitted(execution=ONE_DEVICE):
    return jax.jit(functools.partial(paged_attention, execution=execution), donate_argnums=3)


def feed(texts: Texts, done: np.ndarray, counts: np.ndarray, width: int, layer: int = 0, execution=ONE_DEVICE) -> list:
    """One call with `counts` new tokens of each row, filled up to `width`; the rows' outputs."""
    d, r = texts.shards, texts.rows
    q = np.full((d, width, HEADS, SIZE), 7.0, np.float32)
    k, v = (np.full((d, KV_HEADS, width, SIZE), 7.0, np.float32) for _ in range(2))
    places = {}
    for shard in range(d):
        start = 0
        for row in range(shard * r, (shard + 1) * r):
            span = slice(done[row], done[row] + counts[row])
            here = slice(start, start + counts[row])
            q[shard, here], k[shard, :, here], v[shard, :, here] = (
                texts.q[row, span], texts.k[row, span].swapaxes(0, 1), texts.v[row, span].swapaxes(0, 1),
            )  # fmt: skip
            places[row] = (shard, here)
            start += counts[row]
    rows = Rows(texts.tables, done.reshape(d, r).astype(np.int32), counts.reshape(d, r).astype(np.int32))
    out, texts.pages = jitted(execution)(q, k, v, texts.pages, rows, np.int32(layer * PAGES))
    return [np.asarray(out)[places[row][0], places[row][1]] for row in range(d * r)]


def step(texts: Texts, done: np.ndarray, t: int, layer: int = 0, execution=ONE_DEVICE) -> np.ndarray:
    """One call in which every row brings t tokens."""
    index = done[:, None] + np.arange(t)
    q, k, v = (np.take_along_axis(x, index[:, :, None, None], axis=1) for x in (texts.q, texts.k, texts.v))
    rows = Rows(texts.tables, done.reshape(texts.shards, texts.rows).astype(np.int32))
    arrays = q, k.swapaxes(1, 2), v.swapaxes(1, 2), texts.pages, rows, np.int32(layer * PAGES)
    out, texts.pages = jitted(execution)(*arrays)
    return np.asarray(out)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(5, 90), min_size=4, max_size=4),
    chunks=st.lists(st.tuples(*[st.integers(0, 40)] * 4), max_size=6),
    seed=st.integers(0, 100),
)
def test_prompts_in_any_chunks_and_decode_steps_equal_the_formula(lengths, chunks, seed):
    """Also with nothing of some rows in a call; then single tokens and three at a time, as guesses are checked."""
    texts = Texts(lengths, seed)
    done = np.zeros(4, np.int64)
    last = texts.lengths - 4  # for two decode steps
    while (done < last).any():
        wanted = np.asarray(chunks.pop() if chunks else (TOKENS,) * 4)
        counts = np.minimum(wanted, last - done)
        while counts.sum() > TOKENS:
            counts[counts.argmax()] -= 1
        for row, out in enumerate(feed(texts, done, counts, TOKENS)):
            np.testing.assert_allclose(out, texts.expected(row, done[row], counts[row]), atol=2e-5, rtol=0)
        done += counts
    for t in (1, 3):
        out = step(texts, done, t)
        for row in range(4):
            np.testing.assert_allclose(out[row], texts.expected(row, done[row], t), atol=2e-5, rtol=0)
        done += t


def test_rows_do_not_disturb_each_other_to_the_last_bit():
    together = Texts([40, 17, 80, 5])
    feed(together, np.zeros(4, np.int64), np.asarray([39, 16, 5, 4]), TOKENS)
    feed(together, np.asarray([39, 16, 5, 4]), np.asarray([0, 0, 64, 0]), TOKENS)
    feed(together, np.asarray([39, 16, 69, 4]), np.asarray([0, 0, 10, 0]), TOKENS)
    done = np.asarray([39, 16, 79, 4])
    out = step(together, done, 1)
    other = Texts([40, 17, 80, 5])
    other.pages = together.pages
    other.tables = together.tables.copy()
    other.tables[0, 2] = 0  # a row that has ended: page 0, no length
    again = step(other, np.asarray([39, 16, 0, 4]), 1)
    for row in (0, 1, 3):
        np.testing.assert_array_equal(again[row], out[row])


def test_layers_that_share_an_array_keep_apart():
    texts = Texts([16, 16, 16, 16])
    zeros, counts = np.zeros(4, np.int64), np.asarray([15, 15, 15, 15])
    for layer in (2, 0, 1):
        texts.k += layer  # each layer has keys of its own
        feed(texts, zeros, counts, TOKENS, layer)
    for layer, added in ((1, 3), (0, 2), (2, 2)):
        texts.k += added - 3
        out = step(texts, counts, 1, layer)
        np.testing.assert_allclose(out[1], texts.expected(1, 15, 1), atol=3e-5, rtol=0)
        texts.k -= added - 3


@pytest.mark.parametrize(
    "axes", [dict(data=2, tensor=2), dict(data=4, tensor=2), dict(tensor=2), dict(data=2, expert=2)]
)
def test_a_mesh_gives_the_same_with_pools_of_its_own(axes):
    execution = Execution(Placement(sharding.make_mesh(**axes), sharding.SERVING))
    shards = execution.placement.parts("batch")
    lengths = np.random.default_rng(5).integers(8, 60, 2 * shards)
    texts = Texts(lengths, shards=shards, execution=execution)
    feed(texts, np.zeros(2 * shards, np.int64), lengths - 1, 128, execution=execution)
    out = step(texts, lengths - 1, 1, execution=execution)
    for row in range(2 * shards):
        np.testing.assert_allclose(out[row], texts.expected(row, lengths[row] - 1, 1), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("quantized", "bound"), [("int8", 0.02), ("fp8", 0.08)])
def test_eight_bits_are_near(quantized, bound):
    """int8 keeps 7 bits below the largest number of a token and head; e4m3 has 3 bits behind the point."""
    texts = Texts([45, 12, 7, 4], quantized=quantized)
    outs = feed(texts, np.zeros(4, np.int64), np.asarray([44, 11, 6, 3]), TOKENS)
    for row, count in enumerate((44, 11, 6, 3)):
        error = np.abs(outs[row] - texts.expected(row, 0, count))
        assert 0 < error.mean() < bound
    error = np.abs(step(texts, np.asarray([44, 11, 6, 3]), 1)[0] - texts.expected(0, 44, 1))
    assert 0 < error.mean() < bound


@pytest.mark.parametrize("quantized", [None, "int8"])
@pytest.mark.parametrize("t", [1, 3])
def test_the_gpu_kernel_as_plain_jax_equals_the_formula(t, quantized):
    texts = Texts([45, 12, 7, 4], quantized=quantized)
    texts.pages = jax.tree.map(jnp.nan_to_num, texts.pages)
    done = texts.lengths - t
    feed(texts, np.zeros(4, np.int64), done, TOKENS, layer=1)
    step(texts, done, t, layer=1)  # to put the newest keys into their pages
    q = np.take_along_axis(texts.q, (done[:, None] + np.arange(t))[:, :, None, None], axis=1)
    out = triton.decode(
        jnp.asarray(q), texts.pages, jnp.asarray(texts.tables[0] + PAGES), jnp.asarray(done), interpret=True
    )
    for row in range(4):
        atol = 2e-5 if quantized is None else 0.1
        np.testing.assert_allclose(out[row], texts.expected(row, done[row], t), atol=atol, rtol=0)


def test_the_gpu_kernel_compiles_to_triton():
    pages = jax.eval_shape(lambda: HeadMajor.empty(1, 100, KV_HEADS, 32, 128, jnp.bfloat16, None))
    arrays = (
        jax.ShapeDtypeStruct((5, 1, HEADS, 128), jnp.bfloat16), pages,
        jax.ShapeDtypeStruct((5, 40), jnp.int32), jax.ShapeDtypeStruct((5,), jnp.int32),
    )  # fmt: skip
    card = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")  # jax 0.12 asks for one
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=card)):
        text = jax.jit(triton.decode).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text


def test_memory_of_a_long_prompt_grows_with_its_length_alone():
    """A chunk of 512 after up to 131,072 tokens: what it needs besides the pages does not grow with them."""

    def temporary(width: int) -> int:
        pages = jax.eval_shape(lambda: new_pages(1, width + 1, KV_HEADS, 32, SIZE, jnp.float32))
        rows = Rows(
            jax.ShapeDtypeStruct((1, 1, width), jnp.int32), *(jax.ShapeDtypeStruct((1, 1), jnp.int32) for _ in range(2))
        )
        q = jax.ShapeDtypeStruct((1, 512, HEADS, SIZE), jnp.float32)
        k = jax.ShapeDtypeStruct((1, KV_HEADS, 512, SIZE), jnp.float32)
        return jitted().lower(q, k, k, pages, rows, 0).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < temporary(64) + 64 * 4096


def test_what_is_refused():
    for options, words in (
        (dict(execution=RAGGED), "'ragged' needs a TPU, and this is a CPU"),
        (dict(execution=RAGGED, quantized="int8"), "'ragged' needs a TPU"),
        (dict(execution=Execution(kernels=Kernels(paged="triton"))), "'triton' needs a GPU, and this is a CPU"),
    ):
        with pytest.raises(UserError, match=words):
            new_pages(1, 4, KV_HEADS, SLOTS, SIZE, jnp.float32, **options)
    assert page_size(Placement()) == 32


def test_tokens_beyond_the_table_and_padding_go_to_page_0():
    """A row of two pages of 4 slots, 6 in use, with 4 new tokens: two fit. The fifth token is padding."""
    token_places = places(jnp.asarray([6]), jnp.asarray([4]), 5)
    page, offset = slots(jnp.asarray([[3, 5]]), token_places, 4)
    assert page.tolist() == [5, 5, 0, 0, 0]
    assert offset.tolist() == [2, 3, 0, 1, 0]
