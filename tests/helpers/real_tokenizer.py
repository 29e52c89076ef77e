"""The real Qwen3 tokenizer folder, built with no network from two installed packages.

    from tests.helpers.real_tokenizer import build_real_tokenizer
    folder = build_real_tokenizer(tmp_path)          # tokenizer.json, tokenizer_config.json, chat_template.jinja

`qwen-agent` ships the 151,643 byte-pair ranks (qwen_agent/utils/qwen.tiktoken); `trl` ships the official chat
templates. The ranks hold no merge list, so each token's merge is found again by running BPE with only the ranks below
its own: what is left when that stops are the two halves that the token was merged from.
"""

import base64
import importlib.util
import json
import os
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

FOLDER_VERSION = 2  # raise it when the folder's contents change, so that cached copies are rebuilt
QWEN3_VOCAB_SIZE = 151_669

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end")]
_CONTROL += [f"<|{name}|>" for name in ("box_start", "box_end", "quad_start", "quad_end", "vision_start", "vision_end")]
_CONTROL += [f"<|{name}_pad|>" for name in ("vision", "image", "video")]
_MARKUP = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
_MARKUP += ["<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def package_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"the tests need the package {package}"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], *parts)


def official_template(name: str = "qwen3") -> str:
    """An official chat template as trl ships it: "qwen3" or "qwen3_instruct_2507"."""
    return package_file("trl", "chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


def build_real_tokenizer(folder: Path) -> Path:
    """Write the folder unless a complete one is already there; the version stamp is written last."""
    stamp = folder / f"complete-{FOLDER_VERSION}"
    if stamp.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = package_file("qwen_agent", "utils", "qwen.tiktoken").read_bytes().split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    characters = _byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges = [tuple(map(text, _halves(token, rank, ranks))) for token, rank in ranks.items() if len(token) > 1]
    backend = Tokenizer(BPE({text(token): rank for token, rank in ranks.items()}, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    added = [AddedToken(t, normalized=False, special=True) for t in _CONTROL]
    added += [AddedToken(t, normalized=False, special=False) for t in _MARKUP]
    backend.add_tokens(added)
    assert backend.get_vocab_size() == QWEN3_VOCAB_SIZE
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token.special,
            }
            for index, token in sorted(backend.get_added_tokens_decoder().items())
        },
        "additional_special_tokens": _CONTROL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write(folder / "tokenizer.json", backend.to_str())
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2))
    _write(folder / "chat_template.jinja", official_template())
    _write(stamp, "")
    return folder


def _write(path: Path, text: str) -> None:
    """Through a name of this process's own: two test runs may build the folder at the same time."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _byte_characters() -> list[str]:
    """GPT-2's visible character for each byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(rest)) for byte in range(256)]


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that `token` was merged from."""
    splits = [
        (token[:i], token[i:])
        for i in range(1, len(token))
        if ranks.get(token[:i], rank) < rank and ranks.get(token[i:], rank) < rank
    ]
    if len(splits) == 1:
        return splits[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
        assert ranks.get(parts[i] + parts[i + 1], rank) < rank, token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]
