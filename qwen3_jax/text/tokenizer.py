"""Qwen3's tokenizer: text to ids and back, and conversations to prompts.

    tokenizer = Tokenizer.from_pretrained("Qwen3-0.6B/")
    ids = tokenizer.encode("Hello")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], enable_thinking=False)

Every special id is looked up in the vocabulary by the token's text: no id is hard-coded.
"""

import functools
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from qwen3_jax.paths import as_path

from . import byte_level, chat, quoting
from .detokenize import Detokenizer
from .errors import ChatTemplateError, TokenizerError
from .folder import NAMED_TOKENS, TokenizerFiles, named_token, read_folder, write_folder

_ID_LIMIT = 1 << 32  # what the Rust library can take


class Tokenizer:
    """A byte-level BPE tokenizer with a chat template. Immutable; can be pickled into worker processes.

    Args:
        backend: the `tokenizers` pipeline.
        config: tokenizer_config.json, unknown fields included.
        templates: chat templates by name ("default", and perhaps "tool_use"); empty means the built-in one.

    Raises:
        TokenizerError: config names a token that the vocabulary lacks.
    """

    def __init__(self, backend: Backend, config: Mapping[str, Any], templates: Mapping[str, str]) -> None:
        self._backend = backend
        self._config = dict(config)
        self._templates = dict(templates)
        self._named = {key: text for key in NAMED_TOKENS if (text := named_token(self._config, key)) is not None}
        for key, text in self._named.items():
            if backend.token_to_id(text) is None:
                raise TokenizerError(f"tokenizer_config.json names {text!r} as {key}, but the vocabulary lacks it")
        self._special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self._token_bytes: dict[int, bytes] = {}
        self._added = tuple(token.content for token in backend.get_added_tokens_decoder().values())
        # The same model without added tokens: the only way to read "<think>" as five characters of plain text.
        self._plain = Backend(backend.model)
        self._plain.normalizer = backend.normalizer
        self._plain.pre_tokenizer = backend.pre_tokenizer

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Load a local folder: tokenizer.json (or vocab.json + merges.txt), tokenizer_config.json, chat template.

        Raises:
            TokenizerError: names the file or field that is missing, damaged or contradictory.
        """
        files = read_folder(as_path(path))
        return cls(files.backend, files.config, files.templates)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, which transformers reads too.

        Unknown fields of tokenizer_config.json are written as they were read.
        """
        templates = self._templates or {"default": chat.built_in_template()}
        write_folder(as_path(path), TokenizerFiles(self._backend, self._config, templates))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. The text of an added token (`<|im_end|>`) becomes that token; no token is added.

        Raises:
            TokenizerError: `text` is not a string, or has a lone surrogate.
        """
        return self.encode_batch([text])[0]

    def encode_whole(self, text: str, max_length: int | None = None) -> list[int]:
        """Return the ids of a text that stands alone, as transformers' tokenizers do when they are called.

        Those are the ids of `encode` and the tokens that the post-processor of tokenizer.json adds: Qwen3-Embedding's ends a
        text with `<|endoftext|>`, Qwen3's adds none.

        Args:
            text: the text.
            max_length: most ids; the text's last ones are cut off, the added ones are kept. None for no limit.

        Raises:
            TokenizerError: `text` is not a string, or has a lone surrogate; no id of the text has room.
        """
        encoding = _encodings(self._backend, [text])[0]
        if max_length is not None:
            room = max_length - self._backend.num_special_tokens_to_add(False)
            if room < 1:
                raise TokenizerError(
                    f"max_length {max_length} leaves no room beside the tokens that the tokenizer adds"
                )
            encoding.truncate(room)
        return self._backend.post_process(encoding).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Encode each text, in parallel over the machine's cores."""
        return _encode(self._backend, texts)

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text` without added tokens: `<|im_end|>` is read as plain characters.

        For untrusted text, which must not contain turn boundaries.
        """
        return _encode(self._plain, [text])[0]

    def quoted(self, text: str) -> str:
        """Return a text with its special tokens marked, for `encode_quoted`, which then reads them as plain characters."""
        return quoting.quote(text, self.special_tokens)

    def encode_quoted(self, text: str) -> list[int]:
        """Return the ids of a text in which special tokens are marked (`apply_chat_template`): they are plain characters."""
        pieces = quoting.split(text, self._added)
        return [i for piece, plain in pieces for i in (self.encode_ordinary(piece) if plain else self.encode(piece))]

    @functools.cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the special tokens, `<|im_end|>` and the like; `<think>` and `<tool_call>` are not special in Qwen3."""
        every = self._backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in every if token.special and token.content)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The texts of all tokens that are no byte pairs: the special ones, `<think>`, `<tool_response>` and the like."""
        return tuple(text for text in self._added if text)

    def offsets(self, text: str) -> list[int]:
        """Return for each token of `encode(text)` the place in `text` of its first character.

        A token that ends a character which an earlier one has begun has that character's place.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [start for start, _ in encoding.offsets]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`; invalid UTF-8 becomes U+FFFD, ids without a token are skipped.

        Args:
            ids: token ids.
            skip_special_tokens: drop `<|im_end|>` and other special tokens; `<think>` and `<tool_call>` are not special in
                Qwen3.
        """
        numbers = [int(i) for i in ids]
        for i in (min(numbers, default=0), max(numbers, default=0)):
            _check_id(i)
        return self._backend.decode(numbers, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        """Return an incremental decoder for one token stream; its output, joined, equals that of `decode`."""
        return Detokenizer(self.bytes_of, self._special_ids if skip_special_tokens else ())

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        continue_final_message: bool = False,
        tokenize: Literal[False] = False,
        *,
        preserve_thinking: bool | None = None,
        quoted: bool | Collection[str] = False,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        continue_final_message: bool = False,
        *,
        tokenize: Literal[True],
        preserve_thinking: bool | None = None,
        quoted: bool | Collection[str] = False,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        continue_final_message: bool = False,
        tokenize: bool = False,
        *,
        preserve_thinking: bool | None = None,
        quoted: bool | Collection[str] = False,
    ) -> str | list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        continue_final_message: bool = False,
        tokenize: bool = False,
        *,
        preserve_thinking: bool | None = None,
        quoted: bool | Collection[str] = False,
    ) -> str | list[int]:
        """Return the prompt of a conversation, as text or as ids.

        Args:
            messages: {"role": "system" | "user" | "assistant" | "tool", "content": ...} in OpenAI's form; `chat.render`
                lists the accepted fields.
            tools: JSON schemas of functions.
            add_generation_prompt: open the assistant's turn at the end.
            enable_thinking: False closes the thinking in the prompt.
            continue_final_message: leave the last assistant message open instead, with its text unchanged
                (add_generation_prompt then has no effect).
            tokenize: return ids instead of text. Special tokens are the template's alone: the text `<|im_end|>` in a message or
                a tool is those characters. `encode` of the text reads all of them as tokens, as transformers does.
            preserve_thinking: keep the thinking of earlier turns; None is up to the template.
            quoted: mark the special tokens that messages and tools have in them, for `encode_quoted`; or these tokens.

        Raises:
            ChatTemplateError: a message is malformed, or the template refuses the conversation.
        """
        text = chat.render(
            self._templates.get("tool_use", self.chat_template) if tools else self.chat_template,
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            continue_final_message=continue_final_message,
            preserve_thinking=preserve_thinking,
            special_tokens=self._named,
            quoted=quoted if not isinstance(quoted, bool) else self.special_tokens if tokenize or quoted else None,
        )
        return self.encode_quoted(text) if tokenize else text

    @property
    def chat_template(self) -> str:
        """The Jinja source in use: the folder's own, or the built-in one."""
        return self._templates.get("default") or chat.built_in_template()

    @property
    def has_own_chat_template(self) -> bool:
        """Whether the template came with the tokenizer."""
        return "default" in self._templates

    @property
    def supports_thinking(self) -> bool:
        """Whether this model thinks: it has both think tokens and its template knows them (not Instruct-2507's)."""
        has_tokens = self.think_start_id is not None and self.think_end_id is not None
        return has_tokens and byte_level.THINK_START in self.chat_template

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id + 1, added tokens included (151,669 for Qwen3, whose embeddings have 151,936 rows)."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that skip_special_tokens drops."""
        return self._special_ids

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token in the vocabulary's spelling (`Ġthe`, `<think>`), or None."""
        return self._backend.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every token in the vocabulary's spelling, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the vocabulary's spelling of an id, or None if it has no token."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < _ID_LIMIT else None

    @property
    def model_max_length(self) -> int | None:
        """The most tokens of a text, as tokenizer_config.json has it; None if it has none."""
        limit = self._config.get("model_max_length")
        return int(limit) if isinstance(limit, int | float) and limit >= 1 else None

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._named_id("pad_token")

    @property
    def think_start_id(self) -> int | None:
        return self.token_to_id(byte_level.THINK_START)

    @property
    def think_end_id(self) -> int | None:
        return self.token_to_id(byte_level.THINK_END)

    @property
    def tool_call_start_id(self) -> int | None:
        return self.token_to_id(byte_level.TOOL_CALL_START)

    @property
    def tool_call_end_id(self) -> int | None:
        return self.token_to_id(byte_level.TOOL_CALL_END)

    @functools.cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """The tokens that are nothing but newlines, the shortest first."""
        newline = byte_level.BYTE_CHARACTERS[ord("\n")]
        ids = (self.token_to_id(newline * count) for count in range(1, 33))
        return tuple(i for i in ids if i is not None)

    @property
    def im_start_id(self) -> int | None:
        return self.token_to_id(byte_level.IM_START)

    @property
    def im_end_id(self) -> int | None:
        return self.token_to_id(byte_level.IM_END)

    @functools.cached_property
    def end_of_turn_id(self) -> int | None:
        """The token with which the chat template ends an answer; None if it ends one with no special token."""
        mark = "\ue000answer\ue001"  # private-use characters, which no template contains
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": mark}]
        try:
            text = self.apply_chat_template(turns, add_generation_prompt=False)
        except ChatTemplateError:  # the template wants another conversation
            return self.im_end_id if byte_level.IM_END in self.chat_template else None
        behind = self.encode(text.rpartition(mark)[2].lstrip())[:1]
        return behind[0] if behind and behind[0] in self._special_ids else None

    @property
    def endoftext_id(self) -> int | None:
        return self.token_to_id(byte_level.ENDOFTEXT)

    def to_json(self) -> str:
        """Return the `tokenizers` pipeline, as in tokenizer.json."""
        return self._backend.to_str()

    def definition(self) -> str:
        """Return everything that determines how text and messages become tokens, as one string to compare."""
        templates = {"default": self.chat_template} | self._templates  # saving writes the built-in one down
        return json.dumps([self.to_json(), sorted(templates.items())])

    def __repr__(self) -> str:
        template = "own" if self.has_own_chat_template else "built-in"
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, eos={self._named.get('eos_token')!r}, chat_template={template})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._backend, self._config, self._templates)

    def _named_id(self, key: str) -> int | None:
        return self.token_to_id(self._named[key]) if key in self._named else None

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token's text, which may be part of a UTF-8 character; empty for an id without a token."""
        text = self._token_bytes.get(token_id)
        if text is None:
            _check_id(token_id)
            token = self._backend.id_to_token(token_id)
            text = self._token_bytes[token_id] = b"" if token is None else byte_level.token_to_bytes(token)
        return text


def _check_id(token_id: int) -> None:
    if not 0 <= token_id < _ID_LIMIT:
        raise TokenizerError(f"{token_id} is not a token id: ids are from 0 to 2**32 - 1")


def _encode(backend: Backend, texts: Iterable[str]) -> list[list[int]]:
    return [encoding.ids for encoding in _encodings(backend, texts)]


def _encodings(backend: Backend, texts: Iterable[str]) -> list[Encoding]:
    texts = list(texts)
    try:
        return backend.encode_batch_fast(texts, add_special_tokens=False)
    except TypeError:  # what the library says of a wrong type and of a lone surrogate alike
        for text in texts:
            if not isinstance(text, str):
                raise TokenizerError(f"only text can be encoded, not a {type(text).__name__}") from None
            at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
            if at is not None:
                raise TokenizerError(
                    f"the text has a lone surrogate U+{ord(text[at]):04X} at character {at}, which is not Unicode text"
                ) from None
        raise
