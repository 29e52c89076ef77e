"""The bodies of /v1/messages and /v1/messages/count_tokens, Anthropic's API, as requests for a conversation."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictStr, model_validator

from qwen3_jax.errors import RequestError
from qwen3_jax.serving import objects
from qwen3_jax.serving.common import Sampled
from qwen3_jax.serving.fields import COUNTS, MESSAGES, Own
from qwen3_jax.serving.messages_blocks import functions_of, messages_of
from qwen3_jax.serving.objects import (
    Budget,
    JsonSchema,
    Named,
    NamedTool,
    ResponseFormat,
    Strict,
    TemplateOptions,
    Whole,
)
from qwen3_jax.serving.protocol import CappedChatRequest, ChatRequest, as_chat

# For the API's description only: `messages_blocks` checks messages and tools.
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"type": "string", "enum": ["user", "assistant", "system"]}, "content": {"type": "string"}},
    "required": ["role", "content"],
}
_TOOL = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "input_schema": {"type": "object"}},
    "required": ["name", "input_schema"],
}
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, json_schema_extra={"items": _MESSAGE})]
Tools = Annotated[list[dict[str, Any]], Field(json_schema_extra={"items": _TOOL})]
_KEPT_THINKING = "clear_thinking_20251015"


class Thinking(Strict):
    """`thinking`: a budget, no thinking, or as much as the model likes.

    Attributes:
        display: "omitted" returns the thinking in the signature alone, which a client carries without reading it.
    """

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Budget | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Thinking":
        if self.type == "enabled" and self.budget_tokens is None:
            raise ValueError("the type 'enabled' needs 'budget_tokens'; 'adaptive' has no budget")
        if self.type == "disabled" and self.budget_tokens:
            raise ValueError("the type 'disabled' has no 'budget_tokens'")
        return self


class ToolChoice(Strict):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("'name' belongs to the type 'tool', which requires it")
        return self


class OutputFormat(Strict):
    """The required form of the text."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """`output_config`: a thinking budget by name, and the form of the text."""

    effort: StrictStr | None = None
    format: OutputFormat | None = None


class Metadata(Strict):
    """`metadata`, which identifies the end user."""

    user_id: StrictStr | None = None


class ContextManagement(Strict):
    """`context_management`: no edit but that of thinking, of which the chat template decides."""

    edits: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _supported(self) -> "ContextManagement":
        for i, edit in enumerate(self.edits):
            if edit.get("type") != _KEPT_THINKING:
                raise ValueError(
                    f"edits[{i}] is of type {edit.get('type')!r}: this server clears nothing; shorten 'messages'"
                )
        return self


class _Conversation(Sampled):
    """Fields of both routes."""

    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(ChatRequest.model_fields, "POST /v1/chat/completions")
    own: ClassVar[Own] = MESSAGES

    messages: Messages
    system: StrictStr | list[dict[str, Any]] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    enable_thinking: StrictBool | None = None
    preserve_thinking: StrictBool | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def _chat(self, **fields: Any) -> ChatRequest:
        messages, choice, output = messages_of(self.messages, self.system), self.tool_choice, self.output_config
        continues = messages[-1]["role"] == "assistant"
        if continues and "tool_calls" in messages[-1]:
            place = f"messages[{len(self.messages) - 1}]"
            raise RequestError(
                f"{place} calls a tool; a message of the user with its tool_result must follow.", "messages"
            )
        if choice is not None and choice.type in ("any", "tool") and not self.tools:
            raise RequestError(f"'tool_choice' is of type {choice.type!r}, but there are no tools.", "tool_choice")
        format = None if output is None or output.format is None else output.format
        return as_chat(
            CappedChatRequest, self,
            messages=messages, continue_final_message=continues or None, tools=functions_of(self.tools or []),
            tool_choice=_choice(choice), thinking=self._thinking,
            parallel_tool_calls=None if choice is None or not choice.disable_parallel_tool_use else False,
            reasoning_effort=None if output is None else output.effort,
            response_format=None if format is None else
            ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=format.schema_)),
            enable_thinking=self.enable_thinking, preserve_thinking=self.preserve_thinking,
            chat_template_kwargs=self.chat_template_kwargs, **fields,
        )  # fmt: skip

    @property
    def _thinking(self) -> objects.Thinking | None:
        asked = self.thinking
        if asked is None:
            return None
        # Claude Code sends a budget of 0 with "adaptive", which has none.
        budget = asked.budget_tokens if asked.type == "enabled" else asked.budget_tokens or None
        kind = asked.type if budget != 0 else "disabled"
        return objects.Thinking(type=kind, budget_tokens=budget or None)


class MessagesRequest(_Conversation):
    """POST /v1/messages."""

    max_tokens: Annotated[Whole, Field(ge=1)]
    stop_sequences: list[StrictStr] | None = None
    metadata: Metadata | None = None

    @property
    def omits_thinking(self) -> bool:
        """Whether the thinking is returned in the signature alone."""
        return self.thinking is not None and self.thinking.display == "omitted"

    def chat(self) -> ChatRequest:
        """Return the conversation that is asked for.

        Raises:
            RequestError: a block or a tool that cannot be read; names its place.
        """
        return self._chat(max_tokens=self.max_tokens, stop=self.stop_sequences)


class CountTokensRequest(_Conversation):
    """POST /v1/messages/count_tokens."""

    own: ClassVar[Own] = COUNTS

    def chat(self) -> ChatRequest:
        """Return the conversation whose prompt is counted.

        Raises:
            RequestError: a block or a tool that cannot be read; names its place.
        """
        return self._chat()


def _choice(choice: ToolChoice | None) -> Any:
    if choice is None:
        return None
    if choice.name is not None:
        return NamedTool(function=Named(name=choice.name))
    return "required" if choice.type == "any" else choice.type
