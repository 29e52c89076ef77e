r"""Qwen's byte-level BPE: its bytes, its pre-tokenisation and its added tokens.

Every token is a string of bytes. The vocabulary files spell a byte as one visible character (GPT-2's table: printable
Latin-1 bytes stand for themselves, the other 68 are U+0100 and up), so a space is `Ġ` and a newline is `Ċ`.

Source: transformers' models/qwen2/tokenization_qwen2.py and the tokenizer_config.json of Qwen/Qwen3-8B.
"""

from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

# Contractions; a word with at most one leading mark; single digits; runs of marks; line breaks; spaces.
PRETOKENIZE_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

ENDOFTEXT: Final = "<|endoftext|>"
IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
THINK_START: Final = "<think>"
THINK_END: Final = "</think>"
TOOL_CALL_START: Final = "<tool_call>"
TOOL_CALL_END: Final = "</tool_call>"

# (text, special) in id order, right after the BPE ranks. Special ones disappear under skip_special_tokens.
QWEN3_ADDED_TOKENS: Final[tuple[tuple[str, bool], ...]] = (
    (ENDOFTEXT, True),
    (IM_START, True),
    (IM_END, True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    (TOOL_CALL_START, False),
    (TOOL_CALL_END, False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    (THINK_START, False),
    (THINK_END, False),
)


def _byte_characters() -> tuple[str, ...]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in visible else chr(next(rest)) for byte in range(256))


BYTE_CHARACTERS: Final = _byte_characters()  # byte -> the character that vocabulary files spell it with
CHARACTER_BYTES: Final = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def token_to_bytes(token: str) -> bytes:
    """The bytes that a token's spelling stands for, by the rule of `tokenizers`' byte-level decoder.

    A token with any character outside the byte alphabet (an added token with a space in it, say) is its own UTF-8.
    """
    try:
        return bytes([CHARACTER_BYTES[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


def qwen_backend(model: BPE) -> Tokenizer:
    """A `tokenizers` pipeline with Qwen's normaliser, pre-tokeniser and decoder around `model`; no added tokens."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def added_token(content: str, special: bool) -> AddedToken:
    """An added token as Qwen declares all of its own: matched as it is written, before NFC."""
    return AddedToken(content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=special)


def qwen3_config(backend: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json of a tokenizer with Qwen3's added tokens, field for field Qwen/Qwen3-8B's."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for index, token in sorted(backend.get_added_tokens_decoder().items())
        },
        "additional_special_tokens": [text for text, special in QWEN3_ADDED_TOKENS if special and text != ENDOFTEXT],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": ENDOFTEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
