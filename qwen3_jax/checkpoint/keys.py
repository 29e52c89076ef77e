"""The one table between Hugging Face's tensor names and this model's parameters, read in both directions.

A row says how one parameter is stored: our dimensions by letter, and HF's as groups of the same letters. `"dnh"` against
`"nh,d"` is our [D, N, H] query projection and HF's [(N H), D] `q_proj.weight`. Everything about reading, slicing and
writing follows from the row; an HF tensor that no row names, or a row that no tensor fills, is an error.

The same rows give the names of a GGUF file (llama.cpp's), whose tensors have HF's shapes, the experts of a layer in one.

Letters: l layers of a stack, v vocabulary, d hidden, n query heads, k key/value heads, h head size, f MLP width, e experts,
s scores of a reward model.
"""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import is_adapter, layer_groups

Path = tuple[Any, ...]  # as nnx.to_flat_state spells it


@dataclass(frozen=True)
class ParameterKey:
    """One parameter of a block (or of the model, outside the blocks).

    Attributes:
        ours: dotted path below the block.
        hf: name below `model.layers.N.`; `{expert}` stands for the expert's index.
        dims: our dimensions.
        hf_dims: HF's dimensions of one tensor, comma-separated groups of letters.
        fused: transformers 5's in-memory name, whose tensor holds all experts; "" where there is none.
        fused_part: this parameter's half of the fused tensor's f dimension (gate 0, up 1), or None for all of it.
        gguf: name in a GGUF file, below `blk.N.` for a block.
    """

    ours: str
    hf: str
    dims: str
    hf_dims: str
    fused: str = ""
    fused_part: int | None = None
    gguf: str = ""

    @property
    def summed(self) -> str:
        """The letters that a product with this weight sums over (HF's columns); "" for what is no matrix."""
        return self.hf_dims.partition(",")[2]


MODEL_KEYS = (
    ParameterKey("embed", "model.embed_tokens.weight", "vd", "v,d", gguf="token_embd.weight"),
    ParameterKey("norm.scale", "model.norm.weight", "d", "d", gguf="output_norm.weight"),
    ParameterKey("lm_head", "lm_head.weight", "dv", "v,d", gguf="output.weight"),
    ParameterKey("score", "score.weight", "ds", "s,d"),
)
BLOCK_KEYS = (
    ParameterKey("attention_norm.scale", "input_layernorm.weight", "d", "d", gguf="attn_norm.weight"),
    ParameterKey("attention.q", "self_attn.q_proj.weight", "dnh", "nh,d", gguf="attn_q.weight"),
    ParameterKey("attention.k", "self_attn.k_proj.weight", "dkh", "kh,d", gguf="attn_k.weight"),
    ParameterKey("attention.v", "self_attn.v_proj.weight", "dkh", "kh,d", gguf="attn_v.weight"),
    ParameterKey("attention.o", "self_attn.o_proj.weight", "nhd", "d,nh", gguf="attn_output.weight"),
    ParameterKey("attention.q_bias", "self_attn.q_proj.bias", "nh", "nh", gguf="attn_q.bias"),
    ParameterKey("attention.k_bias", "self_attn.k_proj.bias", "kh", "kh", gguf="attn_k.bias"),
    ParameterKey("attention.v_bias", "self_attn.v_proj.bias", "kh", "kh", gguf="attn_v.bias"),
    ParameterKey("attention.o_bias", "self_attn.o_proj.bias", "d", "d", gguf="attn_output.bias"),
    ParameterKey("attention.q_norm.scale", "self_attn.q_norm.weight", "h", "h", gguf="attn_q_norm.weight"),
    ParameterKey("attention.k_norm.scale", "self_attn.k_norm.weight", "h", "h", gguf="attn_k_norm.weight"),
    ParameterKey("mlp_norm.scale", "post_attention_layernorm.weight", "d", "d", gguf="ffn_norm.weight"),
)
DENSE_KEYS = (
    ParameterKey("mlp.gate", "mlp.gate_proj.weight", "df", "f,d", gguf="ffn_gate.weight"),
    ParameterKey("mlp.up", "mlp.up_proj.weight", "df", "f,d", gguf="ffn_up.weight"),
    ParameterKey("mlp.down", "mlp.down_proj.weight", "fd", "d,f", gguf="ffn_down.weight"),
)
MOE_KEYS = (
    ParameterKey("mlp.router", "mlp.gate.weight", "de", "e,d", gguf="ffn_gate_inp.weight"),
    ParameterKey(
        "mlp.gate",
        "mlp.experts.{expert}.gate_proj.weight",
        "edf",
        "f,d",
        "mlp.experts.gate_up_proj",
        0,
        gguf="ffn_gate_exps.weight",
    ),
    ParameterKey(
        "mlp.up",
        "mlp.experts.{expert}.up_proj.weight",
        "edf",
        "f,d",
        "mlp.experts.gate_up_proj",
        1,
        gguf="ffn_up_exps.weight",
    ),
    ParameterKey(
        "mlp.down",
        "mlp.experts.{expert}.down_proj.weight",
        "efd",
        "d,f",
        "mlp.experts.down_proj",
        gguf="ffn_down_exps.weight",
    ),
)


@dataclass(frozen=True)
class Slot:
    """A parameter of one model and the HF tensors that hold it.

    Attributes:
        path: where it sits in the model's state.
        shape, axes: its shape and logical axes, without the leading "layers" of a stack.
        stacked: whether the parameter leads with a layers axis.
        key: its row of the key table.
        prefixes: for each layer of the stack (one entry when there is none), the HF name's prefix.
    """

    path: Path
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stacked: bool
    key: ParameterKey
    prefixes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each letter in `key.dims`."""
        return dict(zip(self.key.dims, self.shape, strict=True))

    @property
    def per_expert(self) -> bool:
        """Whether HF stores one tensor per expert."""
        return "{expert}" in self.key.hf

    def hf_shape(self) -> tuple[int, ...]:
        """Shape of each HF tensor."""
        return tuple(_product(self.sizes, group) for group in self.key.hf_dims.split(","))

    def names(self, layer: int) -> list[str]:
        """HF names of the tensors that make up this parameter in one layer of the stack."""
        name = self.prefixes[layer] + self.key.hf
        return [name.format(expert=e) for e in range(self.sizes["e"])] if self.per_expert else [name]


def slots(model_state: nnx.State, config: Qwen3Config, scan_layers: bool) -> list[Slot]:
    """Return a slot for every parameter of a model's (abstract or real) state, adapters left out.

    Raises:
        KeyError: a parameter that no row of the table names: a bug in the table, not in a checkpoint.
    """
    groups = layer_groups(config, scan_layers)
    slots_of_model = []
    for path, variable in nnx.to_flat_state(model_state):
        if is_adapter(path):  # stored in files of their own
            continue
        shape, axes = tuple(variable.get_value().shape), tuple(variable.get_metadata()["logical_axes"])
        if path[0] == "groups":
            moe, layers = groups[int(str(path[1]))]
            rows = BLOCK_KEYS + (MOE_KEYS if moe else DENSE_KEYS)
            prefixes = tuple(f"model.layers.{layer}." for layer in layers)
            key = _find(rows, ".".join(map(str, path[2:])))
            stacked = scan_layers
        else:
            key, prefixes, stacked = _find(MODEL_KEYS, ".".join(map(str, path))), ("",), False
        lead = int(stacked)
        slots_of_model.append(Slot(path, shape[lead:], axes[lead:], stacked, key, prefixes))
    return slots_of_model


def from_hf(raw: jax.Array, key: ParameterKey, sizes: dict[str, int]) -> jax.Array:
    """Turn an HF tensor (or a stack of them over experts) into our layout; `sizes` are the piece's own."""
    groups = _groups(key)
    split = raw.reshape([sizes[letter] for letter in groups])
    return split.transpose([groups.index(letter) for letter in key.dims])


def to_hf(value: jax.Array, key: ParameterKey) -> jax.Array:
    """Turn one layer's parameter into HF's layout, with the experts leading where there is one tensor per expert."""
    sizes = dict(zip(key.dims, value.shape, strict=True))
    flat = value.transpose([key.dims.index(letter) for letter in _groups(key)])
    lead = (sizes["e"],) if "{expert}" in key.hf else ()
    return flat.reshape(*lead, *(_product(sizes, group) for group in key.hf_dims.split(",")))


def hf_index(key: ParameterKey, sizes: dict[str, int], index: dict[str, slice]) -> tuple[slice, ...]:
    """Return the part of an HF tensor that holds the given part of our parameter (one slice per letter).

    Only the first letter of a group may be cut: heads are split between devices, the size of a head never is.
    """
    out = []
    for group in key.hf_dims.split(","):
        rest = _product(sizes, group[1:])
        part = index[group[0]]
        out.append(slice(part.start * rest, part.stop * rest))
        for letter in group[1:]:
            if (index[letter].start, index[letter].stop) != (0, sizes[letter]):
                raise ValueError(f"{key.ours}: the dimension {letter!r} cannot be split between devices.")
    return tuple(out)


def _groups(key: ParameterKey) -> list[str]:
    letters = list(key.hf_dims.replace(",", ""))
    return ["e", *letters] if "{expert}" in key.hf else letters


def _product(sizes: dict[str, int], letters: str) -> int:
    out = 1
    for letter in letters:
        out *= sizes[letter]
    return out


def _find(rows: tuple[ParameterKey, ...], ours: str) -> ParameterKey:
    for key in rows:
        if key.ours == ours:
            return key
    raise KeyError(f"the key table has no row for the parameter {ours!r}")
