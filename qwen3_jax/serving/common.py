"""What the requests of all routes that answer have in common: sampling, the thinking budget, and a server's defaults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from qwen3_jax.errors import RequestError
from qwen3_jax.generation import Constraint, Sampling
from qwen3_jax.serving.objects import Body, Budget, CustomParams, ResponseFormat, StreamOptions, Whole

# reasoning_effort -> thinking budget; the report's figure 2 has the accuracy of budgets in this range.
EFFORTS: dict[str, int | None] = {
    "none": 0, "minimal": 512, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": None, "max": None,
}  # fmt: skip


def _not_zero(limit: int) -> int:
    if limit == 0:
        raise ValueError("an answer has at least one token; -1 is no limit")
    return limit


Number = StrictInt | StrictFloat
Id = Annotated[Whole, Field(ge=0, lt=2**31)]
Texts = StrictStr | list[StrictStr]
Limit = Annotated[Whole, Field(ge=-1), AfterValidator(_not_zero)]
MakeConstraint = Callable[[], Constraint] | None


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


class Sampled(Body):
    """Fields of every route that answers."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    stop_token_ids: list[Id] | Id | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    custom_params: CustomParams | None = None


class Common(Sampled):
    """Fields of both chat and text completions, and the options of `resolve` that come of them."""

    fits_budget: ClassVar[bool] = False  # a budget is a cap, which is lowered where it leaves no room for an answer

    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    n: Annotated[Whole, Field(ge=1)] | None = None
    stop: Texts | None = None
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
        return once(self.budgets, "thinking_budget", "the thinking budget")

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
        return {"thinking_budget": budget, "fit_budget": own is None or lowered or self.fits_budget}

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


T = TypeVar("T")


def once(names: Mapping[str, T | None], param: str, what: str) -> T | None:
    """Return the value that is given under one or several names; None if it is absent.

    Raises:
        RequestError: the values differ.
    """
    given = {name: value for name, value in names.items() if value is not None}
    if len(set(given.values())) > 1:
        texts = " and ".join(f"{name}={value}" for name, value in given.items())
        raise RequestError(f"the request has {texts}; give {what} once.", param)
    return next(iter(given.values()), None)


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    biases = {}
    for text, bias in given.items():
        if not text.isascii() or not text.isdecimal():
            reason = f"'logit_bias' has the key {text!r}; its keys are token ids."
            raise RequestError(reason, "logit_bias")
        biases[int(text)] = bias
    return biases
