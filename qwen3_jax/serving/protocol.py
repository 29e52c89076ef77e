"""The fields of a request: OpenAI's, those of vLLM and SGLang that Qwen's clients send, and the thinking budget.

Every field takes effect or is refused by name; `fields` lists those that a server of one model cannot act on, and the values
at which a field that is not supported changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from qwen3_jax.errors import RequestError
from qwen3_jax.generation import Constraint, Options, Sampling
from qwen3_jax.generation.sampling import MAX_LOGPROBS
from qwen3_jax.serving.objects import (
    Body,
    Budget,
    CustomParams,
    Function,
    NamedTool,
    Reasoning,
    ResponseFormat,
    StreamOptions,
    TemplateOptions,
    Thinking,
    Tool,
    Whole,
)
from qwen3_jax.text import Tokenizer

# reasoning_effort -> thinking budget; the report's figure 2 has the accuracy of budgets in this range.
EFFORTS: dict[str, int | None] = {
    "none": 0, "minimal": 512, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": None, "max": None,
}  # fmt: skip


def _not_zero(limit: int) -> int:
    if limit == 0:
        raise ValueError("an answer has at least one token; -1 is no limit")
    return limit


def _choice(value: Any) -> Any:
    """Refuse the forms that other APIs have for a choice, which the types below would not explain."""
    is_named = isinstance(value, Mapping) and isinstance(value.get("function"), Mapping)
    if not (value in (None, "auto", "none", "required") or is_named or isinstance(value, NamedTool)):
        form = "{'type': 'function', 'function': {'name': NAME}}"
        raise ValueError(
            f"it must be 'auto', 'none', 'required' or {form}; to allow some tools only, give these in 'tools'"
        )
    return value


Number = StrictInt | StrictFloat
Id = Annotated[Whole, Field(ge=0, lt=2**31)]
Texts = StrictStr | list[StrictStr]
Limit = Annotated[Whole, Field(ge=-1), AfterValidator(_not_zero)]
MakeConstraint = Callable[[], Constraint] | None
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


@dataclass(frozen=True)
class Defaults:
    """What a server adds to requests.

    Attributes:
        supports_thinking: of the model; an effort, which clients send to any model, has no effect without it.
        max_tokens: upper bound of the tokens of an answer; None is the room that the prompt leaves.
        thinking_budget: of requests that name none; None is unlimited.
        max_thinking_budget: upper bound of every budget; None is unlimited.
    """

    supports_thinking: bool = True
    max_tokens: int | None = None
    thinking_budget: int | None = None
    max_thinking_budget: int | None = None


class _Common(Body):
    """Fields of both chat and text completions."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    n: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Texts | None = None
    stop_token_ids: list[Id] | Id | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    custom_params: CustomParams | None = None
    response_format: ResponseFormat | None = None

    @property
    def budgets(self) -> dict[str, int | None]:
        """The thinking budget under each of its names."""
        custom = self.custom_params
        return {
            "thinking_budget": self.thinking_budget,
            "thinking_token_budget": self.thinking_token_budget,
            "custom_params.thinking_budget": None if custom is None else custom.thinking_budget,
        }

    @property
    def budget(self) -> int | None:
        """The thinking budget; None if absent, -1 for no limit."""
        return _once(self.budgets, "thinking_budget", "the thinking budget")

    def _thinking(self, defaults: Defaults, enable: bool | None, effort: str | None) -> dict[str, Any]:
        """Return the options of the thinking budget: the request's, else the server's, within the server's bound."""
        own = self.budget
        budget = None if own == -1 else own
        if own is None and defaults.supports_thinking and enable is not False:
            if effort is not None:
                budget = EFFORTS[effort]
            elif enable is None or defaults.thinking_budget != 0:
                budget = defaults.thinking_budget
        most = defaults.max_thinking_budget
        lowered = most is not None and enable is not False and (budget is None or budget > most)
        if lowered:
            if most == 0 and enable:
                raise RequestError("this server allows no thinking; leave 'enable_thinking' out.", "enable_thinking")
            budget = most
        return {"thinking_budget": budget, "fit_budget": own is None or lowered}

    def _most(self, limit: int | None, defaults: Defaults) -> dict[str, Any]:
        """Return the options of the limit, which is a cap: less is generated where less fits."""
        most = defaults.max_tokens
        limit = limit if limit is None or most is None else min(limit, most)
        return {"max_new_tokens": limit, "fit_limit": True, "default_limit": most}

    @property
    def prompts(self) -> list[Any]:
        """One entry per prompt."""
        raise NotImplementedError

    @property
    def answers(self) -> int:
        """How many answers the request asks for, over all its prompts."""
        return (self.n or 1) * len(self.prompts)

    def _sampling(self, logprobs: int | None) -> Sampling:
        ends = self.stop_token_ids or ()
        return Sampling(
            temperature=self.temperature, top_p=self.top_p, min_p=self.min_p, repetition_penalty=self.repetition_penalty,
            top_k=None if self.top_k is None else max(self.top_k, 0),  # -1 is "all" in vLLM
            presence_penalty=self.presence_penalty or 0.0, frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=_biases(self.logit_bias or {}), seed=None if self.seed is None else self.seed % 2**63,
            stop=() if self.stop is None else self.stop, stop_token_ids=(ends,) if isinstance(ends, int) else tuple(ends),
            logprobs=logprobs, n=self.n or 1,
        )  # fmt: skip


class ChatRequest(_Common):
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
        limit = _once(names, "max_tokens", "the limit")
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
        return _once(names, "enable_thinking", "the switch")

    @property
    def prompts(self) -> list[Any]:
        """The conversation, as a list of one prompt."""
        return [self.messages]

    def options(self, constraint: MakeConstraint, defaults: Defaults) -> Options:
        """Return the options of each prompt."""
        enable = self.switch
        effort = _once(self.efforts, "reasoning_effort", "the effort")
        return Options(
            sampling=self._sampling((self.top_logprobs or 0) if self.logprobs else None),
            **self._most(self.limit, defaults),
            **self._thinking(defaults, enable, effort),
            enable_thinking=enable,
            preserve_thinking=_preserved(self.preserve_thinking, self.chat_template_kwargs),
            tools=self.shown_tools,
            continue_final_message=bool(self.continue_final_message),
            constraint=constraint,
            raw=self.separate_reasoning is False,
            one_call=self.parallel_tool_calls is False,
        )


class CompletionRequest(_Common):
    """POST /v1/completions: a text, or token ids, is continued as it is."""

    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(
        (name for name in ChatRequest.model_fields if name not in _Common.model_fields and name != "logprobs"),
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
        enable = _once(names, "enable_thinking", "the switch")
        return tokenizer.apply_chat_template(
            self.messages or [],
            tools=None if not self.tools else [tool.shown for tool in self.tools],
            add_generation_prompt=self.add_generation_prompt and not self.continue_final_message,
            continue_final_message=self.continue_final_message,
            enable_thinking=enable is not False,
            preserve_thinking=_preserved(self.preserve_thinking, self.chat_template_kwargs),
            tokenize=True,
        )


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: StrictStr | None = None
    tokens: list[Id]


T = TypeVar("T")


def _once(names: Mapping[str, T | None], param: str, what: str) -> T | None:
    """Return the value that is given under one or several names; None if there is none.

    Raises:
        RequestError: the values differ.
    """
    given = {name: value for name, value in names.items() if value is not None}
    if len(set(given.values())) > 1:
        texts = " and ".join(f"{name}={value}" for name, value in given.items())
        raise RequestError(f"the request has {texts}; give {what} once.", param)
    return next(iter(given.values()), None)


def _preserved(own: bool | None, template: TemplateOptions | None) -> bool | None:
    names = {
        "preserve_thinking": own,
        "chat_template_kwargs.preserve_thinking": None if template is None else template.preserve_thinking,
    }
    return _once(names, "preserve_thinking", "the switch")


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    biases = {}
    for text, bias in given.items():
        if not text.isascii() or not text.isdecimal():
            reason = f"'logit_bias' has the key {text!r}; its keys are token ids."
            raise RequestError(reason, "logit_bias")
        biases[int(text)] = bias
    return biases
