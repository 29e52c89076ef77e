"""The documented order of the events of the agents' APIs, and what their deltas make."""

from collections.abc import Iterable
from typing import Any

from openai.types.responses import Response


def response_of(events: Iterable[Any]) -> tuple[Response, list[str]]:
    """The last event's response, after a check of the order of all, and the types of the events."""
    events = list(events)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert all((event.response.status, event.response.output) == ("in_progress", []) for event in events[:2])
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete", "response.failed")
    assert f"response.{last.response.status}" == last.type
    assert {event.response.id for event in (*events[:2], last)} == {last.response.id}
    inner, items = events[2:-1], []
    while inner:
        index = len(items)
        end = next(i for i, event in enumerate(inner) if event.type == "response.output_item.done") + 1
        own, inner = inner[:end], inner[end:]
        assert own[0].type == "response.output_item.added"
        assert {event.output_index for event in own} == {index}
        item = own[-1].item
        assert {event.item_id for event in own[1:-1]} == {own[0].item.id} == {item.id}
        assert own[0].item.type == item.type
        _CHECKS[item.type]([*own[1:-1]], item)
        items.append(item)
    assert items == last.response.output
    return last.response, _kinds(events)


def once(types: list[str]) -> list[str]:
    """Types of events with equal neighbours once; the two kinds of a piece of thinking are neighbours of each other."""
    types = [kind for kind in types if kind != "reasoning_summary_text.delta"]
    return [kind for i, kind in enumerate(types) if i == 0 or types[i - 1] != kind]


def _kinds(events: list[Any]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def _check_text(events: list[Any], text: str, delta: str) -> None:
    """One part: added, deltas, done, done."""
    assert _kinds(events) == [
        "content_part.added",
        *[f"{delta}.delta"] * (len(events) - 3),
        f"{delta}.done",
        "content_part.done",
    ]
    assert events[0].part.text == ""
    assert all(event.delta for event in events[1:-2])
    assert "".join(event.delta for event in events[1:-2]) == events[-2].text == events[-1].part.text == text
    assert {event.content_index for event in events} == {0}
    assert events[0].part.type == events[-1].part.type == delta


def _check_message(events: list[Any], item: Any) -> None:
    (part,) = item.content
    _check_text(events, part.text, "output_text")


def _check_reasoning(events: list[Any], item: Any) -> None:
    (part,) = item.content
    summary = [event for event in events if "reasoning_summary" in event.type]
    _check_text([event for event in events if event not in summary], part.text, "reasoning_text")
    if not summary:
        assert item.summary == []
        return
    name = "reasoning_summary"
    middle = [f"{name}_text.delta"] * (len(summary) - 3)
    assert _kinds(summary) == [f"{name}_part.added", *middle, f"{name}_text.done", f"{name}_part.done"]
    assert "".join(event.delta for event in summary[1:-2]) == summary[-2].text == item.summary[0].text == part.text
    assert {event.summary_index for event in summary} == {0}


def _check_call(events: list[Any], item: Any) -> None:
    name = "function_call_arguments"
    assert _kinds(events) == [*[f"{name}.delta"] * (len(events) - 1), f"{name}.done"]
    assert "".join(event.delta for event in events[:-1]) == events[-1].arguments == item.arguments


_CHECKS = {"message": _check_message, "reasoning": _check_reasoning, "function_call": _check_call}


def message_of(events: Iterable[dict]) -> tuple[dict, list[str]]:
    """The message that Anthropic's events make, after a check of their order, and their types."""
    events = list(events)
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    message = events[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    inner = events[2:-2]
    while inner:
        end = next(i for i, event in enumerate(inner) if event["type"] == "content_block_stop") + 1
        own, inner = inner[:end], inner[end:]
        kinds = [event["type"] for event in own]
        assert kinds == ["content_block_start", *["content_block_delta"] * (len(own) - 2), "content_block_stop"]
        assert {event["index"] for event in own} == {len(message["content"])}
        message["content"].append(_block(own[0]["content_block"], [event["delta"] for event in own[1:-1]]))
    message |= events[-2]["delta"] | {"usage": message["usage"] | events[-2]["usage"]}
    return message, [event["type"] for event in events]


def _block(block: dict, deltas: list[dict]) -> dict:
    kinds = [delta["type"] for delta in deltas]
    if block["type"] == "thinking":
        assert kinds == [*["thinking_delta"] * (len(kinds) - 1), "signature_delta"]
        assert (block["thinking"], block["signature"]) == ("", "")
        thinking = "".join(delta["thinking"] for delta in deltas[:-1])
        return block | {"thinking": thinking, "signature": deltas[-1]["signature"]}
    if block["type"] == "text":
        assert block["text"] == ""
        assert set(kinds) == {"text_delta"}
        return block | {"text": "".join(delta["text"] for delta in deltas)}
    assert block["input"] == {}
    assert set(kinds) == {"input_json_delta"}
    return block | {"input": "".join(delta["partial_json"] for delta in deltas)}
