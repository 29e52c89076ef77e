"""From options to a request: everything asked about a prompt is checked here, once, before anything runs.

    requests = resolve([{"role": "user", "content": "Hi"}], Options(thinking_budget=512), model, tokenizer)

`generate`, `stream`, the commands and the server all use `resolve`; engine, sampler and `Answer` read the same `Request`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from qwen3_jax.errors import RequestError
from qwen3_jax.generation.budget import ThinkingTokens, may_force
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.model import Qwen3
from qwen3_jax.text import STOP_TEXT, Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

DEFAULT_MAX_NEW_TOKENS = 32_768  # Qwen's recommendation for most queries


class Constraint(Protocol):
    """Which tokens may follow in one answer. It applies to neither thinking nor the stop text."""

    def allowed(self) -> np.ndarray:
        """Return uint32 [words]: bit t % 32 of word t // 32 is set if token t is allowed; at least one bit is set."""

    def take(self, token: int) -> None:
        """Advance by the answer's next token, one of those allowed."""


@dataclass(frozen=True)
class Request:
    """One answer to generate.

    Attributes:
        prompt: token ids, at least one.
        sampling: settings; fields that are None follow the model's generation_config. `n` is ignored.
        max_new_tokens: tokens after which the answer ends.
        eos: tokens that end it, at most `rows.MAX_EOS`.
        budget: thinking tokens allowed; None is unlimited.
        thinking: the prompt leaves `<think>` open.
        thinking_tokens: ids of the think tags and of the stop text.
        sample_index: which of the n answers to the prompt.
        constraint: restricts the answer outside thinking; belongs to this request alone. None allows every token.
        prompt_index: which prompt of the caller's list.
        tools: the tools of which calls are read, in OpenAI's form; empty leaves calls in the text.
        raw: leave think tags and tool calls in the text.
        continues_text: the prompt is a text or token ids, not messages; with `raw`, stop texts then act everywhere.
        one_call: end the answer with its first tool call.
        answering: the prompt has begun the answer, which therefore has no thinking: think tags in it are quoted.
        score_from: report the prompt's tokens from this one on, with their log probabilities and as many alternatives as
            `Sampling.logprobs` says, before the answer; None reports none. `max_new_tokens` may then be 0: no answer.
        adapter: which of the model's adapters (`Lora.names`) answers, counted from 1; 0 is the base model.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    budget: int | None = None
    thinking: bool = False
    thinking_tokens: ThinkingTokens = ThinkingTokens()  # noqa: RUF009 - frozen
    sample_index: int = 0
    constraint: Constraint | None = None
    prompt_index: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    raw: bool = False
    continues_text: bool = False
    one_call: bool = False
    answering: bool = False
    score_from: int | None = None
    adapter: int = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller may ask about one prompt: the arguments of `qwen3_jax.generate`, and those that only servers set.

    Attributes:
        constraint: makes the constraint of each answer's content, tool calls included.
        raw: leave think tags and tool calls in the text.
        one_call: end an answer with its first tool call.
        preserve_thinking: keep the thinking of earlier turns in the prompt; None is up to the template.
        fit_budget: lower a budget that leaves no room for an answer in max_new_tokens instead of refusing it.
        fit_limit: lower max_new_tokens to what the context holds after the prompt instead of refusing it.
        default_limit: upper bound of max_new_tokens when that is None.
        adapter: the name of one of the adapters that the model was loaded with; None is the model itself.
        echo: report the log probabilities of the prompt too, if `sampling.logprobs` is set; max_new_tokens may then be 0.

    Raises:
        RequestError: a value of the wrong type.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    continue_final_message: bool = False
    thinking_stop_text: str = STOP_TEXT
    constraint: Callable[[], Constraint] | None = None
    raw: bool = False
    one_call: bool = False
    preserve_thinking: bool | None = None
    fit_budget: bool = False
    fit_limit: bool = False
    default_limit: int | None = None
    echo: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[type, ...]] = dict(
            sampling=(Sampling,), enable_thinking=(bool, np.bool_), max_new_tokens=(int, np.integer),
            thinking_budget=(int, np.integer),
        )  # fmt: skip
        for name, kind in kinds.items():
            value, optional = getattr(self, name), kind[0] is not Sampling
            valid = isinstance(value, kind) and (kind[0] is bool or not isinstance(value, bool))
            reason = f"{name} is {value!r}; it must be {kind[0].__name__}{' or None' * optional}."
            require(valid or (optional and value is None), reason, name)


def resolve(
    prompt: Prompt,
    options: Options,
    model: Qwen3,
    tokenizer: Tokenizer | None,
    *,
    max_length: int | None = None,
    prompt_index: int = 0,
) -> list[Request]:
    """Check one prompt and its options; return a request for each of its n answers.

    Args:
        prompt: a text (continued as it is), token ids, or messages (the chat template is applied).
        model: gives the defaults, the vocabulary size and the context length.
        tokenizer: None is enough for token ids.
        max_length: most tokens of a prompt and its answer; None is the model's context length.

    Raises:
        RequestError: an unusable prompt or option.
        TextError: messages that the chat template refuses.
    """
    thinking_tokens = ThinkingTokens.of(tokenizer, options.thinking_stop_text)
    is_chat = _is_chat(prompt)
    # A constraint lets any end token follow what is complete, so that any of them has to end the answer.
    end = end_tokens(model, tokenizer, chat=is_chat or options.constraint is not None)
    require(not options.sampling.stop or tokenizer is not None, "sampling option 'stop' needs a tokenizer.", "stop")
    eos = end | _stop_tokens(options.sampling, model.config.vocab_size)
    enable, budget = _thinking(options, tokenizer, thinking_tokens)
    ids = _encode(prompt, options, tokenizer, enable)
    _check_ids(ids, model.config.vocab_size)
    context = max_length or model.config.max_position_embeddings
    limit = _limit(len(ids), options, model, context)
    place = thinking_tokens.place(ids, None if tokenizer is None else tokenizer.im_start_id)
    is_open = place == "thinking"
    budget = _usable_budget(budget, options, len(ids), limit, is_open, thinking_tokens, end, context)
    request = Request(
        tuple(ids), options.sampling, limit, eos, budget, is_open, thinking_tokens, prompt_index=prompt_index,
        tools=tuple(options.tools or ()), raw=options.raw, continues_text=not is_chat, one_call=options.one_call,
        answering=place == "answer", score_from=_score_from(len(ids), options), adapter=adapter_number(options.adapter, model),
    )  # fmt: skip
    make, samples = options.constraint, range(options.sampling.n)
    return [replace(request, sample_index=sample, constraint=None if make is None else make()) for sample in samples]


def with_budget(
    request: Request, options: Options, model: Qwen3, tokenizer: Tokenizer | None, *, max_length: int | None = None
) -> Request:
    """Return what `resolve` makes of the same prompt and options with another thinking budget, without rendering it again.

    Args:
        request: of options with a budget that is not 0, which asks for another prompt.
        options: with the budget, not 0 either.
        model, tokenizer, max_length: of `resolve`.

    Raises:
        RequestError: as `resolve`.
    """
    tokens, context = request.thinking_tokens, max_length or model.config.max_position_embeddings
    end = end_tokens(model, tokenizer, chat=not request.continues_text or options.constraint is not None)
    _, budget = _thinking(options, tokenizer, tokens)
    size, limit = len(request.prompt), request.max_new_tokens
    return replace(request, budget=_usable_budget(budget, options, size, limit, request.thinking, tokens, end, context))


def _usable_budget(
    budget: int | None, options: Options, prompt_tokens: int, limit: int, is_open: bool, tokens: ThinkingTokens,
    end: frozenset[int], context: int,
) -> int | None:  # fmt: skip
    """Check the stop text and return the budget, lowered if that was asked for and is needed."""
    if options.thinking_stop_text != STOP_TEXT or may_force(budget, is_open):
        _check_stop_text(options.thinking_stop_text, tokens, end)
    if limit == 0:
        return budget
    return checked_budget(
        budget, limit, len(tokens.stop), is_open, fit=options.fit_budget, room=context - prompt_tokens
    )


def _check_stop_text(text: str, tokens: ThinkingTokens, end: frozenset[int]) -> None:
    """Refuse a stop text that cannot be forced: the caller's own, or the default one where a budget may force it."""
    tokens.check_stop()
    reason = f"the thinking stop text {text!r} contains a token that ends the answer."
    require(not end.intersection(tokens.stop), reason, "thinking_stop_text")


def end_tokens(model: Qwen3, tokenizer: Tokenizer | None, *, chat: bool = False) -> frozenset[int]:
    """Return the tokens that end an answer: from generation_config.json, else config.json, else the tokenizer.

    chat: for messages; the token with which the chat template ends an answer is one of them, whatever those files say
    (a base model that was trained on chats often keeps its own end token there).
    """
    ids = model.generation_config.eos_token_id or model.config.eos_token_ids
    if not ids and tokenizer is not None and tokenizer.eos_token_id is not None:
        ids = (tokenizer.eos_token_id,)
    if chat and tokenizer is not None and tokenizer.end_of_turn_id is not None:
        ids = (*ids, tokenizer.end_of_turn_id)
    return frozenset(ids)


def adapter_number(name: str | None, model: Qwen3) -> int:
    """Return the number of an adapter that a model was loaded with, counted from 1; 0 for None, the model itself.

    Raises:
        RequestError: the model has no adapter of that name.
    """
    if name is None:
        return 0
    names = () if model.lora is None else model.lora.names
    has = f"it has {', '.join(map(repr, names))}" if names else "it was loaded without any by name"
    require(name in names, f"the model has no adapter {name!r}; {has}.", "adapter")
    return names.index(name) + 1


def _stop_tokens(sampling: Sampling, vocabulary: int) -> frozenset[int]:
    largest = max(sampling.stop_token_ids, default=0)
    reason = f"sampling option 'stop_token_ids' has token {largest}; the last one is {vocabulary - 1}."
    require(largest < vocabulary, reason, "stop_token_ids")
    return frozenset(sampling.stop_token_ids)


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and is_message(prompt[0])


def is_message(value: Any) -> bool:
    """Whether a value is a message: an object, or a pydantic model as the openai package returns it."""
    return isinstance(value, Mapping) or hasattr(value, "model_dump")


def checked_budget(
    budget: int | None, limit: int, stop_tokens: int, is_open: bool, *, fit: bool = False, room: int | None = None
) -> int | None:
    """Return the budget if it leaves room for the stop text and one token of the answer; `fit` lowers it until it does.

    Args:
        budget: thinking tokens allowed; None is unlimited.
        limit: max_new_tokens.
        stop_tokens: length of the stop text.
        is_open: the prompt leaves `<think>` open; otherwise the answer has to begin with it.
        fit: lower the budget, to 0 at the least; where even that is too much, `limit` ends the answer.
        room: most tokens that max_new_tokens could be; None is any number.
    """
    reserved = stop_tokens + 1 + (not is_open)
    if budget is None or not may_force(budget, is_open) or budget + reserved <= limit:
        return budget
    largest = limit - reserved if is_open else max(limit - reserved, 0)
    if fit:
        return largest if 0 <= largest < budget else budget
    problem = (
        f"thinking_budget is {budget}; with the stop text ({stop_tokens} tokens) it leaves no room for an answer in"
    )
    if room is None or budget + reserved <= room:
        advice = f"max_new_tokens={limit}: set max_new_tokens to at least {budget + reserved}"
        advice += f", or the budget to at most {largest}" if largest >= 0 else ""
    else:
        advice = f"the {room} tokens that the context has after the prompt: "
        if largest >= 0:
            advice += f"set the budget to at most {largest}"
        elif room >= reserved:
            advice += f"set max_new_tokens to at least {reserved} and the budget to at most {room - reserved}"
        else:
            advice += "shorten the prompt"
    raise RequestError(f"{problem} {advice}.", "thinking_budget")


def _thinking(options: Options, tokenizer: Tokenizer | None, tokens: ThinkingTokens) -> tuple[bool | None, int | None]:
    """Reconcile the two switches; return (enable_thinking for the template, budget to enforce)."""
    enable, budget = options.enable_thinking, options.thinking_budget
    enable = None if enable is None else bool(enable)  # NumPy's False is not False
    if tokenizer is None:
        require(budget is None, f"thinking_budget is {budget}; it needs a tokenizer.", "thinking_budget")
        require(enable is None, f"enable_thinking is {enable}; it needs a tokenizer.", "enable_thinking")
        return None, None
    supported = tokenizer.supports_thinking
    if budget is not None:
        given = f"thinking_budget is {budget}"
        require(budget >= 0, f"{given}; it must be 0 or more, or None for unlimited.", "thinking_budget")
        require(supported, f"{given}, but this model does not think; leave it out.", "thinking_budget")
        both = f"enable_thinking={enable} and thinking_budget={budget} contradict each other; leave one of them out."
        require(enable is None or enable == (budget > 0), both, "thinking_budget")
    require(supported or not enable, "enable_thinking is True, but this model does not think.", "enable_thinking")
    if enable is False or budget == 0:
        return False, 0 if tokens.start >= 0 else None
    return enable, budget


def _encode(prompt: Any, options: Options, tokenizer: Tokenizer | None, enable: bool | None) -> list[int]:
    """Return the prompt's token ids, as yet unchecked."""
    if isinstance(prompt, np.ndarray) or hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    is_chat = _is_chat(prompt)
    is_text = isinstance(prompt, str)
    require(
        isinstance(prompt, Sequence) and not isinstance(prompt, bytes),
        f"a prompt is a text, token ids or messages; got {type(prompt).__name__}.", "prompt",
    )  # fmt: skip
    if tokenizer is None:
        require(not is_chat and not is_text, "the prompt is text, which needs a tokenizer; give token ids.", "prompt")
    elif is_chat:
        return tokenizer.apply_chat_template(
            prompt,
            tools=options.tools,
            add_generation_prompt=not options.continue_final_message,
            enable_thinking=enable is not False,
            continue_final_message=options.continue_final_message,
            preserve_thinking=options.preserve_thinking,
            tokenize=True,
        )
    for name in ("tools", "continue_final_message", "preserve_thinking"):
        kind = "text" if is_text else "token ids"
        require(not getattr(options, name), f"{name} needs messages; the prompt is {kind}.", name)
    return tokenizer.encode(prompt) if is_text and tokenizer is not None else list(prompt)


def _check_ids(ids: list[int], vocabulary: int) -> None:
    require(len(ids) > 0, "the prompt is empty.", "prompt")
    reason = why_not_ids(ids, vocabulary)
    require(reason is None, reason or "", "prompt")


def why_not_ids(ids: Sequence[Any], vocabulary: int) -> str | None:
    """Return what is wrong with token ids, naming the first that is not in the vocabulary; None if all are."""
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < vocabulary:
            return f"{token!r} is not a token id; they are whole numbers from 0 to {vocabulary - 1}."
    return None


def check_batch_size(batch_size: Any, has_engine: bool) -> None:
    """Refuse a batch size that is no number of rows, or is given beside an engine, which has its own rows.

    Raises:
        RequestError: says which.
    """
    is_number = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    is_valid = batch_size is None or (is_number and batch_size >= 1)
    require(is_valid, f"batch_size is {batch_size!r}; it must be 1 or more, or None.", "batch_size")
    reason = f"batch_size is {batch_size}, but the given engine has its own; leave it out."
    require(batch_size is None or not has_engine, reason, "batch_size")


def _limit(prompt_tokens: int, options: Options, model: Qwen3, max_length: int) -> int:
    """Return max_new_tokens; prompt and answer must fit into `max_length` tokens."""
    context, limit = f"the maximum context length is {max_length} tokens", options.max_new_tokens
    least = 0 if options.echo and limit == 0 else 1
    if prompt_tokens + least > max_length:
        reason = (
            f"the prompt has {prompt_tokens} tokens; {context}" + ", and the answer needs at least one" * least + "."
        )
        raise RequestError(reason, "prompt", too_long=True)
    if limit is None:
        default = model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        return min(default, max_length - prompt_tokens, options.default_limit or default)
    require(limit >= least, f"max_new_tokens is {limit}; it must be 1 or more.", "max_new_tokens")
    room = max_length - prompt_tokens
    if limit > room:
        if options.fit_limit:
            return room
        reason = f"the prompt has {prompt_tokens} tokens and max_new_tokens is {limit}; {context}, which leaves {room}."
        raise RequestError(reason, "max_new_tokens", too_long=True)
    return limit


def _score_from(prompt_tokens: int, options: Options) -> int | None:
    """Return the first token of the prompt that is reported; past the last where only the text is repeated."""
    if not options.echo:
        return None
    return prompt_tokens if options.sampling.logprobs is None else 0


def require(condition: bool, reason: str, param: str) -> None:
    """Raise a `RequestError` unless a condition is met."""
    if not condition:
        raise RequestError(reason, param)
