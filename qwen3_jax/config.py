"""The architecture, field for field what Hugging Face's `config.json` says, and the eight sizes as named presets.

    >>> from qwen3_jax import Qwen3Config
    >>> Qwen3Config.preset("Qwen3-0.6B").head_dim
    128
    >>> Qwen3Config.from_hf({"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2}).hidden_size
    64

Both spellings that occur in the wild are read: `rope_theta` + `rope_scaling` + `torch_dtype` + `num_experts`
(transformers 4, the files on the hub) and `rope_parameters` + `dtype` + `num_local_experts` (transformers 5). The first is
written. A field that would change the computation and is not supported is refused by name.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.json_fields import as_ids, check_types
from qwen3_jax.position_config import DualChunk, RopeScaling, read_dual_chunk, read_rope


@dataclass(frozen=True)
class Qwen3Config:
    """A Qwen3 decoder, dense (`num_experts` = 0) or mixture of experts. Field names are HF's.

    Source: Qwen3 technical report (arXiv 2505.09388), section 2, and the `config.json` of each checkpoint.
    The defaults are Qwen3-0.6B's.

    Attributes:
        vocab_size: rows of the embedding (151,936 in released models; the tokenizer has 151,669 tokens).
        hidden_size: width of the residual stream.
        intermediate_size: width of a dense MLP.
        num_hidden_layers: depth.
        num_attention_heads: query heads.
        num_key_value_heads: key/value heads (GQA).
        head_dim: size of one head; set by itself, not hidden_size / num_attention_heads.
        hidden_act: only "silu" (SwiGLU).
        max_position_embeddings: longest sequence the model claims to handle, in tokens.
        initializer_range: standard deviation of initial weights.
        rms_norm_eps: added to the mean square in every RMSNorm.
        tie_word_embeddings: the output projection is the embedding, transposed.
        rope_theta: RoPE base.
        rope_scaling: YaRN, or None.
        dual_chunk_attention_config: Dual Chunk Attention for texts longer than one chunk, or None.
        attention_bias: biases on the q, k, v and o projections.
        num_experts: experts in an MoE layer; 0 for a dense model.
        num_experts_per_tok: experts that each token is sent to.
        moe_intermediate_size: width of one expert.
        norm_topk_prob: the chosen experts' probabilities are rescaled to sum to 1.
        decoder_sparse_step: layer i is MoE where (i + 1) is divisible by this ...
        mlp_only_layers: ... and i is not listed here.
        router_aux_loss_coef: weight of the load-balancing loss in training.
        bos_token_id: as in the file.
        eos_token_id: as in the file; generation uses generation_config.json first.
        dtype: the data type in which the checkpoint is stored; None where the file has no such field.
    """

    vocab_size: int = 151_936
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: int = 40_960
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling | None = None
    dual_chunk_attention_config: DualChunk | None = None
    attention_bias: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    router_aux_loss_coef: float = 0.001
    bos_token_id: int | None = 151_643
    eos_token_id: int | tuple[int, ...] | None = 151_645
    dtype: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # YAML and JSON have no tuples; a config must be hashable
                object.__setattr__(self, field.name, tuple(value))
        check_bounds(vars(self), "config field ", num_experts=whole(0), **dict.fromkeys(_POSITIVE, whole(1)))
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"config field 'num_attention_heads' ({self.num_attention_heads}) must be a multiple of "
                f"'num_key_value_heads' ({self.num_key_value_heads})."
            )
        if self.head_dim % 2:
            raise UserError(f"config field 'head_dim' must be even for RoPE, got {self.head_dim}.")
        if self.hidden_act != "silu":
            raise UserError(
                f"config field 'hidden_act' is {self.hidden_act!r}; Qwen3 uses 'silu' and only that is built."
            )
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise UserError(
                f"config field 'num_experts_per_tok' ({self.num_experts_per_tok}) must lie between 1 and "
                f"'num_experts' ({self.num_experts})."
            )
        for layer in self.mlp_only_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise UserError(
                    f"config field 'mlp_only_layers' names layer {layer}; there are {self.num_hidden_layers}."
                )

    @property
    def moe_layers(self) -> int:
        """Number of layers with experts; 0 in a dense model."""
        return sum(map(self.is_moe_layer, range(self.num_hidden_layers)))

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the layer with this index (from 0) holds experts (HF Qwen3MoeDecoderLayer)."""
        return (
            self.num_experts > 0 and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple, empty where the config has none."""
        return as_ids(self.eos_token_id)

    @classmethod
    def preset(cls, name: str) -> "Qwen3Config":
        """Return a released model's architecture: "Qwen3-8B", "qwen3-30b-a3b-base", "Qwen/Qwen3-4B-Thinking-2507"..."""
        key = name.rsplit("/", 1)[-1].lower()
        if key not in _PRESETS_BY_KEY:
            raise UserError(
                f"there is no preset {name!r}.{nearest(key, list(_PRESETS_BY_KEY))} Presets: {', '.join(PRESETS)}."
            )
        return PRESETS[_PRESETS_BY_KEY[key]]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "Qwen3Config":
        """Build from fields by name, as a YAML file has them; a value of the wrong type is refused by name."""
        values = dict(values)
        scaling = values.get("rope_scaling")
        if isinstance(scaling, Mapping):
            _, values["rope_scaling"] = read_rope({"rope_scaling": dict(scaling)})
        values["dual_chunk_attention_config"] = read_dual_chunk(values)
        check_types(cls, values, source="model config")
        return cls(**values)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen3Config":
        """Build from the contents of a `config.json`.

        Raises:
            UserError: another architecture, an unsupported value, or a field of the wrong type, by name.
        """
        raw = dict(raw)
        model_type = raw.pop("model_type", None)
        if model_type not in ("qwen3", "qwen3_moe"):
            raise UserError(
                f"config field 'model_type' is {model_type!r}; only 'qwen3' and 'qwen3_moe' are this architecture "
                "(Qwen2, Qwen3-Next, Qwen3-VL and Qwen3.5 are others)."
            )
        is_moe = model_type == "qwen3_moe"
        architectures = raw.pop("architectures", None) or []
        architectures = [architectures] if isinstance(architectures, str) else architectures
        family = "Qwen3Moe" if is_moe else "Qwen3"
        class_names = [family + name for name in ("ForCausalLM", "Model", "ForSequenceClassification")]
        for architecture in architectures:
            if architecture not in class_names:
                raise UserError(f"config field 'architectures' names {architecture!r}; this loads {class_names[0]}.")

        # What HF's Qwen3Config / Qwen3MoeConfig assume for a field that the file leaves out.
        values: dict[str, Any] = dict(_HF_MOE_DEFAULTS if is_moe else _HF_DENSE_DEFAULTS)
        experts = raw.pop("num_local_experts", None)
        if raw.get("num_experts") is None and experts is not None:
            raw["num_experts"] = experts
        older = raw.pop("torch_dtype", None)
        dtype = raw.pop("dtype", None) or older
        values["dtype"] = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
        values["rope_theta"], values["rope_scaling"] = read_rope(raw)
        values["dual_chunk_attention_config"] = read_dual_chunk(raw)
        _refuse_unsupported(raw, is_moe)

        fields = {field.name for field in dataclasses.fields(cls)}
        ignored = []
        for name, value in raw.items():
            if name in fields:
                if value is not None or name in _NULLABLE:  # elsewhere null is what the file leaves out
                    values[name] = value
            elif name not in _HARMLESS:
                ignored.append(name)
        if ignored:
            warnings.warn(
                f"config.json fields {sorted(ignored)} are not Qwen3's and have no effect here.",
                UserWarning,
                stacklevel=2,
            )
        for name in ("num_key_value_heads", "mlp_only_layers"):
            if values.get(name) is None:
                values[name] = values["num_attention_heads"] if name == "num_key_value_heads" else ()
        if values.get("head_dim") is None:  # Qwen3MoeConfig has no head_dim of its own
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        if not is_moe:
            values["num_experts"] = 0
        if values.get("hidden_act") == "swish":
            values["hidden_act"] = "silu"
        check_types(cls, values)
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """Return the contents of a `config.json` in the hub's spelling, which transformers 4 and 5 both read."""
        moe = self.num_experts > 0
        out: dict[str, Any] = {
            "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
            "model_type": "qwen3_moe" if moe else "qwen3",
            "attention_dropout": 0.0,
            "sliding_window": None,
            "use_cache": True,
            "use_sliding_window": False,
        }
        for field in dataclasses.fields(self):
            if field.name in _MOE_ONLY and not moe:
                continue
            out[field.name] = getattr(self, field.name)
        out["torch_dtype"] = out.pop("dtype")
        if self.rope_scaling is not None:
            scaling = dataclasses.asdict(self.rope_scaling)
            unset = dataclasses.asdict(RopeScaling())
            out["rope_scaling"] = {k: v for k, v in scaling.items() if k == "rope_type" or v != unset[k]}
        if self.dual_chunk_attention_config is not None:
            out["dual_chunk_attention_config"] = dataclasses.asdict(self.dual_chunk_attention_config)
        else:
            del out["dual_chunk_attention_config"]
        if not moe:
            out["max_window_layers"] = self.num_hidden_layers
        for name in ("mlp_only_layers", "eos_token_id"):
            if isinstance(out.get(name), tuple):
                out[name] = list(out[name])
        return dict(sorted(out.items()))


def _refuse_unsupported(raw: dict[str, Any], is_moe: bool) -> None:
    """Take out of `raw` the fields that have one supported value, and refuse every other value by name."""
    # As in HF, which slides the layers from max_window_layers on unless layer_types says otherwise; all layers of an MoE.
    slides, window = raw.pop("use_sliding_window", None), raw.pop("sliding_window", 4096)
    first, types = raw.pop("max_window_layers", None), raw.pop("layer_types", None)
    odd = set(types or ()) - {"full_attention"}
    if odd:
        raise UserError(f"config field 'layer_types' has {sorted(odd)}; only 'full_attention' is built.")
    first, layers = (
        value if isinstance(value, int) else missing
        for value, missing in ((first, 28), (raw.get("num_hidden_layers"), 32))
    )
    if slides and window is not None and (is_moe or not (types or first >= layers)):
        raise UserError("config field 'use_sliding_window' is true; no released Qwen3 uses it and it is not built.")
    if raw.pop("attention_dropout", None):
        warnings.warn(
            "config field 'attention_dropout' has no effect: nothing is dropped here.", UserWarning, stacklevel=3
        )
    if raw.pop("quantization_config", None) is not None:
        raise UserError(
            "config field 'quantization_config' is set, which says how the weights are stored and not what the model is; "
            "`qwen3_jax.load` reads such a folder, and `qwen3 convert --to hf` unpacks it."
        )


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "moe_intermediate_size",
    "decoder_sparse_step",
)
_MOE_ONLY = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "router_aux_loss_coef",
)
_NULLABLE = ("bos_token_id", "eos_token_id", "num_key_value_heads", "head_dim")
# Read by other programs or derived; none changes what the decoder computes.
_HARMLESS = frozenset(
    {"transformers_version", "use_cache", "output_router_logits", "pad_token_id", "_name_or_path", "name_or_path"}
    | {"is_encoder_decoder", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"}
    | {"id2label", "label2id", "problem_type", "auto_map", "tokenizer_class", "unsloth_version", "unsloth_fixed"}
)
_HF_DENSE_DEFAULTS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_HF_MOE_DEFAULTS = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": None,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _build_presets() -> dict[str, Qwen3Config]:
    """The report's tables 1 and 2, with the values that differ between releases (from each config.json)."""
    sizes: dict[str, dict[str, Any]] = {
        "0.6B": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16),
        "1.7B": dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
        "4B": dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32),
        "8B": dict(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32),
        "14B": dict(hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40),
        "32B": dict(hidden_size=5120, intermediate_size=25_600, num_hidden_layers=64, num_attention_heads=64),
        "30B-A3B": dict(
            hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
            num_key_value_heads=4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        ),
        "235B-A22B": dict(
            hidden_size=4096, intermediate_size=12_288, num_hidden_layers=94, num_attention_heads=64,
            num_key_value_heads=4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536,
        ),
    }  # fmt: skip
    theta_2507 = {"4B": 5_000_000.0, "30B-A3B": 10_000_000.0, "235B-A22B": 5_000_000.0}
    presets = {}
    for size, values in sizes.items():
        chat = Qwen3Config(**values, tie_word_embeddings=size in ("0.6B", "1.7B", "4B"), dtype="bfloat16")
        presets[f"Qwen3-{size}"] = chat
        if size not in ("32B", "235B-A22B"):  # their Base models were not released
            presets[f"Qwen3-{size}-Base"] = dataclasses.replace(
                chat, max_position_embeddings=32_768, eos_token_id=151_643
            )
        if size in theta_2507:
            for mode in ("Instruct", "Thinking"):
                presets[f"Qwen3-{size}-{mode}-2507"] = dataclasses.replace(
                    chat, max_position_embeddings=262_144, rope_theta=theta_2507[size]
                )
    return presets


PRESETS: dict[str, Qwen3Config] = _build_presets()
_PRESETS_BY_KEY = {name.lower(): name for name in PRESETS}
