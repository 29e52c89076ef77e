"""The objects inside of a request's body, and what all of them have in common: fields that are known, and null as absent."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from qwen3_jax.errors import nearest
from qwen3_jax.serving.fields import Own, accepted


def _whole(value: Any) -> Any:
    """4.0 as 4: JSON has one kind of number, and some clients write all of them with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[StrictInt, BeforeValidator(_whole)]
Budget = Annotated[Whole, Field(ge=-1)]


class Strict(BaseModel):
    """An object whose fields are all known. Null is the same as an absent field, at every level."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, fields: Any) -> Any:
        return cls._known(fields) if isinstance(fields, Mapping) else fields

    @classmethod
    def _known(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that are not null; ValueError for one that there is not."""
        given, valid = {name: value for name, value in fields.items() if value is not None}, cls.names()
        for name in given:
            if name not in valid:
                raise ValueError(f"there is no field {name!r} in it.{nearest(name, sorted(valid))}")
        return given

    @classmethod
    def names(cls) -> set[str]:
        """The names of the fields, as they are in a body."""
        return {field.alias or name for name, field in cls.model_fields.items()}


class Body(Strict):
    """The body of a request, which may also have the fields of `fields`."""

    elsewhere: ClassVar[dict[str, str]] = {}  # fields of another route -> that route
    own: ClassVar[Own] = Own()

    @classmethod
    def _known(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        return accepted(fields, cls.names(), cls.elsewhere, cls.own)


class StreamOptions(Strict):
    """What a stream reports besides the answer.

    Attributes:
        include_usage: a last chunk with the token counts.
        continuous_usage_stats: the token counts so far in every chunk, as vLLM has them.
        include_obfuscation: random padding of OpenAI's chunks; only false.
    """

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False
    include_obfuscation: Literal[False] = False

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return self.include_usage or self.continuous_usage_stats


class JsonSchema(Strict):
    """A schema in OpenAI's form; always strict, whatever `strict` is."""

    name: StrictStr = "answer"
    description: StrictStr | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Strict):
    """The required form of the content: "text", "json_object" or "json_schema"."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' belongs to the type 'json_schema', which requires it")
        return self


class Named(Strict):
    """A name."""

    name: StrictStr


class NamedTool(Strict):
    """`tool_choice` with a name."""

    type: Literal["function"] = "function"
    function: Named


class Function(BaseModel):
    """A function that may be called; its parameters are a JSON schema."""

    model_config = ConfigDict(extra="allow")  # further fields are shown to the model

    name: Annotated[StrictStr, Field(min_length=1)]
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})

    @model_validator(mode="before")
    @classmethod
    def _without_parameters(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("parameters") not in (None, []):  # [] is PHP's empty object
            return value
        for name in ("input_schema", "inputSchema"):  # Anthropic's, MCP's
            if value.get(name):
                raise ValueError(f"it has {name!r}; name it 'parameters'")
        return {name: item for name, item in value.items() if name != "parameters"}


class Tool(BaseModel):
    """A tool; the model is shown it exactly as sent, because the order of its keys is part of the prompt."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function
    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _wrapped(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "name" in value and "function" not in value:
            form = "{'type': 'function', 'function': {'name', 'description', 'parameters'}}"
            raise ValueError(f"it is a function, or a tool of another API; the form here is {form}")
        return value

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


class TemplateOptions(Strict):
    """`chat_template_kwargs`, the spelling of vLLM and SGLang."""

    enable_thinking: StrictBool | None = None
    preserve_thinking: StrictBool | None = None
    thinking_budget: Budget | None = None


class CustomParams(Strict):
    """`custom_params`, the spelling of SGLang's logit processors."""

    thinking_budget: Budget | None = None


class Thinking(Strict):
    """`thinking`, the spelling of Anthropic's API: "adaptive" leaves it to the model."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Budget | None = None


class Reasoning(Strict):
    """`reasoning`, the spelling of OpenRouter's API."""

    enabled: StrictBool | None = None
    effort: StrictStr | None = None
    max_tokens: Budget | None = None
    exclude: Literal[False] = False
