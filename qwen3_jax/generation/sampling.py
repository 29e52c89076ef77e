"""Sampling settings, penalties and log probabilities; `draw` has temperature, top-k, top-p, min-p and the draw itself.

Order of operations (that of vLLM and transformers): biases, repetition penalty, frequency and presence penalty, temperature,
top-k, top-p, min-p. All settings are arrays with one entry per row, so a batch may mix them and a change compiles nothing.

Invariant: a row's token depends on its own logits, settings, seed and position only, never on its neighbours. The draw is the
largest of logit + Gumbel noise, and each token has noise of its own.

Shapes: b rows, v vocabulary, c candidates.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3_jax.bounds import Bound, above, at_least, between, whole
from qwen3_jax.errors import RequestError
from qwen3_jax.generation_config import GenerationConfig
from sharding import Placement

MAX_LOGPROBS = 20  # alternatives per token, as in OpenAI's API
MAX_BIASES = 300  # biased tokens per request, as in OpenAI's API
MAX_STOP_TOKEN_IDS = 16

_BOUNDS = {
    "temperature": at_least(0, below=math.inf),
    "top_k": whole(0),
    "top_p": Bound(0, 1, low_excluded=True),
    "min_p": between(0, 1),
    "presence_penalty": between(-2, 2),
    "frequency_penalty": between(-2, 2),
    "repetition_penalty": above(0, finite=True),
    "seed": whole(0, 2**63 - 1),
    "logprobs": whole(0, MAX_LOGPROBS),
    "n": whole(1),
}
_FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_OPTIONAL = _BOUNDS.keys() - {"presence_penalty", "frequency_penalty", "n"}  # may be None


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. None is the value of the checkpoint's generation_config.json.

    Qwen recommends temperature 0.6, top_p 0.95, top_k 20 for thinking; 0.7, 0.8, 20 without.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it. If neither this nor the checkpoint sets it: 1 if any of
            top_k, top_p, min_p is set, else greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 drops none.
        presence_penalty: subtracted from the logit of every token generated before, in [-2, 2].
        frequency_penalty: subtracted once per earlier occurrence of a generated token, in [-2, 2].
        repetition_penalty: divides positive and multiplies negative logits of every token of prompt and answer; 1 is off.
        logit_bias: added to the logits of token ids, in [-100, 100]; at most `MAX_BIASES` ids.
        seed: makes the row reproducible, alone or in any batch; None draws one.
        stop: texts that end the answer; they are not part of it. Looked for in the content alone: not in thinking, tags,
            forced text, or the arguments of tool calls. In a text that is continued as it is (`raw`): everywhere.
        stop_token_ids: tokens that end the answer wherever they are sampled, besides the model's own end tokens; at most
            `MAX_STOP_TOKEN_IDS`. Like those they are no part of the text.
        logprobs: report each token's log probability and this many alternatives; None reports none.
        sampled_logprobs: besides, report the log probability of each token under the distribution that it was drawn from: after
            biases, penalties, constraint, temperature, top_k, top_p and min_p, renormalised. Needs `logprobs`.
        n: answers per prompt.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    sampled_logprobs: bool = False
    n: int = 1

    def __post_init__(self) -> None:
        for name, bound in _BOUNDS.items():
            value = getattr(self, name)
            rule = None if value is None and name in _OPTIONAL else bound.broken_rule(value)
            if rule is not None:
                raise RequestError(f"sampling option {name!r} is {value!r}; it must be {rule}.", name)
        if len(self.logit_bias) > MAX_BIASES:
            reason = f"sampling option 'logit_bias' has {len(self.logit_bias)} tokens; the most is {MAX_BIASES}."
            raise RequestError(reason, "logit_bias")
        for token, bias in self.logit_bias.items():
            is_token = isinstance(token, (int, np.integer)) and not isinstance(token, bool) and 0 <= token < 2**31
            is_bias = isinstance(bias, (int, float)) and not isinstance(bias, bool) and -100 <= bias <= 100
            if not (is_token and is_bias):
                reason = f"sampling option 'logit_bias' has {token!r}: {bias!r}; it maps token ids to numbers from -100 to 100."
                raise RequestError(reason, "logit_bias")
        stop = (self.stop,) if isinstance(self.stop, str) or not isinstance(self.stop, Sequence) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"sampling option 'stop' has {text!r}; it takes non-empty texts.", "stop")
        object.__setattr__(self, "stop", stop)
        ids = self.stop_token_ids
        ids = (ids,) if isinstance(ids, (int, np.integer, str)) or not isinstance(ids, Iterable) else tuple(ids)
        for token in ids:
            if not isinstance(token, (int, np.integer)) or isinstance(token, bool) or not 0 <= token < 2**31:
                reason = (
                    f"sampling option 'stop_token_ids' has {token!r}; it takes token ids, whole numbers of 0 or more."
                )
                raise RequestError(reason, "stop_token_ids")
        if len(set(ids)) > MAX_STOP_TOKEN_IDS:
            reason = f"sampling option 'stop_token_ids' has {len(set(ids))} tokens; the most is {MAX_STOP_TOKEN_IDS}."
            raise RequestError(reason, "stop_token_ids")
        object.__setattr__(self, "stop_token_ids", tuple(int(token) for token in ids))
        if not isinstance(self.sampled_logprobs, (bool, np.bool_)):
            reason = f"sampling option 'sampled_logprobs' is {self.sampled_logprobs!r}; it must be True or False."
            raise RequestError(reason, "sampled_logprobs")
        if self.sampled_logprobs and self.logprobs is None:
            reason = "sampling option 'sampled_logprobs' needs 'logprobs', the number of alternatives: 0 or more."
            raise RequestError(reason, "sampled_logprobs")

    def resolve(self, defaults: GenerationConfig) -> Sampling:
        """Return a copy with defaults and a seed filled in; only `logprobs` may still be None."""
        temperature = self.temperature
        if temperature is None:
            if defaults.do_sample:
                temperature = 1.0 if defaults.temperature is None else defaults.temperature
            else:
                narrowed = (self.top_k, self.top_p, self.min_p) != (None, None, None)
                temperature = 1.0 if narrowed else 0.0

        def pick(name: str, neutral: float) -> float:
            own, theirs = getattr(self, name), getattr(defaults, name)
            return own if own is not None else theirs if theirs is not None else neutral

        return dataclasses.replace(
            self,
            temperature=float(temperature),
            top_k=min(int(pick("top_k", 0)), np.iinfo(np.int32).max),
            top_p=pick("top_p", 1.0),
            min_p=pick("min_p", 0.0),
            repetition_penalty=pick("repetition_penalty", 1.0),
            seed=_draw_seed() if self.seed is None else int(self.seed),
        )


def _draw_seed() -> int:
    """Return a random seed, the same in all processes."""
    high, low = np.frombuffer(secrets.token_bytes(8), np.uint32) >> 1
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        high, low = broadcast_one_to_all(np.asarray([high, low]))
    return (int(high) << 31) | int(low)


@struct.dataclass
class SamplingRows:
    """`Sampling` of each row as arrays [B]; `key` is uint32 [B, 2], `bias_tokens` int32 [B, MAX_BIASES], padded with -1.

    `logprobs` is int32, -1 where none are requested.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    repetition_penalty: jax.Array
    bias_tokens: jax.Array
    biases: jax.Array
    logprobs: jax.Array
    sampled_logprobs: jax.Array
    key: jax.Array

    @property
    def is_greedy(self) -> jax.Array:
        """Whether each row takes the most likely token, bool [B]: the temperature is 0, or too small to divide by."""
        return self.temperature < jnp.finfo(jnp.float32).tiny

    @property
    def penalised(self) -> jax.Array:
        """Whether each row's logits depend on what it has seen, bool [B]."""
        return (self.repetition_penalty != 1) | (self.presence_penalty != 0) | (self.frequency_penalty != 0)

    @classmethod
    def of(cls, rows: Sequence[Sampling], sample_indices: Sequence[int]) -> SamplingRows:
        """Stack resolved settings; `sample_indices` give the n answers to one prompt different keys."""

        def column(name: str, dtype: type) -> Any:
            return np.asarray([getattr(row, name) for row in rows], dtype)

        alternatives: Any = np.asarray([-1 if row.logprobs is None else row.logprobs for row in rows], np.int32)
        seeds = [np.random.SeedSequence(row.seed, spawn_key=(i,)) for row, i in zip(rows, sample_indices, strict=True)]
        tokens: Any = np.full((len(rows), MAX_BIASES), -1, np.int32)
        biases: Any = np.zeros((len(rows), MAX_BIASES), np.float32)
        for i, row in enumerate(rows):
            tokens[i, : len(row.logit_bias)] = list(row.logit_bias)
            biases[i, : len(row.logit_bias)] = list(row.logit_bias.values())
        return cls(
            **{name: column(name, np.float32) for name in _FLOATS},
            top_k=column("top_k", np.int32),
            bias_tokens=tokens,
            biases=biases,
            logprobs=alternatives,
            sampled_logprobs=column("sampled_logprobs", bool),
            key=np.stack([seed.generate_state(2, np.uint32) for seed in seeds]),  # type: ignore[arg-type]
        )


class Seen(struct.PyTreeNode):
    """Tokens seen by each row with penalties, by slot.

    Attributes:
        prompt: bool [S, V], tokens of the prompt.
        answer: int16 [S, V], how often each token was generated.
    """

    prompt: jax.Array
    answer: jax.Array

    @classmethod
    def empty(cls, slots: int, vocabulary: int, placement: Placement) -> Seen:
        """Return `slots` empty slots, replicated on every device."""
        both = cls(jnp.zeros((slots, vocabulary), bool), jnp.zeros((slots, vocabulary), jnp.int16))
        return jax.tree.map(lambda x: placement.constrain(x, (None, None)), both)

    def add(self, slot_b: jax.Array, token_b: jax.Array) -> Seen:
        """Count one generated token per slot; slots past the last are dropped."""
        return self.replace(answer=self.answer.at[slot_b, token_b].add(1, mode="drop"))


def shift(logits_bv: jax.Array, rows: SamplingRows) -> jax.Array:
    """Add the rows' biases to the logits of their tokens; skipped if no row has any."""

    def apply(logits_bv: jax.Array) -> jax.Array:
        # A negative index counts from the end; one past the last is dropped.
        token_bn = jnp.where(rows.bias_tokens < 0, logits_bv.shape[1], rows.bias_tokens)
        return logits_bv.at[jnp.arange(len(logits_bv))[:, None], token_bn].add(rows.biases, mode="drop")

    return jax.lax.cond(jnp.any(rows.bias_tokens >= 0), apply, lambda x: x, logits_bv)


def penalise(logits_bv: jax.Array, rows: SamplingRows, seen: Seen, slot_b: jax.Array) -> jax.Array:
    """Apply the repetition penalty (Keskar et al. 2019, arXiv 1909.05858), then frequency and presence penalty; skipped if all
    are off. `slot_b` is each row's slot in `seen`."""

    def apply(logits_bv: jax.Array) -> jax.Array:
        in_prompt_bv, count_bv = seen.prompt[slot_b], seen.answer[slot_b].astype(jnp.float32)
        factor_b1 = rows.repetition_penalty[:, None]
        scaled_bv = jnp.where(logits_bv > 0, logits_bv / factor_b1, logits_bv * factor_b1)
        logits_bv = jnp.where(in_prompt_bv | (count_bv > 0), scaled_bv, logits_bv)
        return logits_bv - rows.presence_penalty[:, None] * (count_bv > 0) - rows.frequency_penalty[:, None] * count_bv

    return jax.lax.cond(jnp.any(rows.penalised), apply, lambda x: x, logits_bv)


class Logprobs(struct.PyTreeNode):
    """Log probabilities of tokens; zeros if no row requested them.

    Attributes:
        chosen: float32 [B], of the token taken, by the model itself (before penalties and temperature).
        top: float32 [B, C], of the most likely tokens, likewise, best first; C is 20 for generated tokens.
        top_tokens: int32 [B, C].
        sampled: float32 [B], of the token taken, under the distribution that it was drawn from; NaN for a forced token. None
            for tokens of a prompt.
    """

    chosen: jax.Array
    top: jax.Array
    top_tokens: jax.Array
    sampled: jax.Array | None = None


def logprobs(logits_bv: jax.Array, tokens_b: jax.Array, alternatives_b: jax.Array) -> Logprobs:
    """Return the log probabilities of `tokens_b` and of the most likely tokens.

    `alternatives_b` is `SamplingRows.logprobs`: where no row asks for log probabilities, or for alternatives, these are zeros.
    """
    rows, few = logits_bv.shape[0], min(MAX_LOGPROBS, logits_bv.shape[1])

    def zeros(_: None) -> Logprobs:
        return Logprobs(jnp.zeros(rows), jnp.zeros((rows, few)), jnp.zeros((rows, few), jnp.int32))

    def chosen_alone(_: None) -> Logprobs:
        below_bv = logits_bv - logits_bv.max(axis=-1, keepdims=True)  # as log_softmax does, to the same bits
        below_b = jnp.take_along_axis(below_bv, tokens_b[:, None], axis=-1)[:, 0]
        return zeros(None).replace(chosen=below_b - jnp.log(jnp.exp(below_bv).sum(axis=-1)))

    def compute(_: None) -> Logprobs:
        return jax.lax.cond(
            jnp.any(alternatives_b > 0), lambda _: own_logprobs(logits_bv, tokens_b, few), chosen_alone, None
        )

    return jax.lax.cond(jnp.any(alternatives_b >= 0), compute, zeros, None)


def own_logprobs(logits_bv: jax.Array, tokens_b: jax.Array, few: int) -> Logprobs:
    """Return the log probabilities of `tokens_b` and of the `few` most likely tokens: log softmax of the logits."""
    log_bv = jax.nn.log_softmax(logits_bv, axis=-1)
    top, top_tokens = jax.lax.top_k(log_bv, min(few, log_bv.shape[1]))
    chosen = jnp.take_along_axis(log_bv, tokens_b[:, None], axis=-1)[:, 0]
    return Logprobs(chosen, top, top_tokens.astype(jnp.int32))
