"""A tokenizer's folder on disk: reading it with every damage named, and writing it so that transformers reads it back.

Read: tokenizer.json, or else vocab.json + merges.txt; tokenizer_config.json; chat_template.jinja and
additional_chat_templates/*.jinja, or else `chat_template` in tokenizer_config.json, or else in chat_template.json
(processors write it); special_tokens_map.json and added_tokens.json (transformers 4). Written: tokenizer.json,
tokenizer_config.json, chat_template.jinja and additional_chat_templates/ (transformers 5's layout).
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE

from qwen3_jax.paths import replace_file, visible_files
from qwen3_jax.text_files import EncodingError, decode, lines

from .byte_level import BYTE_CHARACTERS, qwen_backend
from .errors import TokenizerError

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
PROCESSOR_TEMPLATE = "chat_template.json"
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder holds: the tokenisation itself, tokenizer_config.json less its templates, templates by name."""

    backend: Tokenizer
    config: dict[str, Any]
    templates: dict[str, str]


def read_folder(folder: Path) -> TokenizerFiles:
    """Read a tokenizer folder. Raises TokenizerError naming the file that is missing, damaged or contradictory."""
    if not folder.is_dir():
        raise TokenizerError(f"there is no tokenizer folder {folder}")
    config = _read_object(folder / "tokenizer_config.json")
    tokens_map = folder / "special_tokens_map.json"
    if tokens_map.exists():
        config = {**_read_object(tokens_map), **config}
    added = _declared_tokens(folder, config)
    if (folder / "tokenizer.json").exists():
        backend = _read_backend(folder / "tokenizer.json")
    elif (folder / "vocab.json").exists() or (folder / "merges.txt").exists():
        backend = _read_vocabulary(folder, added)
    else:
        raise TokenizerError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt")
    _register(backend, added, folder)
    templates = _read_templates(folder, config)
    return TokenizerFiles(backend, {k: v for k, v in config.items() if k != "chat_template"}, templates)


def write_folder(folder: Path, files: TokenizerFiles) -> None:
    """Write a tokenizer folder, creating it; each file appears whole or not at all."""
    if folder.exists() and not folder.is_dir():
        raise TokenizerError(f"cannot save a tokenizer to {folder}: it is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(files.config)
    config.setdefault("tokenizer_class", "Qwen2Tokenizer")
    replace_file(folder / "tokenizer.json", files.backend.to_str(pretty=True) + "\n")
    for name, template in files.templates.items():
        path = folder / TEMPLATE_FILE if name == "default" else folder / TEMPLATE_FOLDER / f"{name}.jinja"
        if path.name != TEMPLATE_FILE and path.resolve().parent != (folder / TEMPLATE_FOLDER).resolve():
            raise TokenizerError(f"{name!r} cannot be the file name of a chat template")
        path.parent.mkdir(exist_ok=True)
        replace_file(path, template)
    replace_file(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def named_token(config: dict[str, Any], key: str) -> str | None:
    """The text of `eos_token` and the like: a string, an AddedToken written as an object, or None."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"tokenizer_config.json: {key} must be a string, an object with content, or null")
    return value


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise TokenizerError(f"the tokenizer file {path} is missing")
    try:
        return decode(path.read_bytes(), str(path))
    except EncodingError as error:
        raise TokenizerError(str(error)) from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


@contextlib.contextmanager
def _named(path: Path):
    """Turn what the Rust library raises (bare Exceptions, and panics, which are BaseExceptions) into a named error."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{path} is damaged: {error}") from None


def _read_backend(path: Path) -> Tokenizer:
    text = _read_text(path)
    with _named(path):
        backend = Tokenizer.from_str(text)
    if not isinstance(backend.model, BPE) or not isinstance(backend.decoder, decoders.ByteLevel):
        raise TokenizerError(f"{path} is not a byte-level BPE tokenizer, which Qwen3's is")
    _check_bytes(backend, path)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_vocabulary(folder: Path, added: dict[int, AddedToken]) -> Tokenizer:
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocab = _read_object(vocab_path)
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines(_read_text(merges_path)), 1):
        if (number == 1 and line.startswith("#version")) or not line.strip():
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(f"{merges_path}, line {number} is not two tokens: {line!r}")
        merges.append((left, right))
    if not added:
        raise TokenizerError(
            f"{folder} has vocab.json and merges.txt, but neither added_tokens_decoder in tokenizer_config.json nor "
            "added_tokens.json says which tokens were added"
        )
    contents = {token.content for token in added.values()}
    ranks = sum(token not in contents for token in vocab)
    if ranks != len(merges) + len(BYTE_CHARACTERS):  # every rank is a byte or the outcome of one merge
        raise TokenizerError(
            f"{merges_path} holds {len(merges)} merges but {vocab_path.name} needs {ranks - len(BYTE_CHARACTERS)}: "
            "one of them is incomplete"
        )
    with _named(vocab_path):
        backend = qwen_backend(BPE(vocab, merges))
    _check_bytes(backend, vocab_path)
    return backend


def _check_bytes(backend: Tokenizer, path: Path) -> None:
    """Without all 256 bytes some text would vanish silently in encode."""
    missing = [byte for byte, text in enumerate(BYTE_CHARACTERS) if backend.model.token_to_id(text) is None]
    if missing:
        raise TokenizerError(f"{path} has no token for byte 0x{missing[0]:02X}, so it cannot spell every text")


def _declared_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """id -> added token, as tokenizer_config.json declares them, or else added_tokens.json."""
    field = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    declared = config.get("added_tokens_decoder")
    if declared is not None:
        try:
            return {
                int(index): AddedToken(**{name: value for name, value in token.items() if name != "__type"})
                for index, token in declared.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise TokenizerError(f"{field} must map ids to added tokens: {error}") from None
    path = folder / "added_tokens.json"
    if not path.exists():
        return {}
    special = {named_token(config, key) for key in NAMED_TOKENS}
    special |= {t for t in config.get("additional_special_tokens") or () if isinstance(t, str)}
    tokens = _read_object(path)
    wrong = next((text for text, index in tokens.items() if not isinstance(index, int)), None)
    if wrong is not None:
        raise TokenizerError(f"{path}: the id of {wrong!r} is not an integer")
    return {index: AddedToken(text, normalized=False, special=text in special) for text, index in tokens.items()}


def _register(backend: Tokenizer, added: dict[int, AddedToken], folder: Path) -> None:
    """Add the declared tokens that the backend does not have yet, and hold every declared id against it."""
    registered = backend.get_added_tokens_decoder()
    for index, token in added.items():
        taken = backend.id_to_token(index)
        if taken is not None and taken != token.content:
            raise TokenizerError(
                f"{folder} gives the added token {token.content!r} the id of {taken!r}, {index}; tokenizer.json and "
                "tokenizer_config.json disagree"
            )
    backend.add_tokens([token for index, token in sorted(added.items()) if index not in registered])
    for index, token in added.items():
        actual = backend.token_to_id(token.content)
        if actual != index:
            raise TokenizerError(
                f"{folder} gives the added token {token.content!r} the id {index}, but the vocabulary of tokenizer.json has it "
                f"at {actual}"
            )


def _read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; files go before tokenizer_config.json, as in transformers. Blank ones do not count."""
    templates = {path.stem: _read_text(path) for path in visible_files(folder / TEMPLATE_FOLDER, "*.jinja")}
    field = str(folder)
    if (folder / TEMPLATE_FILE).exists():
        templates["default"] = _read_text(folder / TEMPLATE_FILE)
    if not templates:
        field = f"{folder / 'tokenizer_config.json'}: chat_template"
        value = config.get("chat_template")
        if not value and (folder / PROCESSOR_TEMPLATE).exists():
            field = f"{folder / PROCESSOR_TEMPLATE}: chat_template"
            value = _read_object(folder / PROCESSOR_TEMPLATE).get("chat_template")
        if isinstance(value, str):
            templates = {"default": value}
        elif isinstance(value, dict):
            templates = dict(value)
        elif isinstance(value, list):
            try:
                templates = {entry["name"]: entry["template"] for entry in value}
            except (TypeError, KeyError):
                raise TokenizerError(f"{field} must be a list of objects with name and template") from None
        elif value is not None:
            raise TokenizerError(f"{field} must be a string or a list of named templates")
    if not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise TokenizerError(f"{field} has a name or template that is not a string")
    templates = {name: text for name, text in templates.items() if text.strip()}
    if templates and "default" not in templates:
        raise TokenizerError(f"{field} has the chat templates {sorted(templates)} but none named 'default'")
    return templates
