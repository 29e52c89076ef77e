"""GGUF files (llama.cpp's format) of Qwen3 and Qwen3-MoE, through the package gguf: names, metadata and block formulas.

    model, tokenizer = qwen3_jax.load("Qwen3-8B-Q4_K_M.gguf", dtype="bfloat16")

The key table's `gguf` column names the tensors, whose shapes are HF's (the file lists them backwards); the experts of a layer
lie in one tensor. Every block type that the package unpacks is read: F32, F16, BF16, Q8_0, Q4_K, Q5_K, Q6_K and others.

Sources: ggml's docs/gguf.md; llama.cpp's gguf-py/gguf/constants.py and src/models/qwen3*.cpp, which rescales the chosen
experts' probabilities (`norm_topk_prob`) whatever the file says.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.formats.unpacked import PIECE
from qwen3_jax.checkpoint.safetensors import refuse_pointer
from qwen3_jax.checkpoint.source import Entry
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.position_config import RopeScaling

_ARCHITECTURES = {"qwen3": False, "qwen3moe": True}  # general.architecture -> is MoE
# The type in which a model is used when the user names none, by the type of its matrices; bfloat16 for packed ones.
_OWN_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
STOPS = ("<|im_end|>", "<|endoftext|>")  # llama.cpp ends an answer at either, whatever eos_token_id says


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: its block type (a `gguf.GGMLQuantizationType`), HF's shape, bytes of a row, first byte."""

    kind: Any
    shape: tuple[int, ...]
    row_bytes: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors: metadata by key, and the tensors by name."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Header:
    """Read a file's header.

    Raises:
        UserError: gguf is not installed, the file is damaged or one of several parts, or a block type is not unpacked.
    """
    state = path.stat()
    return _read_header(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=2)  # the tokenizer and the weights are read after each other
def _read_header(path: Path, _changed: int, size: int) -> Header:
    gguf = _gguf()
    refuse_pointer(path)
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {}
        for stored in reader.tensors:
            shape = tuple(int(n) for n in reversed(stored.shape.tolist()))
            block, block_bytes = gguf.GGML_QUANT_SIZES[stored.tensor_type]
            row_bytes = shape[-1] // block * block_bytes
            tensors[stored.name] = Tensor(stored.tensor_type, shape, row_bytes, int(stored.data_offset))
        swapped = reader.byte_order != "I"
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a complete GGUF file ({' '.join(str(error).split())}); copy it again."
        ) from None
    if swapped:
        raise UserError(f"{path} is a GGUF file of the other byte order; convert it with gguf_convert_endian.py.")
    if (fields.get("split.count") or 1) > 1:
        raise UserError(
            f"{path} is one of {fields['split.count']} parts; join them first: llama-gguf-split --merge FIRST WHOLE."
        )
    for name, tensor in tensors.items():
        if tensor.offset + tensor.row_bytes * math.prod(tensor.shape[:-1]) > size:
            raise UserError(f"{path} ends before its tensor {name!r} does; copy it again.")
    for kind in {tensor.kind for tensor in tensors.values()}:
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            name = next(name for name, tensor in tensors.items() if tensor.kind == kind)
            raise UserError(
                f"tensor {name!r} in {path} has the type {kind.name}, which the package gguf does not unpack; take another "
                "quantisation of the model, such as Q8_0 or Q4_K_M."
            ) from None
    return Header(fields, tensors)


def _gguf() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise UserError("GGUF files need the package gguf: pip install 'qwen3-jax[gguf]'.") from error
    return gguf


class GgufFile:
    """The tensors of a file by HF's names; a `TensorSource`.

    Attributes:
        config: the architecture, from the metadata.
        generation: stop tokens, and sampling defaults where the file has them.

    Raises:
        UserError: names the metadata or tensor that is missing, misshapen, or of another architecture.
    """

    def __init__(self, path: Path):
        self.folder = path
        self.header = read_header(path)
        self.config = _config(path, self.header)
        self.generation = _generation(self.header.fields)
        self._places: dict[str, tuple[str, int | None]] = {}  # HF's name -> the file's name and the expert
        self.entries: dict[str, Entry] = {}
        for key in keys.MODEL_KEYS:
            self._add(key, "", "")
        for layer in range(self.config.num_hidden_layers):
            rows = keys.MOE_KEYS if self.config.is_moe_layer(layer) else keys.DENSE_KEYS
            for key in keys.BLOCK_KEYS + rows:
                self._add(key, f"blk.{layer}.", f"model.layers.{layer}.")
        mapped = {name for name, _ in self._places.values()}
        for name in set(self.header.tensors) - mapped - {"rope_freqs.weight"}:
            self.entries[name] = Entry(path, self.header.tensors[name].shape, "float32")  # refused as no parameter

    def _add(self, key: keys.ParameterKey, prefix: str, hf_prefix: str) -> None:
        name = prefix + key.gguf
        tensor = self.header.tensors.get(name)
        if tensor is None:
            return  # whether it may be missing is the loader's to say
        if "{expert}" not in key.hf:
            self._places[hf_prefix + key.hf] = name, None
            self.entries[hf_prefix + key.hf] = Entry(self.folder, tensor.shape, "float32")
            return
        if len(tensor.shape) != 3 or tensor.shape[0] != self.config.num_experts:
            raise UserError(
                f"tensor {name!r} in {self.folder} has shape {list(tensor.shape)}; {self.config.num_experts} experts are meant."
            )
        for expert in range(tensor.shape[0]):
            hf = hf_prefix + key.hf.format(expert=expert)
            self._places[hf] = name, expert
            self.entries[hf] = Entry(self.folder, tensor.shape[1:], "float32")

    @contextmanager
    def open(self) -> Iterator["_Reader"]:
        """Yield a reader; the file is read and not mapped, whose pages would count as this process's memory."""
        with open(self.folder, "rb") as handle:
            yield _Reader(self, handle)

    def place(self, name: str) -> tuple[Tensor, int]:
        """Return the tensor that holds HF's `name`, and the first byte of its rows."""
        own, expert = self._places[name]
        tensor = self.header.tensors[own]
        return tensor, tensor.offset + (expert or 0) * math.prod(tensor.shape[1:-1]) * tensor.row_bytes


class _Reader:
    def __init__(self, file: GgufFile, handle: BinaryIO):
        self._file, self._handle, self._gguf = file, handle, _gguf()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return one part of a tensor, float32."""
        tensor, offset = self._file.place(name)
        rows, columns = index if len(index) == 2 else (slice(0, 1), index[0])
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        step = max(1, PIECE // tensor.shape[-1])
        for start in range(rows.start, rows.stop, step):
            count = min(step, rows.stop - start)
            self._handle.seek(offset + start * tensor.row_bytes)
            packed = np.fromfile(self._handle, np.uint8, count * tensor.row_bytes)
            if packed.size != count * tensor.row_bytes:
                raise UserError(
                    f"tensor {name!r} could not be read from {self._file.folder} (the file ends before it)."
                )
            piece = self._gguf.quants.dequantize(packed.reshape(count, tensor.row_bytes), tensor.kind)
            out[start - rows.start :][:count] = piece[:, columns]
        return out if len(index) == 2 else out[0]


def _config(path: Path, header: Header) -> Qwen3Config:
    fields = header.fields
    name = fields.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture is {name!r}; only {' and '.join(map(repr, _ARCHITECTURES))} are this architecture."
        )

    def get(key: str, default: Any = None) -> Any:
        value = fields.get(f"{name}.{key}", default)
        if value is None or (isinstance(value, (list, str)) and not isinstance(default, str)):
            raise UserError(f"{path}: the metadata {name}.{key} is {value!r}; expected one number.")
        return value

    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"tensor 'token_embd.weight' is missing from {path}.")
    hidden, heads = get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", hidden // heads)
    if get("attention.value_length", head_dim) != head_dim:
        raise UserError(f"{path}: {name}.attention.value_length differs from key_length, which no Qwen3 has.")
    moe: dict[str, Any] = {}
    if _ARCHITECTURES[name]:
        first = header.tensors.get("blk.0.ffn_gate_exps.weight")
        width = get("expert_feed_forward_length", None if first is None else first.shape[1])
        moe = dict(
            num_experts=get("expert_count"),
            num_experts_per_tok=get("expert_used_count"),
            moe_intermediate_size=width,
            norm_topk_prob=True,
        )
    matrix = header.tensors.get("blk.0.attn_q.weight", embedding).kind.name
    return Qwen3Config(
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length", moe.get("moe_intermediate_size")),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
        tie_word_embeddings="output.weight" not in header.tensors,
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        rope_scaling=_scaling(path, name, fields),
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        dtype=_OWN_TYPES.get(matrix, "bfloat16"),
        **moe,
    )


def _scaling(path: Path, name: str, fields: dict[str, Any]) -> RopeScaling | None:
    kind = fields.get(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise UserError(f"{path}: {name}.rope.scaling.type is {kind!r}; only 'none' and 'yarn' are built.")
    return RopeScaling(
        factor=float(fields[f"{name}.rope.scaling.factor"]) if f"{name}.rope.scaling.factor" in fields else None,
        original_max_position_embeddings=fields.get(f"{name}.rope.scaling.original_context_length"),
    )


def _generation(fields: dict[str, Any]) -> GenerationConfig:
    tokens = fields.get("tokenizer.ggml.tokens") or []
    stops = [tokens.index(text) for text in STOPS if text in tokens]
    eos = fields.get("tokenizer.ggml.eos_token_id")
    ids = ([] if eos is None else [eos]) + [stop for stop in stops if stop != eos]
    names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    sampling = {
        ours: fields[f"general.sampling.{own}"] for own, ours in names.items() if f"general.sampling.{own}" in fields
    }
    return GenerationConfig(eos_token_id=tuple(ids), do_sample=bool(sampling), **sampling)
