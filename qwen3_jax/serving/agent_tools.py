"""What the agents' APIs share: tools as functions of /v1/chat/completions, and errors that name a place."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from qwen3_jax.errors import RequestError
from qwen3_jax.serving.objects import Function


def plain_function(tool: Mapping[str, Any], place: str, defaults: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Return a tool as a function of /v1/chat/completions, in the order in which the client sent its fields.

    Args:
        tool: with `parameters`, and everything else beside them.
        place: for messages.
        defaults: fields that the model is not shown, with the values at which they change nothing.

    Raises:
        RequestError: names the place and the field.
    """
    for name, harmless in defaults.items():
        if tool.get(name) is not None and tool[name] not in harmless:
            raise error_at(f"{place}.{name}", "is not supported; leave it out", "tools")
    function = {name: value for name, value in tool.items() if value is not None and name not in ("type", *defaults)}
    try:
        Function.model_validate(function)
    except ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f".{part}" for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise error_at(f"{place}{inner}:", message[:1].lower() + message[1:], "tools") from None
    return function


def error_at(place: str, reason: str, field: str) -> RequestError:
    """Return an error about a place in a request's field; the reason is the rest of the sentence."""
    return RequestError(f"{place} {reason}{'' if reason.endswith('?') else '.'}", field)
