"""What the body of a reply says: one answer of OpenAI's chat completions or completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qwen3_jax.endpoints.chat import Reply, Tokens
from qwen3_jax.text import parse

_FINISHED = ("stop", "tool_calls", "function_call", "eos", "end_turn")


def read_reply(raw: bytes, *, of_text: bool = False) -> Reply:
    """Read the body of a reply with status 200; anything that is not a whole answer is "unreachable".

    Args:
        raw: the body.
        of_text: of /completions, rather than /chat/completions.
    """
    try:
        value = json.loads(raw)
        (choice,) = value["choices"]
        finish = choice.get("finish_reason")
        fields = _text(choice) if of_text else _message(choice["message"])
        refusal = None if of_text else choice["message"].get("refusal")
        tokens, forced = _usage(value.get("usage"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = "completion" if of_text else "chat completion"
        return Reply(
            "unreachable", reason=f"the reply is no {what} ({type(error).__name__}: {error})"[:300], may_cost=True
        )
    fields |= dict(
        tokens=tokens, may_cost=tokens is None, forced_tokens=forced,
        finish_reason=finish if isinstance(finish, str) and finish else "stop",
    )  # fmt: skip
    if refusal or finish == "content_filter":
        return Reply("refused", reason=f"the endpoint filtered the answer: {refusal or finish}"[:300], **fields)
    if finish == "length":
        return Reply("truncated", reason="the answer reached its limit of tokens", **fields)
    if finish is not None and finish not in _FINISHED:
        return Reply("truncated", reason=f"the answer ended with finish_reason {finish!r}"[:300], **fields)
    return Reply("ok", **fields)


def _text(choice: Mapping[str, Any]) -> dict[str, Any]:
    content = choice["text"] or ""
    if not isinstance(content, str):
        raise TypeError("its text is no text")
    return {"content": content}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    thinking = message.get("reasoning_content") or message.get("reasoning") or None
    if not isinstance(content, str) or not isinstance(thinking, str | None):
        raise TypeError("its content is not text")
    fields: dict[str, Any] = {"tool_calls": tuple(_call(call) for call in message.get("tool_calls") or ())}
    if thinking is not None:
        return fields | {"content": content, "thinking": thinking}
    parsed = parse(content, tools=False)  # a server that leaves the thinking in the text
    whole = None if parsed.content == content else content
    return fields | {"content": parsed.content, "thinking": parsed.thinking, "text": whole}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call in OpenAI's form; some servers give its arguments as an object, or leave them out."""
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return {**call, "function": {**function, "name": str(function["name"]), "arguments": arguments}}


def _usage(usage: Any) -> tuple[Tokens | None, int | None]:
    """The token counts, and those of a thinking budget's stop text; None where the server does not report them."""
    if not isinstance(usage, Mapping):
        return None, None
    counts: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if None in counts:
        return None, None
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"its token counts are {counts}")
    before, after = (usage.get(f"{part}_tokens_details") or {} for part in ("prompt", "completion"))
    prompt, completion = counts
    tokens = Tokens(prompt, completion, before.get("cached_tokens") or 0, after.get("reasoning_tokens") or 0)
    return tokens, after.get("forced_tokens")
