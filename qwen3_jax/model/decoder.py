"""The Qwen3 decoder as a Flax NNX module.

    >>> model = Qwen3(Qwen3Config.preset("Qwen3-0.6B"), rngs=nnx.Rngs(0))
    >>> logits = model(tokens)                                       # int32 [B, T] -> float32 [B, T, V]

Invariant: each parameter is declared once, by `params.Declare`. A run of equal layers is one block whose parameters have a
leading "layers" axis (`scan_layers=True`: compile time does not depend on depth) or one block per layer (`scan_layers=False`:
fastest to decode on CPU). Both run the same code on the same values.

Shapes: b batch, t length, d hidden, v vocabulary, l layers, e experts, n adapters side by side.
"""

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3_jax.config import Qwen3Config
from qwen3_jax.embedding_config import EmbeddingConfig
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.kernels import (
    ONE_DEVICE,
    CacheType,
    Execution,
    LowRank,
    Pages,
    Rows,
    Weight,
    dequantize,
    folded,
    is_quantized,
    new_pages,
    page_size,
    project,
    take_rows,
)
from qwen3_jax.model.block import Block
from qwen3_jax.model.cache import KVCache
from qwen3_jax.model.layer_loop import REMAT, Remat, layer_groups, run_layers
from qwen3_jax.model.layers import RMSNorm
from qwen3_jax.model.lora import Lora, adapted
from qwen3_jax.model.moe import RouterStats, Routes
from qwen3_jax.model.params import Declare, shapes_of
from qwen3_jax.model.rope import Angles, angles


class Entered(NamedTuple):
    """What the first layer starts from.

    Attributes:
        x_btd: embedded tokens, in the compute type.
        rope: angles of the rotations.
        chosen_btn: float32, 1 at the adapter of each token; None where the model has none.
    """

    x_btd: jax.Array
    rope: Angles
    chosen_btn: jax.Array | None


@struct.dataclass
class Hidden:
    """The decoder's output before the output projection.

    Attributes:
        states: [B, T, D], after the final norm, in the compute type.
        cache: the cache with this call's keys and values; None if the call had no cache.
        router: statistics with a leading axis of MoE layers; None for a dense model.
        experts: int32 [B, T, L, K], the experts that each MoE layer sent each token to; None unless they were asked for.
    """

    states: jax.Array
    cache: KVCache | None
    router: RouterStats | None
    experts: jax.Array | None = None


class Qwen3(nnx.Module):
    """A Qwen3 language model, dense or mixture of experts.

    Args:
        config: the architecture.
        rngs: source of initial weights (normal, `initializer_range`; residual outputs smaller by depth).
        dtype: compute type of activations; norms, softmax, routing and logits are always float32.
        param_dtype: storage type of parameters.
        scan_layers: stack equal layers and scan over them.
        remat: what the backward pass computes again: "none"; "dots", all but the products with weights; "mlp", all but
            queries, keys, values, attention and the product of the MLP's gate (of experts only where a product of their own
            gives it: not with tiles or Triton); "qkv", all but queries, keys, values and attention; "attention", all but
            attention; "full", whole layers.
        execution: mesh and rules, kernels, 8-bit products, order of the tokens; by default one device.
        lora: the weights that have low-rank adapters, float32; None for none.

    Attributes:
        generation_config: sampling defaults, from the checkpoint's generation_config.json.
        embedding_config: how the checkpoint makes embeddings, from sentence-transformers' files; None where it has none.
        no_text: why the model has no vocabulary to answer with, and what it is for; None if it has one.
    """

    no_text: ClassVar[str | None] = None

    def __init__(
        self,
        config: Qwen3Config,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        scan_layers: bool = True,
        remat: Remat = "none",
        execution: Execution = ONE_DEVICE,
        lora: Lora | None = None,
    ):
        if remat not in REMAT:
            raise ValueError(f"remat must be one of {', '.join(map(repr, REMAT))}; got {remat!r}.")
        self.config = config
        self.generation_config = GenerationConfig()
        self.embedding_config: EmbeddingConfig | None = None
        self.dtype = jnp.dtype(dtype)
        self.param_dtype = jnp.dtype(param_dtype)
        self.scan_layers = scan_layers
        self.remat = remat
        self.execution = execution
        self.lora = lora

        declare = Declare(rngs, self.param_dtype, lora=lora)
        v, d, std = config.vocab_size, config.hidden_size, config.initializer_range
        self.embed = declare.normal((v, d), ("vocab", "embed"), std)
        stacks = [
            (moe, tuple(layers), len(layers) if scan_layers else None)
            for moe, layers in layer_groups(config, scan_layers)
        ]
        self.groups = nnx.List(
            [
                Block(config, Declare(rngs, self.param_dtype, stack, lora, layers), execution, moe)
                for moe, layers, stack in stacks
            ]
        )
        self.norm = RMSNorm(d, "hidden", config, declare)
        self._declare_head(declare)

    def _declare_head(self, declare: Declare) -> None:
        config = self.config
        if not config.tie_word_embeddings:
            shape = config.hidden_size, config.vocab_size
            self.lm_head = declare.normal(shape, ("embed", "vocab"), config.initializer_range)
        width, rows, none = ((config.hidden_size,), ("embed",)), ((config.vocab_size,), ("vocab",)), ((), ())
        table = declare.adapter("embed", none, rows, width, table=True)
        head = declare.adapter("lm_head", none, width, rows)
        made = {name: one for name, one in {"embed": table, "lm_head": head}.items() if one is not None}
        self.adapters = nnx.Dict(made) if made else None

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """Return the next-token logits, float32 [B, T, V]; with a cache, (logits, updated cache).

        Args:
            tokens: int32 [B, T].
            positions: int32 [B, T] for RoPE; by default 0 to T - 1, or continuing from the cache's lengths.
            segment_ids: int32 [B, T], documents packed into one row: tokens see only their own segment. 0 is padding.
            cache: keys and values of earlier tokens (`new_cache`); this call's are appended, T to each row. Tokens beyond
                its capacity are not stored.

        Raises:
            ValueError: tokens are not [B, T] integers, segment_ids were given with a cache, or T exceeds a chunk of Dual
                Chunk Attention without a cache.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers [B, T]; got {tokens.dtype} {tokens.shape}.")
        # Jitted here so that a plain call costs one dispatch instead of one per operation; inside a jit it is inlined.
        logits, cache = _forward(*nnx.split(self), tokens, positions, segment_ids, cache)
        return logits if cache is None else (logits, cache)

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        adapter: jax.Array | None = None,
        routes: Routes | None = None,
        report_experts: bool = False,
    ) -> Hidden:
        """Everything but the output projection; arguments as for a call.

        A cache whose rows have counts takes tokens [D, T]: for each shard of the batch, the tokens of its rows one after
        another.

        Args:
            adapter: int32 [B, T], which of several adapters (`lora.names`) each token has, counted from 1; 0 is the base model.
            routes: experts that tokens were sent to before, to compare with or to send them to again.
            report_experts: return the experts of each token.
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids cannot be combined with a cache: a cached row is one document.")
        dual_chunk, t = self.config.dual_chunk_attention_config, tokens.shape[1]
        if cache is None and dual_chunk is not None and t > dual_chunk.chunk:
            raise ValueError(
                f"{t} tokens without a cache exceed the {dual_chunk.chunk} of one chunk; Dual Chunk Attention needs a cache "
                "(`new_cache`, or an Engine). To train, remove dual_chunk_attention_config."
            )
        x_btd, rope, chosen_btn = self.enter(tokens, positions, None if cache is None else cache.rows, adapter)
        x_btd, cache, router, experts = run_layers(
            self.groups, x_btd, rope, segment_ids, cache, self.remat, chosen_btn, routes, report_experts
        )
        return Hidden(self.norm(x_btd), cache, router, experts)

    def enter(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        rows: Rows | None = None,
        adapter: jax.Array | None = None,
    ) -> Entered:
        """Embed tokens and compute their rotations, before the first layer; arguments as for `hidden`, `rows` of its cache."""
        b, t = tokens.shape
        if positions is None and rows is not None:
            positions = rows.positions(b, t)
        elif positions is None:
            positions = jnp.broadcast_to(jnp.asarray(self.execution.order(t)), (b, t))
        rope = angles(self.config, positions)

        chosen_btn = self._chosen(adapter)
        embed = adapted(self.embed[...], self.adapters, "embed", chosen_btn)
        x_btd = take_rows(embed, tokens, self.dtype, self.execution)
        x_btd = self.execution.placement.constrain(x_btd, ("batch", "length", "hidden"))
        return Entered(x_btd, rope, chosen_btn)

    def logits(self, states: jax.Array, adapter: jax.Array | None = None) -> jax.Array:
        """Project hidden states [..., D] to float32 logits [..., V]; `adapter` as in `hidden`, int32 [...]."""
        weight, tied = self._output_weight(self._chosen(adapter))
        equation = "...d,vd->...v" if tied else "...d,dv->...v"
        return project(equation, states.astype(self.dtype), weight, self.execution)

    @property
    def has_vocabulary(self) -> bool:
        """Whether there is an output projection, from which answers are drawn."""
        return self.no_text is None

    @property
    def output_weight(self) -> tuple[Weight, bool]:
        """The output projection and whether it is the embedding: ([V, D], True) or ([D, V], False)."""
        return self._output_weight(None)

    def _output_weight(self, chosen: jax.Array | None) -> tuple[Weight, bool]:
        if self.no_text is not None:
            raise UserError(f"{self.no_text}.")
        tied = self.config.tie_word_embeddings
        weight = self.embed[...] if tied else self.lm_head[...]
        return adapted(weight, self.adapters, "lm_head", chosen), tied

    def _chosen(self, adapter: jax.Array | None) -> jax.Array | None:
        """Return float32 [..., N], 1 at the adapter of each token; None where none has any."""
        if adapter is None or self.lora is None or not self.lora.names:
            return None
        return jax.nn.one_hot(adapter - 1, len(self.lora.names), dtype=jnp.float32)

    def output_matrix(self) -> tuple[jax.Array, bool]:
        """The same as one array, with its adapter added and what is quantised unpacked, for a loss that reads it in chunks."""
        weight, tied = self.output_weight
        if not isinstance(weight, LowRank):
            return (dequantize(weight, self.dtype) if is_quantized(weight) else weight), tied
        if tied:  # [V, R] [R, D]
            weight = LowRank(weight.base, weight.b.T, weight.a.T, weight.scaling)
        axes = ("vocab", "embed") if tied else ("embed", "vocab")
        return folded(weight, self.dtype, self.execution, axes), tied

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache with room for `capacity` tokens in each of `batch` rows, in the compute type."""
        size = page_size(self.execution.placement)
        parts = self.execution.placement.parts("batch")
        shards = parts if batch % parts == 0 else 1
        rows, width = batch // shards, -(-capacity // size)
        pages = self.new_pages(1 + rows * width, slots_per_page=size, shards=shards)
        return KVCache(pages, Rows.consecutive(shards, rows, width))

    def new_pages(
        self, pages: int, *, slots_per_page: int, shards: int = 1, quantized: CacheType | None = None
    ) -> tuple[Pages, ...]:
        """Return the pools of a `KVCache`: `pages` zeroed pages per layer and shard of the batch; page 0 is a write sink.

        Raises:
            UserError: `slots_per_page` does not divide a chunk of Dual Chunk Attention, or the kernel cannot run here.
        """
        config = self.config
        dual_chunk = config.dual_chunk_attention_config
        if dual_chunk is not None and dual_chunk.chunk % slots_per_page:
            raise UserError(
                f"config field 'dual_chunk_attention_config' gives chunks of {dual_chunk.chunk} tokens (chunk_size - "
                f"local_size), which pages of {slots_per_page} do not divide; change the sizes or `slots_per_page`."
            )
        heads, size, chunked = config.num_key_value_heads, config.head_dim, dual_chunk is not None
        counts = [pages * (group.stack or 1) for group in self.groups]
        options: dict[str, Any] = dict(quantized=quantized, chunked=chunked, execution=self.execution)
        return tuple(new_pages(shards, n, heads, slots_per_page, size, self.dtype, **options) for n in counts)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, state, tokens, positions, segment_ids, cache):
    model = nnx.merge(graphdef, state)
    hidden = model.hidden(tokens, positions=positions, segment_ids=segment_ids, cache=cache)
    logits = model.execution.placement.constrain(model.logits(hidden.states), ("batch", "length", "vocab"))
    return logits, hidden.cache


def abstract(make: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Return (graphdef, state of ShapeDtypeStructs) of the model that `make()` builds, without allocating it."""
    return nnx.split(shapes_of(make))


def parameter_count(config: Qwen3Config, active: bool = False) -> int:
    """Return the number of parameters, tied weights counted once; `active` counts only the experts that one token uses."""
    _, state = abstract(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(state))
    if not active or not config.num_experts:
        return total
    idle = config.num_experts - config.num_experts_per_tok
    return total - config.moe_layers * idle * 3 * config.hidden_size * config.moe_intermediate_size
