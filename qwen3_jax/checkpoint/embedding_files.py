"""sentence-transformers' files of an embedding model: how the states of a text's tokens become its embedding.

    modules.json                          Transformer, Pooling and perhaps Normalize, in this order
    1_Pooling/config.json                 the pooling; `pooling_mode`, or before its version 6 one `pooling_mode_*` for each
    config_sentence_transformers.json     prompts
    sentence_bert_config.json             max_seq_length

A folder whose modules.json has no Pooling (a cross-encoder, as rerankers are) makes no embeddings. Source: version 6.2 of
sentence-transformers, base/model.py and sentence_transformer/modules/pooling.py.
"""

import json
from pathlib import Path
from typing import Any

from qwen3_jax.embedding_config import POOLING_MODES, EmbeddingConfig
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.text_files import read_text

MODULES, PROMPTS, LIMITS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
_KINDS = ("Transformer", "Pooling", "Normalize")
_PACKAGE = "sentence_transformers."
# The older spelling of each pooling mode, which every version reads.
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# Fields of LIMITS that change embeddings and are not implemented, and the values at which they change nothing.
_REFUSED = {
    "do_lower_case": (False, None),
    "transformer_task": ("feature-extraction", None),
    "query_length": (None,),
    "document_length": (None,),
}


def read_embedding_config(folder: Path, width: int) -> EmbeddingConfig | None:
    """Return how a checkpoint folder makes embeddings; None where no modules.json says so.

    Args:
        folder: the checkpoint.
        width: of its hidden states.

    Raises:
        UserError: names the file, and the module, the field or the value that is damaged or not implemented.
    """
    if not (folder / MODULES).exists():
        return None
    paths = _modules(folder)
    prompts = read_json(folder / PROMPTS) if (folder / PROMPTS).exists() else {}
    kind = prompts.get("model_type") or "SentenceTransformer"
    if kind == "CrossEncoder" or "Pooling" not in paths:
        return None
    if kind != "SentenceTransformer":
        raise _refusal(folder / PROMPTS, f"field 'model_type' is {kind!r}; only 'SentenceTransformer' is implemented")
    pooling = folder / paths["Pooling"] / "config.json"
    fields = read_json(pooling)
    size = fields.get("embedding_dimension", fields.get("word_embedding_dimension"))
    if size != width:
        raise _refusal(pooling, f"gives the states {size!r} numbers, and config.json {width}")
    texts = prompts.get("prompts") or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str | None) for text in texts.values()):
        raise _refusal(folder / PROMPTS, "field 'prompts' must map names to texts")
    named = tuple((name, text) for name, text in texts.items() if text is not None)
    default = prompts.get("default_prompt_name")
    if default is not None and default not in dict(named):
        raise _refusal(folder / PROMPTS, f"field 'default_prompt_name' is {default!r}; it must be among its prompts")
    return EmbeddingConfig(
        pooling=_pooling(pooling, fields),
        include_prompt=bool(fields.get("include_prompt", True)),
        normalize="Normalize" in paths,
        prompts=named,
        default_prompt_name=default,
        max_seq_length=_limit(folder / paths["Transformer"] / LIMITS),
    )


def write_embedding_files(config: EmbeddingConfig, folder: Path, width: int) -> None:
    """Write the files that `read_embedding_config` and every version of sentence-transformers read; arguments as there."""
    kinds = _KINDS if config.normalize else _KINDS[:2]
    paths = ["", *(f"{place}_{kind}" for place, kind in enumerate(kinds) if place)]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _write(folder / MODULES, modules)
    for path in paths[1:]:
        (folder / path).mkdir()
    ordered = tuple(mode for mode in POOLING_MODES if mode in config.pooling) == config.pooling
    if ordered:
        pooling: dict[str, Any] = {"word_embedding_dimension": width}
        pooling |= {flag: mode in config.pooling for mode, flag in _FLAGS.items()}
    else:  # which only the newer spelling can say
        pooling = {"embedding_dimension": width, "pooling_mode": list(config.pooling)}
    _write(folder / paths[1] / "config.json", pooling | {"include_prompt": config.include_prompt})
    default = {"default_prompt_name": config.default_prompt_name, "similarity_fn_name": "cosine"}
    _write(folder / PROMPTS, {"prompts": dict(config.prompts)} | default)
    if config.max_seq_length is not None:
        _write(folder / LIMITS, {"max_seq_length": config.max_seq_length, "do_lower_case": False})


def _modules(folder: Path) -> dict[str, str]:
    """Return the folder of each module by its kind, after checking them; of others than embedding models whatever they have."""
    file = folder / MODULES
    text = read_text(file)
    try:
        named = [(str(one["type"]), str(one["path"])) for one in json.loads(text)]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise _refusal(file, "is no list of modules with 'type' and 'path'") from None
    kinds = [name.rpartition(".")[2] for name, _ in named]
    if "Pooling" not in kinds:
        return dict(zip(kinds, (path for _, path in named), strict=True))
    for kind, (name, path) in zip(kinds, named, strict=True):
        if kind not in _KINDS or not name.startswith(_PACKAGE):
            advice = f"remove {MODULES} to load the decoder alone"
            raise _refusal(
                file, f"has the module {name!r} ({path or 'in the folder itself'}), which is not implemented; {advice}"
            )
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise _refusal(file, f"has the path {path!r}, which leads out of the folder")
    if kinds not in (list(_KINDS), list(_KINDS[:2])) or named[0][1] not in ("", "."):
        order = "Transformer, Pooling and perhaps Normalize, the first in the folder itself"
        raise _refusal(file, f"has the modules {', '.join(kinds)}; only {order}, are implemented in this order")
    return dict(zip(kinds, (path for _, path in named), strict=True))


def _pooling(file: Path, fields: dict[str, Any]) -> tuple[Any, ...]:
    """Return the pooling modes, of either spelling; the newer one goes first, as there."""
    if "pooling_mode" in fields:
        given = fields["pooling_mode"]
        modes = tuple(given) if isinstance(given, list) else (given,)
    else:
        modes = tuple(mode for mode, flag in _FLAGS.items() if fields.get(flag)) or ("mean",)
    unknown = next((mode for mode in modes if mode not in POOLING_MODES), None)
    if unknown is not None or not modes:
        raise _refusal(file, f"field 'pooling_mode' has {unknown!r}; it must be among {', '.join(POOLING_MODES)}")
    return modes


def _limit(file: Path) -> int | None:
    """Return the most tokens of a text."""
    fields = read_json(file) if file.exists() else {}
    for name, harmless in _REFUSED.items():
        if fields.get(name) not in harmless:
            raise _refusal(file, f"field {name!r} is {fields[name]!r}, which is not implemented")
    limit = fields.get("max_seq_length")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise _refusal(file, f"field 'max_seq_length' is {limit!r}; it must be a whole number above 0")
    return limit


def _refusal(file: Path, problem: str) -> UserError:
    return UserError(f"{file} {problem}.")


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
