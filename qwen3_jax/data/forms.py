"""The forms in which data sets write a record down, told apart by their keys and turned into one of three.

| keys                                                             | read as                                               |
|------------------------------------------------------------------|-------------------------------------------------------|
| `messages`                                                       | a conversation (OpenAI; `tools` or `functions`)       |
| `conversations`, `conversation`                                  | a conversation (ShareGPT `from`/`value`, or OpenAI's) |
| a question (below) as messages, and `completion` or an answer    | a conversation whose prompt is not learned (TRL)      |
| `messages` and `completion`                                      | a generation prompt and the text that follows it      |
| `prompt` and `completion`                                        | raw text                                              |
| `instruction` (`input`, `context`) and `output` or `response`    | one question and answer (Alpaca, Dolly)               |
| a question and an answer                                         | one question and answer                               |
| the key of text                                                  | a document                                            |

Questions are `prompt`, `query`, `question`, `problem`, `input`; answers `response`, `output`, `answer`, `solution`.
A conversation may have `system`, one question and answer also `history` and `reasoning_content`. What changes the meaning of a
record and is not read (images, weights of whole records, two forms that disagree) is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.data.messages import (
    FormError,
    Messages,
    decoded,
    read_messages,
    read_tools,
    spoken,
    text_of,
    without_fill,
)
from qwen3_jax.text import quoting
from qwen3_jax.text.messages import REASONING_FIELDS

LISTS = ("messages", "conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
QUESTIONS = ("instruction", "prompt", "query", "question", "problem", "input")
_ANSWERS = ("response", "output", "answer", "solution")
_STRONG = (*LISTS, "prompt", "completion", "instruction", "query", "response")
"""Keys that are a form of their own wherever they stand: beside another form they must say the same."""

# key -> what a record with it is, where that is not read at all
_UNREAD = {
    **{
        key: f"a preference ({key}), for method: dpo or reward_model (--pairs); here keep the better answer alone, as a message"
        for key in (
            "chosen",
            "rejected",
            "rejected_response",
            "rejected_messages",
            "preferred_output",
            "non_preferred_output",
        )
    },
    "segments": "in axolotl's form (segments); write it as 'prompt' and 'completion', whose segments have 'text' and 'loss'",
    "completions": "several answers to one prompt (completions); write one record for each that is to be learned",
    "contents": "a conversation in Gemini's form (contents, parts); write it as 'messages' with 'role' and 'content'",
    "dialog": "a conversation under 'dialog'; write it as 'messages' with 'role' and 'content'",
    "dialogue": "a conversation under 'dialogue'; write it as 'messages' with 'role' and 'content'",
    "chat": "a conversation in one text (chat); write it as 'messages' with 'role' and 'content'",
    "answers": "one with several 'answers'; write one as 'answer', or calls (xLAM) as 'tool_calls' of a message in 'messages'",
    "body": "a request of OpenAI's batch form (body); write what is in it as the record",
}
_TEXT_ONLY = "Qwen3 reads only text"
_WHOLE = "a record has no weight of its own; give the source a 'weight', or single messages a 'weight' of 0 or 1"
_KTO = "an answer that is labelled good or bad (KTO) would be learned either way; keep the good ones alone"
# Keys that change what a record means and that are not read; "" and the like are no reason to refuse.
_REFUSED = {
    "weight": _WHOLE, "weights": _WHOLE, "loss_weight": _WHOLE, "sample_weight": _WHOLE,
    **{key: f"it is {what}" for key, what in _UNREAD.items() if what.startswith("a preference")},
}  # fmt: skip
_REFUSED_IN_CHATS = _REFUSED | {
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), _TEXT_ONLY),
    **dict.fromkeys(("loss", "train", "loss_mask", "mask"), _WHOLE),
    **dict.fromkeys(("label", "kto_tag"), _KTO),
    "chat_template": "the template is the tokenizer's",
    "documents": "write them into a message", "tool_choice": "it is an option of requests",
    "function_call": "it is an option of requests", "response_format": "it is an option of requests",
    "suffix": "text that follows the answer is not read", "prefix": "write it into the prompt",
}  # fmt: skip
# Values with which such a key changes nothing.
_NO_OP: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "loss", "train"), (1, True)),
    "tool_choice": ("auto",),
    "function_call": ("auto",),
    "response_format": ({"type": "text"},),
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages through the chat template.

    Attributes:
        turns: the messages.
        tools: in OpenAI's form, or None.
        context: as many messages at the beginning are the prompt, not learned.
        completion: the text that follows the generation prompt (a string, or segments); None where the messages have it.
        thinking: the mode of the prompts: `enable_thinking` of the template; None if the record has no such key.
        quoted: special tokens in the messages and tools are marked where they are rendered (`qwen3_jax.text.quoting`).
    """

    turns: Messages
    tools: list[dict[str, Any]] | None = None
    context: int = 0
    completion: Any = None
    thinking: bool | None = None
    quoted: bool = False

    def shown(self, rendered: str) -> str:
        """A rendered text as it reads, without marks."""
        return quoting.unquote(rendered) if self.quoted else rendered


@dataclass(frozen=True, slots=True)
class Continuation:
    """Raw text, and what follows it: a string, or segments."""

    prompt: Any
    completion: Any


@dataclass(frozen=True, slots=True)
class PlainText:
    """A document."""

    text: Any


Form = Conversation | Continuation | PlainText


def read_form(body: Mapping[str, Any], text_key: str = "text") -> tuple[Form, set[str]]:
    """Return what a record says, and the keys of it that were read.

    Args:
        body: the record's JSON object; null values count as absent.
        text_key: the key of a document's text.

    Raises:
        FormError: no form that is read, a broken part, or a key that changes the meaning and is not read.
    """
    body = {key: value for key, value in body.items() if value is not None}
    keys = {key for key in LISTS if key in body}
    if keys or any(is_messages(body.get(key)) for key in (*QUESTIONS, "completion")):
        form, used = _conversation(body, keys)
    elif "completion" in body or ("prompt" in body and not any(key in body for key in _ANSWERS)):
        form, used = _continuation(body, text_key)
    elif _has_pair(body) and (text_key == "text" or text_key not in body):
        form, used = _pair(body)
    elif text_key in body:
        _refuse(body, _REFUSED)
        return PlainText(body[text_key]), {text_key}
    else:
        raise FormError(_unknown(body, text_key))
    _check_other_forms(body, form, used, text_key)
    return form, used


def is_record(body: Mapping[str, Any], text_key: str) -> bool:
    """Whether an object has the keys of a record in one of the forms, or of one that is refused by name."""
    return is_form(body, text_key) or bool(_UNREAD.keys() & body.keys())


def is_form(body: Mapping[str, Any], text_key: str) -> bool:
    """Whether an object has the keys of a record in one of the forms."""
    return bool({*LISTS, "completion", text_key} & body.keys()) or _has_pair(body)


def _conversation(body: dict[str, Any], keys: set[str]) -> tuple[Form, set[str]]:
    """`messages` and its other names, or a prompt and a completion that are messages."""
    _refuse(body, _REFUSED_IN_CHATS | dict.fromkeys((*REASONING_FIELDS, "history"), "write it into the messages"))
    if len(keys) > 1:
        raise FormError(f"the record has messages under {sorted(keys)}; keep one of them")
    key = next(iter(keys), None) or next((key for key in QUESTIONS if is_messages(body.get(key))), None)
    if key is None:
        raise FormError("'completion' is a list of messages and 'prompt' is not; write both as messages")
    prompt = key in QUESTIONS
    used = {key}
    turns = read_messages(body[key], key)
    answer, completion = None, None
    if prompt:
        answer = next((name for name in ("completion", *_ANSWERS) if name in body), None)
        if answer is None:
            raise FormError(f"{key!r} holds messages, and there is no 'completion' to learn")
    elif "completion" in body:
        answer, completion = "completion", body["completion"]
    turns = _with_system(body, turns, used)
    context = len(turns.messages) if answer else 0
    if answer:
        used.add(answer)
    if answer and prompt:
        turns, completion = _completed(turns, body[answer], answer)
    tools = _tools(body, used)
    without_fill(turns.messages, tools or [])
    if body.get("parallel_tool_calls") is False:
        for number, message in enumerate(turns.messages, 1):
            if len(message.get("tool_calls", ())) > 1:
                raise FormError(
                    f"message {number} has several tool calls, which 'parallel_tool_calls': false rules out"
                )
    used.add("parallel_tool_calls")
    return Conversation(turns, tools, context, completion, _mode(body, used)), used


def _completed(turns: Messages, value: Any, key: str) -> tuple[Messages, Any]:
    """A prompt of messages with its answer: further messages, or segments to be taken to the letter."""
    if isinstance(value, dict) and value.keys() & {"role", "from"}:
        value = [value]
    if is_messages(value):
        return turns.then(read_messages(value, key)), None
    if not isinstance(value, str):
        return turns, value
    if key == "completion":
        raise FormError(
            "'prompt' holds messages and 'completion' is a text; write it as a message of the assistant, or rename 'prompt' to "
            "'messages' to have the text learned to the letter"
        )
    return turns.then(spoken("assistant", value)), None


def _continuation(body: dict[str, Any], text_key: str) -> tuple[Form, set[str]]:
    _refuse(body, _REFUSED_IN_CHATS)
    for key in (
        "tools",
        "functions",
        "history",
        "enable_thinking",
        "chat_template_kwargs",
        *_SYSTEM,
        *REASONING_FIELDS,
    ):
        if not _empty(body.get(key)):
            raise FormError(
                f"{key!r} beside a raw 'prompt' is not read; write prompt and completion as lists of messages"
            )
    if "completion" not in body and text_key in body:
        raise FormError(f"the record has a 'prompt' without 'completion', and {text_key!r}; keep one of them")
    return Continuation(body.get("prompt"), body.get("completion")), {"prompt", "completion"}


def _has_pair(body: Mapping[str, Any]) -> bool:
    return any(key in body for key in QUESTIONS) and any(key in body for key in _ANSWERS)


def _pair(body: dict[str, Any]) -> tuple[Form, set[str]]:
    """One question and its answer, with earlier ones where the record has a history."""
    _refuse(body, _REFUSED_IN_CHATS)
    questions = [key for key in QUESTIONS if not _empty(body.get(key))]
    answers = [key for key in _ANSWERS if key in body]
    details = ["input"] if questions == ["instruction", "input"] else []
    if not _empty(body.get("context")):
        if questions[:1] != ["instruction"]:
            raise FormError("'context' beside a question is not read; write it into the question")
        details.append("context")
    if len(questions) - details.count("input") != 1 or len(answers) != 1:
        raise FormError(
            f"which of {[*questions, *answers]} is the question and which the answer cannot be told; write them as 'messages'"
        )
    texts = [_string(body, key) for key in (questions[0], *details)]
    fields = {key: body[key] for key in REASONING_FIELDS if key in body}
    answer = {"role": "assistant", "content": _string(body, answers[0]), **fields}
    turns = (
        _history(body.get("history")).then(spoken("user", "\n".join(texts))).then(read_messages([answer], answers[0]))
    )
    used = {*QUESTIONS, *answers, "context", "history", *fields}
    turns = _with_system(body, turns, used)
    return Conversation(turns, _tools(body, used), thinking=_mode(body, used)), used


def _history(value: Any) -> Messages:
    """Earlier questions and answers: pairs, as LLaMA-Factory and ms-swift write them."""
    turns = Messages()
    for pair in decoded(value, "'history'") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise FormError("'history' must be a list of pairs, a question and its answer")
        turns = turns.then(spoken("user", pair[0])).then(spoken("assistant", pair[1]))
    return turns


def _with_system(body: dict[str, Any], turns: Messages, used: set[str]) -> Messages:
    """The conversation with the system message that the record keeps apart from it."""
    given = [key for key in _SYSTEM if not _empty(body.get(key))]
    used.update(_SYSTEM)
    if not given:
        return turns
    text = text_of(body[given[0]], repr(given[0])) or ""
    first = turns.messages[0]
    if len(given) > 1 or (first["role"] == "system" and first.get("content") != text):
        raise FormError(f"the record has several system messages, one of them under {given[0]!r}; keep one of them")
    return turns if first["role"] == "system" else spoken("system", text).then(turns)


def _mode(body: dict[str, Any], used: set[str]) -> bool | None:
    """The mode that the record states: `enable_thinking`, also in `chat_template_kwargs`."""
    used.update(("enable_thinking", "chat_template_kwargs"))
    options = decoded(body.get("chat_template_kwargs"), "'chat_template_kwargs'") or {}
    if not isinstance(options, dict):
        raise FormError("'chat_template_kwargs' must be an object")
    options = {key: value for key, value in options.items() if value is not None}
    if strange := sorted(options.keys() - {"enable_thinking"}):
        raise FormError(f"'chat_template_kwargs' has {strange[0]!r}, which is not read; only 'enable_thinking' is")
    said = [holder["enable_thinking"] for holder in (body, options) if "enable_thinking" in holder]
    for value in said:
        if not isinstance(value, bool):
            raise FormError(f"'enable_thinking' is {value!r}; it must be true or false")
    if len(set(said)) > 1:
        raise FormError("'enable_thinking' and 'chat_template_kwargs' say different things; keep one of them")
    return said[0] if said else None


def _tools(body: dict[str, Any], used: set[str]) -> list[dict[str, Any]] | None:
    used.update(("tools", "functions"))
    given = [tools for key in ("tools", "functions") if (tools := read_tools(body.get(key), key))]
    if len(given) > 1:
        raise FormError("the record has both 'tools' and 'functions'; keep one of them")
    return given[0] if given else None


def _check_other_forms(body: dict[str, Any], form: Form, used: set[str], text_key: str) -> None:
    """Refuse a second form that says something else. One that says the same (a rendered copy, the first question) counts as
    read."""
    if isinstance(form, Conversation):
        messages = form.turns.messages
        said = [message["content"].strip() for message in messages if message.get("content", "").strip()]
    else:
        assert isinstance(form, Continuation)
        messages, said = [], [text.strip() for text in (form.prompt, form.completion) if isinstance(text, str)]
    for key in dict.fromkeys((*_STRONG, text_key)):
        value = body.get(key)
        if key in used or _empty(value):
            continue
        if isinstance(value, str) and not is_messages(value):
            parts = [line.strip() for text in said for line in text.split("\n")]
            same = any(value.strip() in text for text in said) or (parts != [] and all(part in value for part in parts))
        else:
            same = is_messages(value) and (other := read_messages(value, key).messages) == messages[: len(other)]
        if not same:
            read = ", ".join(map(repr, sorted(used & body.keys())))
            raise FormError(f"the record has {read} and {key!r}, which say different things; keep one of them")
        used.add(key)


def _refuse(body: dict[str, Any], table: dict[str, str]) -> None:
    for key, reason in table.items():
        value = body.get(key)
        if _empty(value) or any(value == harmless for harmless in _NO_OP.get(key, ())):
            continue
        if key == "label" and (not isinstance(value, bool | int) or value not in (0, 1)):
            continue  # the name of a class
        raise FormError(f"{key!r} is not read: {reason}")


def is_messages(value: Any) -> bool:
    """Whether a prompt or completion is messages, or the JSON text of some."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]") and '"role"' in value:
        try:
            value = decoded(value, "")
        except FormError:
            return False
    if isinstance(value, dict):
        return any(isinstance(value.get(key), list) for key in ("role", "from"))
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & value[0].keys())
    )


def _string(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise FormError(f"{key!r} must be a string, got {type(value).__name__}")
    return value


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _unknown(body: dict[str, Any], text_key: str) -> str:
    for key, what in _UNREAD.items():
        if key in body:
            return f"the record is {what}"
    return (
        f"no {text_key!r}, 'messages' or 'prompt' key with text; the record has {sorted(body)}, which is none of the forms "
        "that docs/data.md lists"
    )
