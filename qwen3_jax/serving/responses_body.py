"""The body of /v1/responses, OpenAI's API for agents, as a request for a conversation."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, model_validator

from qwen3_jax.serving.common import Limit, Sampled, Texts, once
from qwen3_jax.serving.fields import RESPONSES, Own
from qwen3_jax.serving.objects import JsonSchema, Named, NamedTool, Reasoning, ResponseFormat, Strict, TemplateOptions
from qwen3_jax.serving.protocol import ChatRequest, as_chat, preserved
from qwen3_jax.serving.responses_items import Tools, messages_of

# For the API's description only: `responses_items` checks items and tools.
_ITEM = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": {"type": "string"},
    },
    "required": ["role", "content"],
}
_TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "name": {"type": "string", "minLength": 1}, "parameters": {"type": "object"}},
    "required": ["type", "name"],
}  # fmt: skip
Items = Annotated[list[dict[str, Any]], Field(min_length=1, json_schema_extra={"items": _ITEM})]
FlatTools = Annotated[list[dict[str, Any]], Field(json_schema_extra={"items": _TOOL})]
Summary = Literal["auto", "concise", "detailed"]


class NamedFunction(Strict):
    """`tool_choice` with a name."""

    type: Literal["function"]
    name: StrictStr


def _choice(value: Any) -> Any:
    if isinstance(value, str) and value not in ("auto", "none", "required"):
        value = {"type": value}
    if isinstance(value, dict) and (value.get("type") != "function" or "name" not in value):
        form = "{'type': 'function', 'name': NAME}"
        raise ValueError(
            f"it must be 'auto', 'none', 'required' or {form}; to allow some tools only, give these in 'tools'"
        )
    return value


class ResponseReasoning(Reasoning):
    """`reasoning`, with the fields that OpenRouter's API has besides.

    Attributes:
        summary, generate_summary: the thinking is returned as a summary too; it is not shortened.
        context: "all_turns" keeps the thinking of earlier turns.
        mode: only "standard".
    """

    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class TextFormat(Strict):
    """The required form of the text: "text", "json_object" or "json_schema"."""

    type: Literal["text", "json_object", "json_schema"]
    name: StrictStr = "answer"
    description: StrictStr | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: StrictBool | None = None

    @model_validator(mode="after")
    def _complete(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("'schema' belongs to the type 'json_schema', which requires it")
        return self


class TextOptions(Strict):
    """`text`; the verbosity is for models that were trained for it."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesStreamOptions(Strict):
    """What a stream has besides; padding of OpenAI's events is refused."""

    include_obfuscation: Literal[False] = False


class ResponsesRequest(Sampled):
    """POST /v1/responses."""

    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(ChatRequest.model_fields, "POST /v1/chat/completions")
    own: ClassVar[Own] = RESPONSES

    input: StrictStr | Items
    instructions: StrictStr | None = None
    max_output_tokens: Limit | None = None
    stop: Texts | None = None
    tools: FlatTools | None = None
    tool_choice: Annotated[Literal["auto", "none", "required"] | NamedFunction | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: StrictBool | None = None
    reasoning: ResponseReasoning | None = None
    text: TextOptions | None = None
    metadata: dict[str, StrictStr] | None = None
    store: StrictBool | None = None
    include: (
        list[
            Literal[
                "reasoning.encrypted_content", "web_search_call.results", "web_search_call.action.sources",
                "file_search_call.results", "code_interpreter_call.outputs", "computer_call_output.output.image_url",
                "message.input_image.image_url",
            ]
        ]
        | None
    ) = None  # fmt: skip
    truncation: Literal["disabled"] | None = None
    stream_options: ResponsesStreamOptions | None = None
    enable_thinking: StrictBool | None = None
    preserve_thinking: StrictBool | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @cached_property
    def functions(self) -> Tools:
        """The tools in the form of /v1/chat/completions; RequestError for one that is not supported."""
        return Tools(self.tools or [])

    @property
    def summarizes(self) -> bool:
        """Whether the thinking is asked for as a summary."""
        return self.reasoning is not None and bool(self.reasoning.summary or self.reasoning.generate_summary)

    @property
    def packs_thinking(self) -> bool:
        """Whether the thinking is asked for in the field that a client returns without reading it."""
        return "reasoning.encrypted_content" in (self.include or ())

    def chat(self) -> ChatRequest:
        """Return the conversation that is asked for.

        Raises:
            RequestError: an item or a tool that cannot be read; names its place.
        """
        reasoning, choice = self.reasoning or ResponseReasoning(), self.tool_choice
        named = NamedTool(function=Named(name=choice.name)) if isinstance(choice, NamedFunction) else None
        names = {
            "reasoning.context": {"all_turns": True, "current_turn": False}.get(reasoning.context or ""),
            "preserve_thinking": preserved(self.preserve_thinking, self.chat_template_kwargs),
        }
        return as_chat(
            ChatRequest, self,
            messages=messages_of(self.input, self.instructions), max_tokens=self.max_output_tokens, stop=self.stop,
            tools=self.functions.shown, tool_choice=named or choice, parallel_tool_calls=self.parallel_tool_calls,
            reasoning=Reasoning(enabled=reasoning.enabled, effort=reasoning.effort, max_tokens=reasoning.max_tokens),
            response_format=self._format, enable_thinking=self.enable_thinking,
            chat_template_kwargs=self.chat_template_kwargs,
            preserve_thinking=once(names, "preserve_thinking", "the switch"),
        )  # fmt: skip

    @property
    def _format(self) -> ResponseFormat | None:
        format = None if self.text is None else self.text.format
        if format is None:
            return None
        if format.schema_ is None:
            return ResponseFormat(type=format.type)
        return ResponseFormat(type=format.type, json_schema=JsonSchema(schema=format.schema_))
