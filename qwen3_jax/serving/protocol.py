"""The fields of a request: OpenAI's, those of vLLM and SGLang that Qwen's clients send, and the thinking budget.

Every field takes effect, is refused by name, or is listed in `IGNORED`: fields that clients send to any server, and that a
server of one model cannot act on. docs/serving.md prints the same lists.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from qwen3_jax.errors import RequestError, nearest
from qwen3_jax.generation import Constraint, Options, Sampling
from qwen3_jax.generation.sampling import MAX_LOGPROBS
from qwen3_jax.text import Tokenizer

IGNORED = {
    "user": "identifies the end user",
    "metadata": "is for OpenAI's dashboard",
    "store": "is for OpenAI's dashboard",
    "service_tier": "selects one of OpenAI's prices",
    "safety_identifier": "identifies the end user",
    "prompt_cache_key": "routes to one of several caches; this server has one",
    "prompt_cache_retention": "keeps a cache; here pages are evicted when space is needed",
    "verbosity": "is for models that were trained for it",
}
REFUSED = {
    "functions": "use 'tools'",
    "function_call": "use 'tool_choice'",
    "best_of": "use 'n' and choose among the answers",
    "use_beam_search": "answers are sampled; use 'n'",
    "echo": "prepend the prompt yourself",
    "suffix": "the model was not trained to fill in the middle",
    "audio": "the model reads and writes text only",
    "modalities": "the model reads and writes text only",
    "prediction": "start the server with --lookup N instead",
    "web_search_options": "pass a search function in 'tools'",
    "guided_json": "use 'response_format'",
    "guided_regex": "use 'response_format'",
    "guided_choice": "use 'response_format' with an enum",
    "guided_grammar": "use 'response_format'",
    "structured_outputs": "use 'response_format'",
    "ignore_eos": "set a 'logit_bias' of -100 on the end token",
    "min_tokens": "set a 'logit_bias' of -100 on the end token",
    "length_penalty": "answers are sampled; use 'n'",
    "prompt_logprobs": "only generated tokens have log probabilities",
    "lora_path": "start a server with the merged weights",
    "chat_template": "start the server with a checkpoint that contains the template",
}
# reasoning_effort -> thinking budget; the report's figure 2 has the accuracy of budgets in this range.
EFFORTS: dict[str, int | None] = {"none": 0, "minimal": 512, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": None}

Number = StrictInt | StrictFloat
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Texts = StrictStr | list[StrictStr]
MakeConstraint = Callable[[], Constraint] | None
# For the API's description only: the chat template checks messages.
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "user", "assistant", "tool"]},
        "content": {"type": "string"},
        "reasoning_content": {"type": "string"},
    },
    "required": ["role", "content"],
}
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, json_schema_extra={"items": _MESSAGE})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """`include_usage`: a last chunk with the token counts."""

    include_usage: StrictBool = False


class JsonSchema(_Strict):
    """A schema in OpenAI's form; always strict, whatever `strict` is."""

    name: StrictStr = "answer"
    description: StrictStr | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(_Strict):
    """The required form of the content: "text", "json_object" or "json_schema"."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' belongs to the type 'json_schema', which requires it")
        return self


class Named(_Strict):
    name: StrictStr


class NamedTool(_Strict):
    """`tool_choice` with a name."""

    type: Literal["function"] = "function"
    function: Named


class Function(BaseModel):
    """A function that may be called; its parameters are a JSON schema."""

    model_config = ConfigDict(extra="allow")  # further fields are shown to the model

    name: StrictStr
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class Tool(BaseModel):
    """A tool; the model is shown it exactly as sent, because the order of its keys is part of the prompt."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function
    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: Any) -> "Tool":
        tool = handler(value)
        tool._sent = value
        return tool

    @property
    def shown(self) -> dict[str, Any]:
        """The tool as the client sent it."""
        return self._sent


class TemplateOptions(_Strict):
    """`chat_template_kwargs`, the spelling of vLLM and SGLang."""

    enable_thinking: StrictBool | None = None


class CustomParams(_Strict):
    """`custom_params`, the spelling of SGLang's logit processors."""

    thinking_budget: Annotated[StrictInt, Field(ge=-1)] | None = None


class _Common(_Strict):
    """Fields of both chat and text completions."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Texts | None = None
    thinking_budget: Annotated[StrictInt, Field(ge=-1)] | None = None
    thinking_token_budget: Annotated[StrictInt, Field(ge=-1)] | None = None
    custom_params: CustomParams | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        valid = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in fields.items():
            if name in valid or name in IGNORED or value is None:
                continue
            if name in REFUSED:
                raise ValueError(f"the field {name!r} is not supported: {REFUSED[name]}")
            raise ValueError(f"there is no field {name!r}.{nearest(name, sorted(valid))}")
        return {name: value for name, value in fields.items() if name in valid}

    @property
    def budget(self) -> int | None:
        """The thinking budget under any of its names; None if absent, -1 for no limit."""
        spellings = {
            "thinking_budget": self.thinking_budget,
            "thinking_token_budget": self.thinking_token_budget,
            "custom_params.thinking_budget": None if self.custom_params is None else self.custom_params.thinking_budget,
        }
        given = {name: value for name, value in spellings.items() if value is not None}
        if len(set(given.values())) > 1:
            texts = " and ".join(f"{name}={value}" for name, value in given.items())
            raise RequestError(f"the request has {texts}; give the thinking budget once.", "thinking_budget")
        return next(iter(given.values()), None)

    @property
    def prompts(self) -> list[Any]:
        """One entry per prompt."""
        raise NotImplementedError

    @property
    def answers(self) -> int:
        """How many answers the request asks for, over all its prompts."""
        return (self.n or 1) * len(self.prompts)

    def _sampling(self, logprobs: int | None) -> Sampling:
        return Sampling(
            temperature=self.temperature, top_p=self.top_p, min_p=self.min_p, repetition_penalty=self.repetition_penalty,
            top_k=None if self.top_k is None else max(self.top_k, 0),  # -1 is "all" in vLLM
            presence_penalty=self.presence_penalty or 0.0, frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=_biases(self.logit_bias or {}), seed=None if self.seed is None else self.seed % 2**63,
            stop=() if self.stop is None else self.stop, logprobs=logprobs, n=self.n or 1,
        )  # fmt: skip


class ChatRequest(_Common):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    enable_thinking: StrictBool | None = None
    reasoning_effort: StrictStr | None = None
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: StrictBool | None = None
    add_generation_prompt: StrictBool | None = None
    separate_reasoning: StrictBool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            raise ValueError(f"'reasoning_effort' is {self.reasoning_effort!r}; it must be one of {list(EFFORTS)}")
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(self.continue_final_message):
            raise ValueError("'add_generation_prompt' must be the opposite of 'continue_final_message'; leave it out")
        if self.continue_final_message and self.messages[-1].get("role") != "assistant":
            raise ValueError("'continue_final_message' needs an assistant message at the end")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"'tool_choice' names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("'tool_choice' is 'required', but there are no tools")
        if self.response_format is not None and self.response_format.type != "text" and self.forced_tools:
            raise ValueError("'response_format' and a 'tool_choice' that forces a call exclude each other")
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
    def limit(self) -> int | None:
        """Most tokens of an answer."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ; give one of them.", "max_tokens")
        return self.max_tokens or self.max_completion_tokens

    @property
    def prompts(self) -> list[Any]:
        """The conversation, as a list of one prompt."""
        return [self.messages]

    def options(self, constraint: MakeConstraint, supports_thinking: bool, default_limit: int | None) -> Options:
        """Return the options of each prompt. An effort, which clients send to any model, needs `supports_thinking`."""
        template = None if self.chat_template_kwargs is None else self.chat_template_kwargs.enable_thinking
        switches = {self.enable_thinking, template} - {None}
        if len(switches) > 1:
            reason = "enable_thinking and chat_template_kwargs.enable_thinking differ; give one of them."
            raise RequestError(reason, "enable_thinking")
        enable, budget = next(iter(switches), None), self.budget
        if budget is None and self.reasoning_effort is not None and supports_thinking and enable is not False:
            budget = EFFORTS[self.reasoning_effort]
        return Options(
            sampling=self._sampling((self.top_logprobs or 0) if self.logprobs else None),
            max_new_tokens=self.limit,
            default_limit=default_limit,
            enable_thinking=enable,
            thinking_budget=None if budget == -1 else budget,
            fit_budget=self.budget is None,
            tools=self.shown_tools,
            continue_final_message=bool(self.continue_final_message),
            constraint=constraint,
            raw=self.separate_reasoning is False,
            one_call=self.parallel_tool_calls is False,
        )


class CompletionRequest(_Common):
    """POST /v1/completions: a text, or token ids, is continued as it is."""

    forced_tools: ClassVar[list[Function]] = []
    parallel_tool_calls: ClassVar[None] = None

    prompt: StrictStr | list[StrictStr] | list[Id] | list[list[Id]]
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts or lists of token ids."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        return list(self.prompt)

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_tokens

    def options(self, constraint: MakeConstraint, supports_thinking: bool, default_limit: int | None) -> Options:
        """Return the options of each prompt, as `ChatRequest.options` does."""
        return Options(
            sampling=self._sampling(self.logprobs),
            max_new_tokens=self.max_tokens,
            default_limit=default_limit,
            thinking_budget=None if self.budget == -1 else self.budget,
            constraint=constraint,
            raw=True,
        )


class TokenizeRequest(_Strict):
    """POST /tokenize: a text, or a conversation after the chat template."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Messages | None = None
    tools: list[Tool] | None = None
    enable_thinking: StrictBool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: StrictBool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Return the token ids."""
        if self.prompt is not None:
            return tokenizer.encode(self.prompt)
        template = self.chat_template_kwargs
        enable = self.enable_thinking if template is None else template.enable_thinking
        return tokenizer.apply_chat_template(
            self.messages or [],
            tools=None if not self.tools else [tool.shown for tool in self.tools],
            add_generation_prompt=not self.continue_final_message,
            continue_final_message=self.continue_final_message,
            enable_thinking=enable is not False,
            tokenize=True,
        )


class DetokenizeRequest(_Strict):
    """POST /detokenize."""

    model: StrictStr | None = None
    tokens: list[Id]


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    biases = {}
    for text, bias in given.items():
        if not text.isascii() or not text.isdecimal():
            reason = f"'logit_bias' has the key {text!r}; its keys are token ids."
            raise RequestError(reason, "logit_bias")
        biases[int(text)] = bias
    return biases
