"""An answer as OpenAI's response: items of reasoning, text and calls, and the events by which they grow.

Invariant: the deltas of a stream, joined, are the texts of the finished response, which is the same without a stream.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from qwen3_jax.generation import Delta
from qwen3_jax.generation.answer import Answer
from qwen3_jax.serving.errors import Refused
from qwen3_jax.serving.events import event
from qwen3_jax.serving.replay import packed
from qwen3_jax.serving.replies import Json, Reply
from qwen3_jax.serving.responses_body import ResponsesRequest
from qwen3_jax.text import ToolCall


class ResponsesReply(Reply):
    """/v1/responses.

    Args:
        asked: the request, parts of which a response repeats.
        model, answers, samples: see `Reply`; there is one answer.
    """

    def __init__(self, model: str, answers: Sequence[Answer], samples: int, asked: ResponsesRequest):
        super().__init__(model, answers, samples)
        self._asked = asked
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._items: list[Json] = []
        self._text: str | None = None  # of the last item, if that is open
        self._status = "in_progress"
        self._number = 0  # of the next event

    def opening(self) -> list[Json]:
        """Return the events before any token."""
        return [self._event(f"response.{kind}", response=self.whole()) for kind in ("created", "in_progress")]

    def events(self, choice: int, delta: Delta) -> list[Json]:
        """Take a delta; return its events."""
        if delta.tool_call is not None:
            return [*self._close(), *self._call(delta.tool_call)]
        if delta.result is None:
            kind = "reasoning" if delta.kind == "thinking" else "message"
            is_open = self._text is not None and self._items[-1]["type"] == kind
            return [*([] if is_open else [*self._close(), *self._open(kind)]), *self._grow(kind, delta.text)]
        self._status = "incomplete" if delta.result.finish_reason == "length" else "completed"
        return [*self._close(self._status), self._event(f"response.{self._status}", response=self.whole())]

    def encode(self, value: Json) -> bytes:
        """Encode an event."""
        return event(value, value["type"])

    def failed(self, refused: Refused) -> bytes:
        """Return the encoded event of an error behind the first event."""
        self._status = "failed"
        events = self._close("incomplete")
        response = self.whole() | {"error": {"code": "server_error", "message": refused.detail}}
        return b"".join(map(self.encode, [*events, self._event("response.failed", response=response)]))

    def whole(self) -> Json:
        """Return the response as it is."""
        asked, done = self._asked, self._status in ("completed", "incomplete")
        reasoning, text = asked.reasoning, asked.text
        choice = asked.tool_choice or "auto"
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": self._status,
            "completed_at": int(time.time()) if done else None, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens, "model": self.model,
            "output": [dict(item) for item in self._items], "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {
                "effort": None if reasoning is None else reasoning.effort,
                "summary": None if reasoning is None else reasoning.summary or reasoning.generate_summary,
            },
            "store": False, "background": False, "truncation": "disabled",
            "temperature": asked.temperature, "top_p": asked.top_p,
            "text": {"format": {"type": "text"}} if text is None or text.format is None else
            {"format": text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": asked.tools or [], "metadata": asked.metadata or {},
            "usage": self._usage() if done else None,
        }  # fmt: skip

    def _usage(self) -> Json:
        counts = self.usage()
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }

    # ---- items -------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _of_item(self, kind: str, **fields: Any) -> Json:
        """An event of the last item's text."""
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        index = "summary_index" if kind.startswith("reasoning_summary") else "content_index"
        return self._event(f"response.{kind}", **place, **({} if "arguments" in kind else {index: 0}), **fields)

    def _item(self, kind: str) -> Json:
        """The event of the last item's begin or end."""
        item, index = dict(self._items[-1]), len(self._items) - 1
        return self._event(f"response.output_item.{kind}", output_index=index, item=item)

    def _open(self, kind: str) -> list[Json]:
        """Begin an item of text."""
        self._text, thinks = "", kind == "reasoning"
        item: Json = {"id": f"{'rs' if thinks else 'msg'}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress"}
        item |= {"content": [], "summary": []} if thinks else {"content": [], "role": "assistant"}
        self._items.append(item)
        events = [self._item("added"), self._of_item("content_part.added", part=_part(kind, ""))]
        if thinks and self._asked.summarizes:
            events.append(self._of_item("reasoning_summary_part.added", part=_summary("")))
        return events

    def _grow(self, kind: str, text: str) -> list[Json]:
        """Append to the open item."""
        self._text = (self._text or "") + text
        if kind == "message":
            return [self._of_item("output_text.delta", delta=text, logprobs=[])]
        events = [self._of_item("reasoning_text.delta", delta=text)]
        if self._asked.summarizes:
            events.append(self._of_item("reasoning_summary_text.delta", delta=text))
        return events

    def _close(self, status: str = "completed") -> list[Json]:
        """End the open item, if there is one."""
        if self._text is None:
            return []
        item, text, self._text = self._items[-1], self._text, None
        kind = item["type"]
        part = _part(kind, text)
        item |= {"status": status, "content": [part]}
        if kind == "message":
            events = [self._of_item("output_text.done", text=text, logprobs=[])]
        else:
            events = [self._of_item("reasoning_text.done", text=text)]
            item |= {"encrypted_content": packed(text)} if self._asked.packs_thinking else {}
        events.append(self._of_item("content_part.done", part=part))
        if kind == "reasoning" and self._asked.summarizes:
            item["summary"] = [_summary(text)]
            events.append(self._of_item("reasoning_summary_text.done", text=text))
            events.append(self._of_item("reasoning_summary_part.done", part=_summary(text)))
        return [*events, self._item("done")]

    def _call(self, call: ToolCall) -> list[Json]:
        """Give a whole call."""
        named = self._asked.functions.named(call.name)
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "in_progress", "call_id": call.id}
        self._items.append(item | named | {"arguments": ""})
        events = [self._item("added"), self._of_item("function_call_arguments.delta", delta=call.arguments)]
        self._items[-1] |= {"status": "completed", "arguments": call.arguments}
        done = self._of_item("function_call_arguments.done", name=named["name"], arguments=call.arguments)
        return [*events, done, self._item("done")]


def _part(kind: str, text: str) -> Json:
    """The only part of an item's content."""
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}
