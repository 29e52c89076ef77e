"""Write a model as a quantised Hugging Face folder, in forms that other programs read as well.

| `to`   | form                                                     | whose                            |
|--------|----------------------------------------------------------|----------------------------------|
| `int8` | compressed-tensors `int-quantized`, one scale per row    | vLLM's llm-compressor            |
| `fp8`  | e4m3 in blocks of 128 x 128                              | Qwen's own FP8 releases          |
| `int4` | AWQ gemm in symmetric groups (every zero is 8)           | AutoAWQ; Qwen's own AWQ releases |

Attention projections, dense MLPs and experts are quantised by rounding to nearest, with no calibration; embeddings, the
output projection, the router, norms and biases stay, as in Qwen's releases.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from qwen3_jax.checkpoint import keys
from qwen3_jax.checkpoint.formats.fp8 import BLOCK, pack_fp8
from qwen3_jax.checkpoint.formats.int4 import pack_awq
from qwen3_jax.checkpoint.formats.int8 import pack_int8
from qwen3_jax.checkpoint.hf_save import write_folder
from qwen3_jax.checkpoint.slot_load import weight_type
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import WeightType
from qwen3_jax.model import Qwen3
from qwen3_jax.text import Tokenizer

GROUP = 128


def save_quantized(
    model: Qwen3,
    tokenizer: Tokenizer | None,
    path: str | os.PathLike,
    to: WeightType,
    *,
    group_size: int = GROUP,
    overwrite: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> Path:
    """Write a quantised folder; `qwen3_jax.load` reads it back.

    Args:
        model: an unquantised model, on one device or any mesh.
        tokenizer: None leaves the tokenizer files out.
        path: the folder to make; it appears whole or not at all.
        to: see the table above.
        group_size: inputs that share a scale, for int4.
        overwrite: replace a folder that exists.
        progress: called with the number of numbers of each matrix that has been packed.

    Returns:
        The folder.

    Raises:
        UserError: the target exists or cannot be written, the model is quantised already, or a matrix does not divide into
            groups and words, by name.
    """
    slots = keys.slots(nnx.state(model), model.config, model.scan_layers)
    chosen, left = set(), ["lm_head"]
    for slot in slots:
        names = [name for layer in range(len(slot.prefixes)) for name in slot.names(layer)]
        if slot.key.ours == "mlp.router":
            left += [name.removesuffix(".weight") for name in names]
        elif slot.key not in keys.MODEL_KEYS and weight_type(slot, model.config, to):
            chosen.update(names)
            if to == "int4":
                _check_divides(names[0], slot.hf_shape(), group_size)

    def encode(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
        if name not in chosen:
            return {name: array}
        stem = name.removesuffix("weight")
        weight = np.asarray(array, np.float32)
        progress(weight.size)
        packed = (
            pack_int8(weight) if to == "int8" else pack_fp8(weight) if to == "fp8" else pack_awq(weight, group_size)
        )
        return {stem + part: value for part, value in packed.items()}

    options: dict[str, Any] = dict(
        overwrite=overwrite, encode=encode, quantization=_quantization_config(to, left, group_size)
    )
    return write_folder(model, tokenizer, path, model.param_dtype, **options)


def _check_divides(name: str, shape: tuple[int, ...], group_size: int) -> None:
    out, size = shape
    if group_size < 1 or size % group_size:
        raise UserError(
            f"groups of {group_size} do not divide the {size} inputs of {name!r}; choose another group size."
        )
    if out % 8:
        raise UserError(f"{name!r} has {out} outputs, which AWQ cannot pack by eights; choose 'int8' or 'fp8'.")


def _quantization_config(to: WeightType, left: list[str], group_size: int) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    if to == "fp8":
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": left,
        }
    if to == "int4":
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": group_size,
            "zero_point": True,
            "modules_to_not_convert": left,
        }
    shared = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": left,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**shared, "strategy": "channel", "dynamic": False},
                # How vLLM multiplies with such weights; they are the same without it.
                "input_activations": {**shared, "strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
    }
