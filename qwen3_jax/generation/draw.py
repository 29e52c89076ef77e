"""The draw of a token from logits: temperature, top-k, top-p, min-p, and one random number for each token of the vocabulary.

Top-k first, then top-p among what is left, then min-p relative to the most likely token, as in transformers. Equal logits are
taken in the order of the vocabulary.

Shapes: b rows, v vocabulary, c candidates.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.generation.sampling import SamplingRows

# Rows with 0 < top_k <= this use a partial sort.
_FEW = 64


def sample(logits_bv: jax.Array, rows: SamplingRows, position_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return one token per row, int32 [B], and its log probability under the distribution that it is drawn from, float32 [B].

    The latter is 0 for greedy rows, and for all if no row asks for it.

    Args:
        logits_bv: float32, after penalties; -inf for masked tokens.
        rows: settings.
        position_b: int32, tokens that the row has generated; each position has random numbers of its own.
    """

    def greedy(_: None) -> tuple[jax.Array, jax.Array]:
        return _largest(logits_bv), jnp.zeros(len(logits_bv))

    def draw(_: None) -> tuple[jax.Array, jax.Array]:
        scaled_bv, few, few_b, whole_b = _scaled(logits_bv, rows)
        noise = jax.vmap(_noise)

        def log_total(kept_bc: jax.Array) -> jax.Array:
            return jax.lax.cond(
                jnp.any(rows.sampled_logprobs),
                lambda _: jax.nn.logsumexp(kept_bc, axis=-1),
                lambda _: none(None)[1],
                None,
            )

        def from_few(_: None) -> tuple[jax.Array, jax.Array]:
            sorted_bc, index_bc = jax.lax.top_k(scaled_bv, few)
            kept_bc = jnp.where(_kept(sorted_bc, rows), sorted_bc, -jnp.inf)
            place_b = jnp.argmax(kept_bc + noise(rows.key, position_b, index_bc), axis=-1)
            token_b = jnp.take_along_axis(index_bc, place_b[:, None], axis=-1)[:, 0].astype(jnp.int32)
            return token_b, log_total(kept_bc)

        def from_all(_: None) -> tuple[jax.Array, jax.Array]:
            token_bv = jnp.broadcast_to(jnp.arange(scaled_bv.shape[-1]), scaled_bv.shape)
            kept_bv = _narrowed(scaled_bv, few_b | whole_b | rows.is_greedy, rows)
            # Written out first: XLA:CPU would draw the noise once more for the second pass of `_largest`.
            noisy_bv = jax.lax.optimization_barrier(kept_bv + noise(rows.key, position_b, token_bv))
            return _largest(noisy_bv), log_total(kept_bv)

        # What no row needs is not computed: a partial sort, or noise for the whole vocabulary.
        from_few_b, few_total_b = jax.lax.cond(jnp.any(few_b), from_few, none, None)
        all_b, all_total_b = jax.lax.cond(jnp.all(few_b | rows.is_greedy), none, from_all, None)
        greedy_b, _ = jax.lax.cond(jnp.any(rows.is_greedy), greedy, none, None)
        token_b = jnp.where(rows.is_greedy, greedy_b, jnp.where(few_b, from_few_b, all_b))
        total_b = jnp.where(few_b, few_total_b, all_total_b)
        chosen_b = jnp.take_along_axis(scaled_bv, token_b[:, None], axis=-1)[:, 0]
        return token_b, jnp.where(rows.is_greedy | ~jnp.any(rows.sampled_logprobs), 0.0, chosen_b - total_b)

    def none(_: None) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(len(logits_bv), jnp.int32), jnp.zeros(len(logits_bv))

    return jax.lax.cond(jnp.all(rows.is_greedy), greedy, draw, None)


def _largest(x_bv: jax.Array) -> jax.Array:
    """Return what argmax does: the first place of the largest value in each row, or of a NaN; int32 [B].

    Two reductions of one value each, which XLA:CPU computes several elements at a time; argmax's of a pair it does not.
    """
    place_bv = jax.lax.broadcasted_iota(jnp.int32, x_bv.shape, 1)
    found_bv = (x_bv == x_bv.max(axis=-1, keepdims=True)) | jnp.isnan(x_bv)
    return jnp.where(found_bv, place_bv, x_bv.shape[-1]).min(axis=-1)


def _scaled(logits_bv: jax.Array, rows: SamplingRows) -> tuple[jax.Array, int, jax.Array, jax.Array]:
    """Return (logits over the temperature, size of the partial sort, rows for which that is enough, rows that keep all)."""
    # Subtract the largest first: with a tiny temperature the quotient then overflows to -inf, not to inf.
    below_bv = logits_bv - logits_bv.max(axis=-1, keepdims=True)
    below_bv = jnp.where(below_bv == 0, 0.0, below_bv)  # -0.0 is equal to 0.0, and a sort would put it behind
    scaled_bv = below_bv / jnp.where(rows.is_greedy, 1.0, rows.temperature)[:, None]
    few = min(_FEW, logits_bv.shape[-1])
    few_b = (rows.top_k > 0) & (rows.top_k <= few)
    whole_b = (rows.top_k == 0) & (rows.top_p == 1) & (rows.min_p == 0)
    return scaled_bv, few, few_b, whole_b


def _noise(key: jax.Array, position: jax.Array, token_c: jax.Array) -> jax.Array:
    """Return Gumbel noise of some tokens at one position of one row: the argmax of logit + noise is a draw from the softmax.

    The noise belongs to the token, not to its rank. Batches of other sizes round logits differently, which may swap the ranks
    of two unlikely tokens; if a random number selected a rank, every such swap would change the answer.
    """
    at_position = jax.random.fold_in(jax.random.wrap_key_data(key), position)
    bits_c = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(at_position, token_c))[:, 0]
    # All 32 bits: the winners of a large vocabulary are in the tail, where 24 bits would be coarse.
    return -jnp.log(-jnp.log1p(-(bits_c.astype(jnp.float32) + 0.5) * 2.0**-32))


def _kept(sorted_bc: jax.Array, rows: SamplingRows) -> jax.Array:
    """Return which candidates top-k, top-p and min-p keep, bool [B, C]."""
    rank_c = jnp.arange(sorted_bc.shape[-1])
    top_k_b1 = jnp.where(rows.top_k > 0, rows.top_k, sorted_bc.shape[-1])[:, None]
    probs_bc = jax.nn.softmax(jnp.where(rank_c < top_k_b1, sorted_bc, -jnp.inf), axis=-1)
    before_bc = jnp.cumsum(probs_bc, axis=-1) - probs_bc  # probability of all more likely tokens
    top_p_b1 = jnp.where(rows.top_p < 1, rows.top_p, jnp.inf)[:, None]  # 1 keeps all, however the sum rounds
    keep_bc = (before_bc < top_p_b1) & (probs_bc >= rows.min_p[:, None] * probs_bc[:, :1])
    return keep_bc.at[:, 0].set(True) & (probs_bc > 0)


def _narrowed(scaled_bv: jax.Array, other_b: jax.Array, rows: SamplingRows) -> jax.Array:
    """Return the scaled logits with -inf for tokens that top-k, top-p and min-p drop, as `_kept`, in no order.

    Without a sort, which takes 50 ms and more for a row of 151,936 logits. Rows in `other_b` are not narrowed.
    """

    def narrow(_: None) -> jax.Array:
        size, key_bv = scaled_bv.shape[-1], _ordered(scaled_bv)
        most_b = jnp.where((rows.top_k > 0) & ~other_b, rows.top_k, size).astype(jnp.float32)
        mass_b = jnp.where((rows.top_p < 1) & ~other_b, rows.top_p, jnp.inf)

        def probabilities(kept_bv: jax.Array) -> jax.Array:
            return jax.nn.softmax(jnp.where(kept_bv, scaled_bv, -jnp.inf), axis=-1)

        # First top-k, where each token weighs 1, then top-p among those: one program for both.
        def narrow_by(kept_bv: jax.Array, of: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            is_mass, limit_b = of

            def search(_: None) -> jax.Array:
                weight_bv = jnp.where(is_mass, probabilities(kept_bv), kept_bv.astype(jnp.float32))
                return kept_bv & _first(key_bv, weight_bv, limit_b)

            return jax.lax.cond(
                jnp.any(limit_b < jnp.where(is_mass, jnp.inf, size)), search, lambda _: kept_bv, None
            ), None

        limits = jnp.arange(2) > 0, jnp.stack([most_b, mass_b])
        kept_bv, _ = jax.lax.scan(narrow_by, jnp.ones(scaled_bv.shape, bool), limits)
        probs_bv = probabilities(kept_bv)
        kept_bv &= probs_bv >= rows.min_p[:, None] * probs_bv.max(axis=-1, keepdims=True)
        kept_bv |= jnp.arange(size) == _largest(scaled_bv)[:, None]
        return jnp.where((kept_bv & (probs_bv > 0)) | other_b[:, None], scaled_bv, -jnp.inf)

    return jax.lax.cond(jnp.all(other_b), lambda _: scaled_bv, narrow, None)


def _ordered(x: jax.Array) -> jax.Array:
    """Return int32 that are ordered as the float32 numbers are, and equal where these are; there is no -0.0."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _first(key_bv: jax.Array, weight_bv: jax.Array, limit_b: jax.Array) -> jax.Array:
    """Return which tokens come first: those before which there is less weight than the limit; bool [B, V].

    Tokens are ordered by descending key, and of equal ones, which have equal weights, by index.
    """
    low_b, high_b = jnp.full_like(key_bv[:, 0], jnp.iinfo(jnp.int32).min), key_bv.max(axis=-1)

    def narrow(bounds):  # the smallest key above which there is less weight than the limit
        low_b, high_b = bounds
        middle_b = (low_b & high_b) + ((low_b ^ high_b) >> 1)
        above_b = jnp.where(key_bv > middle_b[:, None], weight_bv, 0).sum(axis=-1)
        return jnp.where(above_b < limit_b, low_b, middle_b + 1), jnp.where(above_b < limit_b, middle_b, high_b)

    _, last_b = jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), narrow, (low_b, high_b))
    above_bv, equal_bv = key_bv > last_b[:, None], key_bv == last_b[:, None]
    each_b = jnp.where(equal_bv, weight_bv, 0).max(axis=-1)
    left_b = limit_b - jnp.where(above_bv, weight_bv, 0).sum(axis=-1)
    size, index_v = key_bv.shape[-1], jnp.arange(key_bv.shape[-1])
    count_b = jnp.where(each_b > 0, jnp.clip(jnp.ceil(left_b / jnp.where(each_b > 0, each_b, 1)), 0, size), size)
    count_b = jnp.minimum(count_b.astype(jnp.int32), equal_bv.sum(axis=-1))

    def narrow_index(bounds):  # the smallest index before which there are that many of the equal ones
        low_b, high_b = bounds
        middle_b = (low_b + high_b) // 2
        enough_b = (equal_bv & (index_v < middle_b[:, None])).sum(axis=-1) >= count_b
        return jnp.where(enough_b, low_b, middle_b + 1), jnp.where(enough_b, middle_b, high_b)

    start = jnp.where(count_b < equal_bv.sum(axis=-1), 0, size), jnp.full_like(count_b, size)
    _, end_b = jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), narrow_index, start)
    return above_bv | (equal_bv & (index_v < end_b[:, None]))
