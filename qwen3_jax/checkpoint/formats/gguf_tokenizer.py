"""The tokenizer in a GGUF file's metadata, which for Qwen3 is byte-level BPE with Qwen2's pre-tokenisation.

Source: ggml's docs/gguf.md, "tokenizer.ggml.*"; llama.cpp's convert_hf_to_gguf.py (`get_vocab_base`) for the token types.
"""

from pathlib import Path
from typing import Any

from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from qwen3_jax.checkpoint.formats.gguf import read_header
from qwen3_jax.errors import UserError
from qwen3_jax.text import Tokenizer
from qwen3_jax.text.byte_level import BYTE_CHARACTERS, added_token, qwen3_config, qwen_backend

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # gguf.TokenType


def gguf_tokenizer(path: Path) -> Tokenizer | None:
    """Return the tokenizer of a GGUF file: the files beside it where there is a tokenizer.json, else the file's metadata.

    Returns:
        None where the file has no tokenizer either.

    Raises:
        UserError: the metadata is incomplete or describes another kind of tokenizer.
    """
    if (path.parent / "tokenizer.json").exists():
        return Tokenizer.from_pretrained(path.parent)
    fields = read_header(path).fields
    if "tokenizer.ggml.tokens" not in fields:
        return None
    advice = f"put the model's tokenizer.json and tokenizer_config.json into {path.parent}, which then go first."
    for key, supported in (("model", "gpt2"), ("pre", "qwen2")):
        value = fields.get(f"tokenizer.ggml.{key}")
        if value != supported:
            raise UserError(
                f"{path}: the metadata tokenizer.ggml.{key} is {value!r}, only {supported!r} is built; {advice}"
            )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type") or []
    if len(kinds) != len(tokens):
        raise UserError(
            f"{path}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens; {advice}"
        )
    added = {
        i: text for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (_CONTROL, _USER_DEFINED)
    }
    vocabulary = {
        text: i for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if i not in added and kind != _UNUSED
    }
    if not set(BYTE_CHARACTERS) <= vocabulary.keys():
        raise UserError(f"{path}: tokenizer.ggml.tokens cannot spell every byte; {advice}")
    merges = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges") or []]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"{path}: tokenizer.ggml.merges has an entry that is not two tokens; {advice}")
    try:
        backend = qwen_backend(BPE(vocabulary, merges))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise UserError(f"{path}: the tokenizer's vocabulary and merges disagree ({error}); {advice}") from None
    backend.add_tokens([added_token(text, kinds[i] == _CONTROL) for i, text in sorted(added.items())])
    for i, text in added.items():
        if backend.token_to_id(text) != i:
            raise UserError(
                f"{path}: the token {text!r} has the id {i}, which leaves a gap in the vocabulary; {advice}"
            )
    end = fields.get("tokenizer.ggml.eos_token_id", -1)
    if fields.get("tokenizer.ggml.add_eos_token") and 0 <= end < len(
        tokens
    ):  # of texts that stand alone: embedding models
        backend.post_processor = TemplateProcessing(single=f"$A {tokens[end]}", special_tokens=[(tokens[end], end)])
    return Tokenizer(backend, _config(backend, tokens, fields), _templates(fields))


def _config(backend: Any, tokens: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    config = qwen3_config(backend)
    for name, key in (("eos_token", "eos"), ("pad_token", "padding"), ("bos_token", "bos")):
        index = fields.get(f"tokenizer.ggml.{key}_token_id", -1)
        # Qwen3 puts no token before a text; files name one all the same, with add_bos_token false.
        used = key != "bos" or fields.get("tokenizer.ggml.add_bos_token")
        config[name] = tokens[index] if used and 0 <= index < len(tokens) else None
    config["add_bos_token"] = bool(fields.get("tokenizer.ggml.add_bos_token"))
    config["additional_special_tokens"] = [
        text for text in config["additional_special_tokens"] if backend.token_to_id(text) is not None
    ]
    return config


def _templates(fields: dict[str, Any]) -> dict[str, str]:
    template = fields.get("tokenizer.chat_template")
    return {"default": template} if template else {}
