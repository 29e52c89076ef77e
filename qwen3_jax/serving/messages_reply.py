"""An answer as Anthropic's message: blocks of thinking, text and calls, and the events by which they grow.

Invariant: the deltas of a stream, joined, are the texts of the finished message, which is the same without a stream.
"""

import json
import math
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from qwen3_jax.generation import Delta
from qwen3_jax.generation.answer import Answer
from qwen3_jax.serving.errors import Refused
from qwen3_jax.serving.events import event
from qwen3_jax.serving.messages_body import MessagesRequest
from qwen3_jax.serving.replay import packed
from qwen3_jax.serving.replies import Json, Reply
from qwen3_jax.text import ToolCall

_SIGNATURE = "unsigned"  # clients drop thinking without one; this server checks none
_PATH = "/v1/messages"


class MessagesReply(Reply):
    """/v1/messages.

    Args:
        asked: the request.
        model, answers, samples: see `Reply`; there is one answer.
    """

    def __init__(self, model: str, answers: Sequence[Answer], samples: int, asked: MessagesRequest):
        super().__init__(model, answers, samples)
        self._omits_thinking = asked.omits_thinking
        self._id = f"msg_{uuid.uuid4().hex}"
        self._blocks: list[Json] = []
        self._is_open = False  # the last block
        self._thinking = ""
        self._stop: Json = {"stop_reason": None, "stop_sequence": None}

    def opening(self) -> list[Json]:
        """Return the events before any token."""
        return [{"type": "message_start", "message": self.whole()}, {"type": "ping"}]

    def events(self, choice: int, delta: Delta) -> list[Json]:
        """Take a delta; return its events."""
        if delta.tool_call is not None:
            return [*self._close(), *self._call(delta.tool_call)]
        if delta.result is None:
            kind = "thinking" if delta.kind == "thinking" else "text"
            is_open = self._is_open and self._blocks[-1]["type"] == kind
            return [*([] if is_open else [*self._close(), *self._open(kind)]), *self._grow(kind, delta.text)]
        stop = delta.result.stop_text
        reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
        reason = reasons.get(delta.result.finish_reason, "end_turn" if stop is None else "stop_sequence")
        self._stop = {"stop_reason": reason, "stop_sequence": stop if reason == "stop_sequence" else None}
        ends = {"type": "message_delta", "delta": self._stop, "usage": self._usage()}
        return [*self._close(), ends, {"type": "message_stop"}]

    def encode(self, value: Json) -> bytes:
        """Encode an event."""
        return event(value, value["type"])

    def failed(self, refused: Refused) -> bytes:
        """Return the encoded event of an error behind the first event."""
        return self.encode(refused.body(_PATH))

    def whole(self) -> Json:
        """Return the message as it is."""
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self.model,
            "content": [dict(block) for block in self._blocks], **self._stop, "usage": self._usage(),
        }  # fmt: skip

    def _usage(self) -> Json:
        counts = self.usage()
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"] - cached,  # Anthropic's does not have the cached ones
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"thinking_tokens": counts["completion_tokens_details"]["reasoning_tokens"]},
        }  # fmt: skip

    # ---- blocks ------------------------------------------------------------------------------------------------------

    def _start(self, block: Json) -> Json:
        self._blocks.append(block)
        return {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, kind: str, **fields: Any) -> Json:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": {"type": kind, **fields}}

    def _stopped(self) -> Json:
        return {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _open(self, kind: str) -> list[Json]:
        """Begin a block of text."""
        self._is_open = True
        return [self._start({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))]

    def _grow(self, kind: str, text: str) -> list[Json]:
        """Append to the open block."""
        if kind == "thinking":
            self._thinking += text
            if self._omits_thinking:
                return []
        self._blocks[-1][kind] += text
        return [self._delta(f"{kind}_delta", **{kind: text})]

    def _close(self) -> list[Json]:
        """End the open block, if there is one."""
        if not self._is_open:
            return []
        self._is_open = False
        signed: list[Json] = []
        if self._blocks[-1]["type"] == "thinking":
            signature = packed(self._thinking) if self._omits_thinking else _SIGNATURE
            self._blocks[-1]["signature"] = signature
            signed = [self._delta("signature_delta", signature=signature)]
        return [*signed, self._stopped()]

    def _call(self, call: ToolCall) -> list[Json]:
        """Give a whole call."""
        started = self._start({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        self._blocks[-1]["input"], text = _arguments(call.arguments)
        return [started, self._delta("input_json_delta", partial_json=text), self._stopped()]


def _arguments(text: str) -> tuple[Json, str]:
    """The arguments of a call, and their text: as written, unless it has numbers that JSON's readers cannot hold."""
    replaced: list[str] = []

    def number(written: str) -> float:
        value = float(written)
        if math.isinf(value):
            replaced.append(written)
        return max(-sys.float_info.max, min(sys.float_info.max, value))

    value = json.loads(text, parse_float=number)
    return value, json.dumps(value, ensure_ascii=False) if replaced else text
