"""Load a checkpoint in any of the forms that are read.

>>> model, tokenizer = qwen3_jax.load("Qwen/Qwen3-0.6B", dtype="bfloat16")
>>> model, tokenizer = qwen3_jax.load("DIR", mesh=sharding.make_mesh(tensor=4))
>>> model, tokenizer = qwen3_jax.load("Qwen/Qwen3-8B", dtype="bfloat16", quantize="int8")
>>> model, tokenizer = qwen3_jax.load("Qwen/Qwen3-8B-AWQ")      # also FP8, GPTQ, int8 and GGUF
>>> model, tokenizer = qwen3_jax.load("Qwen/Qwen3-8B", adapter="ADAPTER")      # a LoRA adapter of PEFT
>>> model, tokenizer = qwen3_jax.load("Qwen/Qwen3-8B", adapter={"french": "DIR", "poet": "DIR"})     # chosen by each request
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from qwen3_jax.checkpoint.adapters.folders import adapter_folder, attached, base_and_adapter, warn_of_tokenizer
from qwen3_jax.checkpoint.adapters.several import with_adapters
from qwen3_jax.checkpoint.hf_load import load_model
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.small_files import load_tokenizer
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution, WeightType, check_weight_type, prefers_unrolled_decoding
from qwen3_jax.model import Qwen3
from qwen3_jax.text import Tokenizer
from sharding import SERVING, Placement

Adapters = str | Path | Mapping[str, str | Path]  # one, or several by name


def load(
    path_or_repo_id: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    scan_layers: bool | None = None,
    quantize: WeightType | None = None,
    adapter: Adapters | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    verify: bool = True,
) -> tuple[Qwen3, Tokenizer]:
    """Load a Qwen3 checkpoint for inference.

    Args:
        path_or_repo_id: a folder in Hugging Face's format, a repository on the hub ("Qwen/Qwen3-0.6B") or on ModelScope
            ("modelscope:Qwen/Qwen3-0.6B"), a GGUF file, or a folder that `qwen3 convert --to orbax` wrote, or a LoRA adapter's
            folder, which names its base model. Quantised checkpoints (FP8, AWQ, GPTQ, int8, GGUF) are unpacked to `dtype`,
            tensor by tensor.
        dtype: storage and compute type, "float32", "bfloat16" or "float16"; None is the checkpoint's own.
        mesh: devices to spread the model over (`sharding.make_mesh`); None is one device.
        scan_layers: stack equal layers; None is what decodes fastest on this platform.
        quantize: keep the matrices in 8 or 4 bits ("int8", "fp8", "int4"; `kernels.quantized` says how), which are used in
            `dtype`; the model can then not be trained or saved.
        adapter: a LoRA adapter in PEFT's format, a folder or hub repository: added to the weights, or kept beside quantised
            ones. Several by name ({"french": "DIR"}) are kept side by side, and each request names one or none.
        hf_overrides: fields of config.json to replace, as `max_position_embeddings`, `rope_scaling` and
            `dual_chunk_attention_config` for longer contexts.
        revision: branch, tag or commit on the hub.
        verify: compare the files with `checksums.sha256` where the folder has one (`qwen3_jax.save` writes it).

    Returns:
        The model, and its tokenizer; None in the tokenizer's place when the folder has no tokenizer files.

    Raises:
        UserError: names the missing, damaged, duplicate, misshapen or unknown tensor, file or field.
        ShardingError: a dimension does not divide over the mesh.
    """
    check_weight_type(quantize)
    placement = Placement(mesh, SERVING)
    folder, own = base_and_adapter(resolve(path_or_repo_id, revision=revision))
    if own is not None and adapter:
        given = f"the adapter {adapter}" if isinstance(adapter, (str, Path)) else "these adapters"
        raise UserError(f"{own} is an adapter already; load its base model with {given}, or merge it first.")
    options: dict[str, Any] = dict(
        dtype=dtype,
        param_dtype=dtype,
        execution=Execution(placement),
        scan_layers=not prefers_unrolled_decoding(placement) if scan_layers is None else scan_layers,
        verify=verify,
    )
    tokenizer = (load_tokenizer(own) if own is not None else None) or load_tokenizer(folder)
    model = _read(folder, quantize, hf_overrides, options)
    if own is not None:
        model = attached(model, own, merge=quantize is None)
    elif adapter is not None:
        model = _with_additions(model, adapter, quantize is None, folder, tokenizer)
    _check_vocabulary(folder, model, tokenizer)
    return model, tokenizer  # type: ignore[return-value]


def _read(
    folder: Path, quantize: WeightType | None, hf_overrides: Mapping[str, Any] | None, options: dict[str, Any]
) -> Qwen3:
    from qwen3_jax.checkpoint.native import is_native, load_native  # imports Orbax, which takes a second

    if not is_native(folder):
        return load_model(folder, quantize=quantize, hf_overrides=hf_overrides, **options)
    if quantize is None and not hf_overrides:
        return load_native(folder, **options)[0]
    name = "hf_overrides" if quantize is None else f"quantize={quantize!r}"
    raise UserError(
        f"{name} is for Hugging Face folders and GGUF files; {folder} is an Orbax folder: convert it with "
        "`qwen3 convert --to hf` first."
    )


def _with_additions(model: Qwen3, adapter: Adapters, merge: bool, base: Path, tokenizer: Tokenizer | None) -> Qwen3:
    """Return the model with one adapter, or with several side by side."""
    if isinstance(adapter, Mapping):
        model, paths = with_adapters(model, adapter), list(adapter.values())
    else:
        model, paths = attached(model, adapter_folder(adapter), merge), [adapter]
    for path in paths:
        warn_of_tokenizer(adapter_folder(path), base, tokenizer)
    return model


def _check_vocabulary(folder: Path, model: Qwen3, tokenizer: Tokenizer | None) -> None:
    """Refuse a tokenizer that has more tokens than the embedding has rows."""
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but config field 'vocab_size' gives the embedding "
            f"{model.config.vocab_size} rows."
        )
