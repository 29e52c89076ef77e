"""The fields of a request: OpenAI's, those of vLLM and SGLang that Qwen's clients send, and the thinking budget.

Every field takes effect or is refused by name; `fields` lists those that a server of one model cannot act on, and the values
at which a field that is not supported changes nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, ValidationError, model_validator

from qwen3_jax.errors import RequestError
from qwen3_jax.generation import Options
from qwen3_jax.generation.sampling import MAX_LOGPROBS
from qwen3_jax.serving.common import EFFORTS, Common, Defaults, Id, Limit, MakeConstraint, Sampled, once
from qwen3_jax.serving.objects import (
    Body,
    Function,
    NamedTool,
    Reasoning,
    TemplateOptions,
    Thinking,
    Tool,
    Whole,
)
from qwen3_jax.text import Tokenizer


def _choice(value: Any) -> Any:
    """Refuse the forms that other APIs have for a choice, which the types below would not explain."""
    is_named = isinstance(value, Mapping) and isinstance(value.get("function"), Mapping)
    if not (value in (None, "auto", "none", "required") or is_named or isinstance(value, NamedTool)):
        form = "{'type': 'function', 'function': {'name': NAME}}"
        raise ValueError(
            f"it must be 'auto', 'none', 'required' or {form}; to allow some tools only, give these in 'tools'"
        )
    return value


# For the API's description only: the chat template checks messages.
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": "string"},
        "reasoning_content": {"type": "string"},
    },
    "required": ["role", "content"],
}
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, json_schema_extra={"items": _MESSAGE})]


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(
        ("prompt", "echo", "return_tokens_as_token_ids"), "POST /v1/completions"
    )

    messages: Messages
    max_completion_tokens: Limit | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[Literal["auto", "none", "required"] | NamedTool | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: StrictBool | None = None
    enable_thinking: StrictBool | None = None
    preserve_thinking: StrictBool | None = None
    thinking: Thinking | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: StrictStr | None = None
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: StrictBool | None = None
    add_generation_prompt: StrictBool | None = None
    separate_reasoning: StrictBool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        for name, effort in self.efforts.items():
            if effort is not None and effort not in EFFORTS:
                raise ValueError(f"{name!r} is {effort!r}; it must be one of {list(EFFORTS)}")
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(self.continue_final_message):
            raise ValueError("'add_generation_prompt' must be the opposite of 'continue_final_message'; leave it out")
        if self.continue_final_message and self.messages[-1].get("role") != "assistant":
            raise ValueError("'continue_final_message' needs an assistant message at the end")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"'tool_choice' names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("'tool_choice' is 'required', but there are no tools")
        return self

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the prompt describes; None without any."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.shown for tool in self.tools]

    @property
    def forced_tools(self) -> list[Function]:
        """The functions of which one must be called; empty if a call is optional."""
        if isinstance(self.tool_choice, NamedTool):
            return [t.function for t in self.tools or () if t.function.name == self.tool_choice.function.name]
        return [tool.function for tool in self.tools or ()] if self.tool_choice == "required" else []

    @property
    def optional_tools(self) -> list[Function]:
        """The functions that may be called or not."""
        return [] if self.forced_tools or self.shown_tools is None else [tool.function for tool in self.tools or ()]

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None for no limit."""
        names = {"max_tokens": self.max_tokens, "max_completion_tokens": self.max_completion_tokens}
        limit = once(names, "max_tokens", "the limit")
        return None if limit == -1 else limit

    @property
    def budgets(self) -> dict[str, int | None]:
        """The thinking budget under each of its names."""
        template, thinking, reasoning = self.chat_template_kwargs, self.thinking, self.reasoning
        return super().budgets | {
            "chat_template_kwargs.thinking_budget": None if template is None else template.thinking_budget,
            "thinking.budget_tokens": None if thinking is None else thinking.budget_tokens,
            "reasoning.max_tokens": None if reasoning is None else reasoning.max_tokens,
        }

    @property
    def efforts(self) -> dict[str, str | None]:
        """The effort under each of its names."""
        own = None if self.reasoning is None else self.reasoning.effort
        return {"reasoning_effort": self.reasoning_effort, "reasoning.effort": own}

    @property
    def switch(self) -> bool | None:
        """Whether to think, under any of its names; None if absent."""
        template, kind = self.chat_template_kwargs, None if self.thinking is None else self.thinking.type
        names = {
            "enable_thinking": self.enable_thinking,
            "chat_template_kwargs.enable_thinking": None if template is None else template.enable_thinking,
            "thinking.type": None if kind in (None, "adaptive") else kind == "enabled",
            "reasoning.enabled": None if self.reasoning is None else self.reasoning.enabled,
        }
        return once(names, "enable_thinking", "the switch")

    @property
    def prompts(self) -> list[Any]:
        """The conversation, as a list of one prompt."""
        return [self.messages]

    def options(self, constraint: MakeConstraint, defaults: Defaults) -> Options:
        """Return the options of each prompt."""
        enable = self.switch
        effort = once(self.efforts, "reasoning_effort", "the effort")
        return Options(
            sampling=self._sampling((self.top_logprobs or 0) if self.logprobs else None),
            **self._most(self.limit, defaults),
            **self._thinking(defaults, enable, effort),
            enable_thinking=enable,
            preserve_thinking=preserved(self.preserve_thinking, self.chat_template_kwargs),
            tools=self.shown_tools,
            continue_final_message=bool(self.continue_final_message),
            constraint=constraint,
            raw=self.separate_reasoning is False,
            one_call=self.parallel_tool_calls is False,
        )


class CappedChatRequest(ChatRequest):
    """A conversation whose thinking budget is a cap, as Anthropic's clients mean it: they send nearly all of `max_tokens`."""

    fits_budget: ClassVar[bool] = True


def as_chat(kind: type[ChatRequest], body: Sampled, **fields: Any) -> ChatRequest:
    """Return the request for a conversation that another route's body asks for.

    Args:
        kind: of the request.
        body: gives the fields that all routes have.
        fields: the others.

    Raises:
        RequestError: the fields contradict one another.
    """
    shared = {name: getattr(body, name) for name in Sampled.model_fields}
    try:
        return kind(**(shared | fields))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RequestError(reason if reason.endswith((".", "?")) else f"{reason}.") from None


class CompletionRequest(Common):
    """POST /v1/completions: a text, or token ids, is continued as it is."""

    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(
        (name for name in ChatRequest.model_fields if name not in Common.model_fields and name != "logprobs"),
        "POST /v1/chat/completions",
    )
    forced_tools: ClassVar[list[Function]] = []
    optional_tools: ClassVar[list[Function]] = []
    parallel_tool_calls: ClassVar[None] = None

    prompt: StrictStr | list[StrictStr] | list[Id] | list[list[Id]]
    max_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | Literal[False] | None = None
    return_tokens_as_token_ids: StrictBool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("'max_tokens' is 0; an answer has at least one token, unless 'echo' repeats the prompt")
        return self

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts or lists of token ids."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        return list(self.prompt)

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None for no limit."""
        return None if self.max_tokens == -1 else self.max_tokens

    def options(self, constraint: MakeConstraint, defaults: Defaults) -> Options:
        """Return the options of each prompt."""
        return Options(
            sampling=self._sampling(None if self.logprobs is False else self.logprobs),
            **self._most(self.limit, defaults),
            **self._thinking(defaults, None, None),
            constraint=constraint,
            raw=True,
            echo=bool(self.echo),
        )


class TokenizeRequest(Body):
    """POST /tokenize: a text, or a conversation after the chat template."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Messages | None = None
    tools: list[Tool] | None = None
    enable_thinking: StrictBool | None = None
    preserve_thinking: StrictBool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: StrictBool = False
    add_generation_prompt: StrictBool = True
    return_token_strs: Literal[False] = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Return the token ids."""
        if self.prompt is not None:
            return tokenizer.encode(self.prompt)
        template = None if self.chat_template_kwargs is None else self.chat_template_kwargs.enable_thinking
        names = {"enable_thinking": self.enable_thinking, "chat_template_kwargs.enable_thinking": template}
        enable = once(names, "enable_thinking", "the switch")
        return tokenizer.apply_chat_template(
            self.messages or [],
            tools=None if not self.tools else [tool.shown for tool in self.tools],
            add_generation_prompt=self.add_generation_prompt and not self.continue_final_message,
            continue_final_message=self.continue_final_message,
            enable_thinking=enable is not False,
            preserve_thinking=preserved(self.preserve_thinking, self.chat_template_kwargs),
            tokenize=True,
        )


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: StrictStr | None = None
    tokens: list[Id]


def preserved(own: bool | None, template: TemplateOptions | None) -> bool | None:
    names = {
        "preserve_thinking": own,
        "chat_template_kwargs.preserve_thinking": None if template is None else template.preserve_thinking,
    }
    return once(names, "preserve_thinking", "the switch")
