"""Train a byte-level BPE tokenizer with Qwen3's pre-tokenisation and Qwen3's 26 added tokens.

    tokenizer = train_tokenizer(texts, vocab_size=4096)
    tokenizer.save_pretrained("tokenizer/")
    train_from_files(["corpus/**/*.txt", "chats.jsonl"], vocab_size=32_000, output="tokenizer/")

The same texts give the same tokenizer, in any order.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from qwen3_jax.text_files import EncodingError, check_encoding, is_unicode

from .byte_level import BYTE_CHARACTERS, QWEN3_ADDED_TOKENS, added_token, qwen3_config, qwen_backend
from .errors import TokenizerError
from .tokenizer import Tokenizer

SMALLEST_VOCABULARY = len(BYTE_CHARACTERS) + len(QWEN3_ADDED_TOKENS)
_CHUNK = 1 << 20  # characters of a file handed to the trainer at once


def train_tokenizer(texts: Iterable[str], vocab_size: int, show_progress: bool = False) -> Tokenizer:
    """Train on `texts`. vocab_size counts everything: 256 bytes, the merges, then the added tokens.

    eos is <|im_end|>, pad is <|endoftext|>, there is no bos, and the chat template is the built-in one.
    Raises TokenizerError if vocab_size has no room for the bytes and added tokens, or if the texts are too few to
    fill it: a vocabulary smaller than asked for would not fit the model that is configured for it.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(QWEN3_ADDED_TOKENS)} added tokens "
            f"need {SMALLEST_VOCABULARY}"
        )
    backend = qwen_backend(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(QWEN3_ADDED_TOKENS),
        initial_alphabet=list(BYTE_CHARACTERS),
        special_tokens=[],
        show_progress=show_progress,
    )
    backend.train_from_iterator(iter(texts), trainer)
    backend.add_tokens([added_token(text, special) for text, special in QWEN3_ADDED_TOKENS])
    if backend.get_vocab_size() < vocab_size:
        raise TokenizerError(
            f"the texts give only {backend.get_vocab_size()} tokens, fewer than the vocab_size {vocab_size}: "
            "give more text or ask for fewer tokens"
        )
    return Tokenizer(backend, qwen3_config(backend), templates={})


def train_from_files(
    paths: Sequence[str | os.PathLike[str]],
    vocab_size: int,
    output: str | os.PathLike[str],
    show_progress: bool = True,
) -> Tokenizer:
    """Train on files and save the tokenizer to the folder `output`.

    paths: files or globs ("**" for any depth). A .jsonl file gives the "text" of each line; any other file is UTF-8
    text. Raises TokenizerError naming the path that matches nothing, or the file (and line) that cannot be read.
    """
    files = expand_paths(paths)
    tokenizer = train_tokenizer(read_texts(files), vocab_size, show_progress)
    tokenizer.save_pretrained(output)
    return tokenizer


def expand_paths(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that paths and globs name, each once, sorted."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    files: set[Path] = set()
    for path in [os.fspath(path) for path in paths]:
        matches = [Path(path)] if Path(path).is_file() else [Path(p) for p in glob.glob(path, recursive=True)]
        matches = [match for match in matches if match.is_file()]
        if not matches:
            raise TokenizerError(f"no file matches {path}")
        files.update(matches)
    if not files:
        raise TokenizerError("no files to train a tokenizer on")
    return sorted(files)


def read_texts(files: Iterable[Path]) -> Iterator[str]:
    """The texts of files in pieces that fit memory, cut only at line ends."""
    for path in files:
        try:
            with path.open("rb") as stream:
                check_encoding(stream.read(64), str(path))
            with path.open(encoding="utf-8-sig", newline="") as lines:
                yield from _jsonl_texts(path, lines) if path.suffix == ".jsonl" else _chunks(lines)
        except EncodingError as error:
            raise TokenizerError(str(error)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read {path} as UTF-8 text: {error}") from error


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _jsonl_texts(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise TokenizerError(f"{path}, line {number} is not a JSON object with a string under 'text'")
        if not is_unicode(text):
            raise TokenizerError(
                f"{path}, line {number} has a lone surrogate (\\ud800 to \\udfff), which is not Unicode text"
            )
        yield text
