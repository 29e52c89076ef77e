"""Checkpoints in every form that `load` reads; which one is seen from config.json's `quantization_config` or the file type.

| form                | recognised by                                | module         |
|---------------------|----------------------------------------------|----------------|
| plain safetensors   | no `quantization_config`                     | `safetensors`  |
| FP8 in blocks       | `quant_method: "fp8"`                        | `formats.fp8`  |
| AWQ                 | `quant_method: "awq"`                        | `formats.int4` |
| GPTQ                | `quant_method: "gptq"`                       | `formats.int4` |
| older AWQ, GPTQ     | quant_config.json, quantize_config.json      | `formats.int4` |
| int8                | `quant_method: "compressed-tensors"`         | `formats.int8` |
| GGUF                | a file `*.gguf`, or a folder with nothing else | `formats.gguf` |

Quantised tensors are unpacked slice by slice as they are read, by their format's own formula; what reads them sees HF's names
and shapes and floats.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.checkpoint.embedding_files import read_embedding_config
from qwen3_jax.checkpoint.formats.fp8 import Fp8Blocks
from qwen3_jax.checkpoint.formats.int4 import Awq, Gptq
from qwen3_jax.checkpoint.formats.int8 import Int8
from qwen3_jax.checkpoint.formats.unpacked import Scheme, Unpacked
from qwen3_jax.checkpoint.safetensors import SafetensorsFolder
from qwen3_jax.checkpoint.source import TensorSource
from qwen3_jax.config import Qwen3Config
from qwen3_jax.embedding_config import EmbeddingConfig
from qwen3_jax.errors import UserError, warn
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.json_fields import read_config, read_json
from qwen3_jax.paths import visible_files

_SCHEMES: dict[str, type[Scheme]] = {"fp8": Fp8Blocks, "awq": Awq, "gptq": Gptq, "compressed-tensors": Int8}


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds, less the tokenizer.

    Attributes:
        config: the architecture.
        tensors: by HF's names.
        generation: sampling defaults, or None where there are none.
        embedding: how it makes embeddings, or None where no file says so.
    """

    config: Qwen3Config
    tensors: TensorSource
    generation: GenerationConfig | None
    embedding: EmbeddingConfig | None = None


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means, or None.

    Raises:
        UserError: a folder has several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if (path / "config.json").exists() or visible_files(path, "*.safetensors"):
        return None
    files = visible_files(path, "*.gguf")
    if len(files) > 1:
        raise UserError(f"{path} has {len(files)} GGUF files; name one of them, such as {files[0].name}.")
    return files[0] if files else None


SCORE = "score.weight"  # the head of transformers' classes for sequence classification
HEAD = "lm_head.weight"  # the output projection


def open_checkpoint(path: Path) -> Checkpoint:
    """Read everything but the numbers of a local checkpoint.

    Raises:
        UserError: names the file, field or tensor that is missing, damaged, or in a form that is not read.
    """
    file = gguf_file(path)
    if file is not None:
        from qwen3_jax.checkpoint.formats.gguf import GgufFile

        gguf = GgufFile(file)
        return Checkpoint(gguf.config, gguf, gguf.generation)
    raw = read_config(path)
    quantization = raw.pop("quantization_config", None) or None
    scores = "ForSequenceClassification" in str(raw.get("architectures"))
    config = Qwen3Config.from_hf(raw)
    tensors = _tensors(path, quantization)
    if scores and SCORE not in tensors.entries:
        raise UserError(
            f"{path}: config.json names a class ForSequenceClassification, whose {SCORE} no file holds; a model of the "
            "vocabulary has ForCausalLM there."
        )
    generation = path / "generation_config.json"
    sampling = GenerationConfig.from_hf(read_json(generation)) if generation.exists() else None
    return Checkpoint(config, tensors, sampling, None if scores else read_embedding_config(path, config.hidden_size))


def _tensors(path: Path, quantization: Any) -> TensorSource:
    """The tensors of a folder, unpacked where its `quantization_config` says how."""
    older = None if quantization is not None else _older_settings(path)
    known = isinstance(quantization, dict) and quantization.get("quant_method") in _SCHEMES
    if not known:
        try:
            plain = SafetensorsFolder(path)
        except UserError:
            if quantization is None and older is None:
                raise
        else:
            if quantization is not None:
                # A note for loaders that quantise, kept by a model that was merged or unpacked.
                warn(f"{path}: 'quantization_config' of config.json has no effect, because no tensor is quantised.")
            return plain
    how = scheme(quantization or older)
    return Unpacked(SafetensorsFolder(path, packed=True), how)


def _older_settings(path: Path) -> dict[str, Any] | None:
    """What AutoGPTQ and AutoAWQ wrote into a file of its own before transformers read it from config.json."""
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (path / name).exists():
            settings = {"quant_method": method} | read_json(path / name)
            return settings if "q_group_size" not in settings else {"group_size": settings["q_group_size"]} | settings
    return None


def scheme(quantization: Any) -> Scheme:
    """Return how to unpack the tensors that a `quantization_config` describes.

    Raises:
        UserError: a method or setting that is not read, by name.
    """
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method not in _SCHEMES:
        mlx = " (as in folders that mlx-lm quantised)" if method is None and "bits" in (quantization or {}) else ""
        raise UserError(
            f"config field 'quantization_config.quant_method' is {method!r}{mlx}; the methods that are read are "
            f"{sorted(_SCHEMES)} and GGUF files. Load the unquantised checkpoint, with quantize= where memory is short."
        )
    return _SCHEMES[method].from_config(quantization)
