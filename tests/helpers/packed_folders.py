"""Small checkpoints in the quantised forms that are read, with what each tensor stands for by its format's definition.

Nothing here uses the package's own packing: every form is written out in NumPy from its definition.
"""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

import qwen3_jax
from tests.helpers import tiny_models

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Parts = dict[str, np.ndarray]


def plain(folder: Path, *, moe: bool, width: int = 96, tied: bool = False) -> Path:
    """Save a random float32 model."""
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32) if moe else {}
    config = qwen3_jax.Qwen3Config(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        **experts,
    )
    return qwen3_jax.save(tiny_models.drawn(config), None, folder)


def is_matrix(name: str) -> bool:
    """Whether releases quantise this tensor."""
    return name.endswith("proj.weight")


def tensors(folder: Path) -> Parts:
    """All tensors of a folder with one file; `safetensors.numpy` reads no e4m3."""
    types = {
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "I8": "int8",
        "I32": "int32",
    }
    arrays = {}
    for name, tensor in safetensors.deserialize((folder / "model.safetensors").read_bytes()):
        dtype = np.dtype(getattr(ml_dtypes, types[tensor["dtype"]], types[tensor["dtype"]]))
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays


def rewrite(folder: Path, stored: Parts) -> None:
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "checksums.sha256").unlink(missing_ok=True)


def describe(folder: Path, **quantization) -> None:
    """Set the `quantization_config` of a folder, whatever it had."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def packed(folder: Path, form: Callable, **quantization) -> Parts:
    """Put random numbers of a form in the place of every matrix; return what all tensors stand for."""
    random = np.random.default_rng(2)
    stored, meant = {}, {}
    for name, array in tensors(folder).items():
        if not is_matrix(name):
            stored[name] = meant[name] = array
            continue
        parts, meant[name] = form(random, *array.shape)
        stored |= {name.removesuffix("weight") + part: np.ascontiguousarray(value) for part, value in parts.items()}
    rewrite(folder, stored)
    describe(folder, **quantization)
    return meant


def fp8(block: int):
    def form(random, out: int, size: int):
        numbers = np.clip(random.normal(size=(out, size)) * 100, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        scale = random.uniform(1e-4, 1e-2, (-(-out // block), -(-size // block))).astype(ml_dtypes.bfloat16)
        i, j = np.arange(out)[:, None], np.arange(size)
        meant = numbers.astype(np.float32) * scale.astype(np.float32)[i // block, j // block]
        return {"weight": numbers, "weight_scale_inv": scale}, meant

    return form


def int8(groups: int):
    def form(random, out: int, size: int):
        numbers = random.integers(-128, 128, (out, size)).astype(np.int8)
        scale = random.uniform(1e-4, 1e-2, (out, groups)).astype(np.float32)
        spread = np.concatenate([np.repeat(scale[:, g : g + 1], size // groups, axis=1) for g in range(groups)], axis=1)
        return {"weight": numbers, "weight_scale": scale}, numbers.astype(np.float32) * spread

    return form


def awq(group: int):
    def form(random, out: int, size: int):
        of = size if group == -1 else group
        q = random.integers(0, 16, (size, out))
        zero = random.integers(0, 16, (size // of, out))
        scale = random.uniform(1e-3, 1e-2, zero.shape).astype(np.float16)

        def words(numbers):
            words = np.zeros((numbers.shape[0], out // 8), np.uint32)
            for column in range(out // 8):
                for i, place in enumerate(AWQ_ORDER):
                    words[:, column] |= numbers[:, 8 * column + place].astype(np.uint32) << np.uint32(4 * i)
            return words.view(np.int32)

        meant = np.zeros((out, size), np.float32)
        for i in range(size):
            meant[:, i] = (q[i] - zero[i // of]).astype(np.float32) * scale[i // of].astype(np.float32)
        return {"qweight": words(q), "qzeros": words(zero), "scales": scale}, meant

    return form


def gptq(group: int, bits: int = 4, offset: int = 1, shuffled: bool = False, index: bool = True):
    each = 32 // bits

    def form(random, out: int, size: int):
        of = size if group == -1 else group
        q = random.integers(0, 2**bits, (size, out))
        zero = random.integers(0, 2**bits, (size // of, out))
        scale = random.uniform(1e-3, 1e-2, zero.shape).astype(np.float16)
        group_i = np.arange(size) // of
        if shuffled:
            group_i = random.permutation(group_i)
        qweight = np.zeros((size // each, out), np.uint32)
        for i in range(size):
            qweight[i // each] |= q[i].astype(np.uint32) << np.uint32(bits * (i % each))
        kept = (zero - offset) % 2**bits
        qzeros = np.zeros((zero.shape[0], out // each), np.uint32)
        for j in range(out):
            qzeros[:, j // each] |= kept[:, j].astype(np.uint32) << np.uint32(bits * (j % each))
        meant = np.zeros((out, size), np.float32)
        for i, g in enumerate(group_i):
            meant[:, i] = (q[i] - zero[g]).astype(np.float32) * scale[g].astype(np.float32)
        parts = {"qweight": qweight.view(np.int32), "qzeros": qzeros.view(np.int32), "scales": scale}
        return parts | ({"g_idx": group_i.astype(np.int32)} if index else {}), meant

    return form
