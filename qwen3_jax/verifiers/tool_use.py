"""Tool use in three parts, as the Qwen3 report scores it (section 4.7): intent, format, parameters.

verify("tool_use", answer, {"calls": [{"name": "weather", "arguments": {"city": "Paris"}}], "tools": [...]})
"""

from collections.abc import Mapping
from typing import Any

from qwen3_jax.text.parsers import parse
from qwen3_jax.verifiers.content import RecallSettings, verify_recall
from qwen3_jax.verifiers.tool_calls import ToolCallSettings, verify_tool_calls
from qwen3_jax.verifiers.verdict import BadReference, Verdict, graded

_KINDS: dict[str, Any] = {
    "string": str, "integer": int, "number": int | float, "boolean": bool, "array": list, "object": dict, "null": type(None),
}  # fmt: skip


def verify_tool_use(answer: str, reference: Any, settings: ToolCallSettings) -> Verdict:
    """Whether the answer calls the right functions, in the right format, with the right arguments; the mean of the three.

    Intent: the names of the functions that are called, each as often, are those of the reference. Format: every call can be
    read, names a tool, and has its required arguments and no others, of the right types; without a call, there is text.
    Parameters: the calls are those of the reference; where no call is right, the text holds what `says` lists.

    Args:
        reference: an object with `calls` and `tools` as of the verifier "tool_calls"; without calls optionally `says`, a list
            of texts.
    """
    if not isinstance(reference, Mapping) or not isinstance(reference.get("tools"), list):
        raise BadReference("'tool_use' needs an object with calls and tools")
    calls, tools = reference.get("calls"), reference["tools"]
    judged = verify_tool_calls(answer, {"calls": calls, "tools": tools}, settings)
    parsed = parse(answer, tools=tools)
    found = [(call.name, call.arguments_dict()) for call in parsed.tool_calls]
    intent = sorted(name for name, _ in found) == sorted(call["name"] for call in calls or [])
    fault = _format_fault(found, parsed.content, tools)
    parameters, why = judged.score == 1, judged.reason
    if not calls and parameters and reference.get("says"):
        said = verify_recall(parsed.content, reference["says"], RecallSettings())
        parameters, why = said.score == 1, said.reason
    parts = (intent, fault is None, parameters)
    reasons = [
        "" if intent else "other functions are called than those that are wanted",
        fault or "",
        "" if parameters else why,
    ]
    return graded(sum(parts) / 3, "; ".join(filter(None, reasons)) or "intent, format and parameters are right", parts)


def _format_fault(found: list[tuple[str, dict[str, Any]]], content: str, tools: list[Any]) -> str | None:
    """What is wrong with the form of the answer; None if nothing is."""
    if "<tool_call>" in content:
        return "a tool call cannot be read"
    if not found:
        return None if content.strip() else "the answer is empty"
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters") or {}
        for tool in tools
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    }
    for name, arguments in found:
        if name not in schemas:
            return f"there is no function {name!r}"
        properties = schemas[name].get("properties") or {}
        missing = [key for key in schemas[name].get("required") or [] if key not in arguments]
        if missing:
            return f"{name} lacks the argument {missing[0]!r}"
        for key, value in arguments.items():
            if key not in properties:
                return f"{name} has no argument {key!r}"
            if not _fits(value, properties[key]):
                return f"the argument {key!r} of {name} is {value!r:.80}, of another type"
    return None


def _fits(value: Any, schema: Any) -> bool:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        return True
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return True
    return isinstance(value, _KINDS[kind]) and ("enum" not in schema or value in schema["enum"])
