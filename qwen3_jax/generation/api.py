"""`generate` and `stream`: prompts in, answers out. Both sit on one `Engine`.

    out = qwen3_jax.generate(model, tok, [[{"role": "user", "content": "What is 7 * 8?"}]], thinking_budget=512)
    out[0].thinking, out[0].content, out[0].usage.thinking_tokens

    for delta in qwen3_jax.stream(model, tok, [{"role": "user", "content": "Hi"}]):
        print(delta.text, end="", flush=True)

Everything about a request is checked before anything runs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.generation.answer import Answer, Delta, Generation
from qwen3_jax.generation.budget import ThinkingTokens
from qwen3_jax.generation.engine import Engine
from qwen3_jax.generation.requests import Constraint, Request
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import STOP_TEXT, Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
T = TypeVar("T")
PerRow: TypeAlias = T | Sequence[T]

DEFAULT_ROWS = 32  # answers decoded together
DEFAULT_MAX_NEW_TOKENS = 32_768  # Qwen's recommendation for most queries


def generate(
    model: Qwen3 | Engine,
    tokenizer: Tokenizer | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    sampling: PerRow[Sampling] | None = None,
    max_new_tokens: PerRow[int | None] = None,
    enable_thinking: PerRow[bool | None] = None,
    thinking_budget: PerRow[int | None] = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    thinking_stop_text: str = STOP_TEXT,
    batch_size: int | None = None,
    progress: bool | None = False,
) -> list[Generation]:
    """Answer every prompt.

    `sampling`, `max_new_tokens`, `enable_thinking` and `thinking_budget` may be lists with one entry per prompt.

    Args:
        model: from `qwen3_jax.load`, on any mesh; or an engine around it, whose cache then goes on from call to call.
        tokenizer: its tokenizer; None is enough for prompts of token ids, and leaves the texts empty.
        prompts: a list of texts (continued as they are), of token-id lists, or of message lists (the chat template is
            applied). A single prompt is taken as a list of one.
        sampling: see `Sampling`; None, and fields that are None, follow the checkpoint's generation_config.json.
        max_new_tokens: most tokens of an answer; None is generation_config.json's, else 32,768 or what the context holds.
        enable_thinking: False tells the model not to think, True or None leaves it to the template and soft switches.
        thinking_budget: most thinking tokens of an answer (see `qwen3_jax.generation.budget`); None is unlimited, 0 is
            the same as `enable_thinking=False`.
        tools: functions that the model may call, as JSON schemas in OpenAI's form; calls come back as `tool_calls`.
        continue_final_message: the last message is an unfinished answer that the model goes on with.
        thinking_stop_text: what is inserted at the budget; holds `</think>` once.
        batch_size: answers decoded together, at most; None is 32, or what the given engine has.
        progress: draw a bar over the answers; None draws it on a terminal.

    Returns:
        One result per prompt, in order.

    Raises:
        UserError: an unusable prompt or option, by name; a budget that is negative, on a model without thinking, or too
            close to max_new_tokens to leave room for an answer; a prompt beyond the context.
    """
    each = _Each(sampling, max_new_tokens, enable_thinking, thinking_budget)
    shared = _Shared(tools, continue_final_message, thinking_stop_text)
    engine, requests = _plan(model, tokenizer, prompts, each, shared, batch_size)
    results: dict[tuple[int, int], Generation] = {}
    with progress_bar("generating", len(requests), visible=progress) as bar:
        for delta in _run(engine, requests):
            if delta.result is not None:
                results[delta.index, delta.sample] = delta.result
                bar.advance()
    out = []
    for index in sorted({index for index, _ in results}):
        first, *others = [results[key] for key in sorted(results) if key[0] == index]
        out.append(dataclasses.replace(first, others=tuple(others)))
    return out


def stream(
    model: Qwen3 | Engine,
    tokenizer: Tokenizer | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    sampling: PerRow[Sampling] | None = None,
    max_new_tokens: PerRow[int | None] = None,
    enable_thinking: PerRow[bool | None] = None,
    thinking_budget: PerRow[int | None] = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    thinking_stop_text: str = STOP_TEXT,
    batch_size: int | None = None,
) -> Iterator[Delta]:
    """Like `generate`, but yield typed deltas as they come; each answer closes with a delta of kind "end".

    Requests are checked at the call, before the first delta is asked for.
    """
    each = _Each(sampling, max_new_tokens, enable_thinking, thinking_budget)
    shared = _Shared(tools, continue_final_message, thinking_stop_text)
    engine, requests = _plan(model, tokenizer, prompts, each, shared, batch_size)
    return _run(engine, requests)


def prepare(
    engine: Engine,
    tokenizer: Tokenizer | None,
    prompt: Prompt,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    max_new_tokens: int | None = None,
    enable_thinking: bool | None = None,
    thinking_budget: int | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    thinking_stop_text: str = STOP_TEXT,
    constraint: Callable[[], Constraint] | None = None,
    raw: bool = False,
    one_call: bool = False,
    fit_budget: bool = False,
    most_new_tokens: int | None = None,
) -> list[tuple[Request, Answer]]:
    """Check one prompt and return what to submit for each of its n answers, and what to add the tokens to.

    For whoever runs an engine's steps by himself, such as a server; arguments as for `generate`, and:

    Args:
        constraint: makes what each answer's content is held to, tool calls included.
        raw: think tags and tool calls are text like any other.
        one_call: an answer ends with its first tool call.
        most_new_tokens: what no answer may exceed that does not say how long it is to be.
        fit_budget: a budget that leaves no room for an answer in max_new_tokens is lowered, where it can be, and not refused.

    Raises:
        UserError: as `generate`.
    """
    each = _Each(sampling, max_new_tokens, enable_thinking, thinking_budget)
    shared = _Shared(
        tools, continue_final_message, thinking_stop_text,
        constraint=constraint, raw=raw, one_call=one_call, fit_budget=fit_budget, most_new_tokens=most_new_tokens,
    )  # fmt: skip
    try:
        return _plan(engine, tokenizer, [prompt], each, shared)[1]
    except UserError as error:  # there is but one
        raise UserError(str(error).replace(" of prompt 0", "").replace("prompt 0", "the prompt")) from None


def _run(engine: Engine, requests: list[tuple[Request, Answer]]) -> Iterator[Delta]:
    """Answer all; what is left is cancelled when the caller stops early."""
    if engine.busy:
        raise UserError(
            "the engine is busy with other requests; finish or close their stream first, or use Engine.submit."
        )
    answers = {engine.submit(request): answer for request, answer in requests}
    try:
        while answers:
            for token in engine.step():
                answer = answers.get(token.number)
                if answer is None:
                    continue  # past a stop text
                yield from answer.add(token)
                if answer.result is not None:
                    del answers[token.number]
                    engine.cancel(token.number)  # a stop text ends it here; the engine knows of the other ends
    finally:
        for number in answers:
            engine.cancel(number)


@dataclass(frozen=True)
class _Each:
    """What each prompt may have its own of; see `generate`."""

    sampling: PerRow[Sampling] | None
    max_new_tokens: PerRow[int | None]
    enable_thinking: PerRow[bool | None]
    thinking_budget: PerRow[int | None]


@dataclass(frozen=True)
class _Shared:
    """What all prompts of a call have in common; see `generate` and `prepare`."""

    tools: Sequence[Mapping[str, Any]] | None
    continue_final_message: bool
    thinking_stop_text: str
    constraint: Callable[[], Constraint] | None = None
    raw: bool = False
    one_call: bool = False
    fit_budget: bool = False
    most_new_tokens: int | None = None


def _plan(
    model: Qwen3 | Engine,
    tokenizer: Tokenizer | None,
    prompts: Any,
    each: _Each,
    shared: _Shared,
    batch_size: int | None = None,
) -> tuple[Engine, list[tuple[Request, Answer]]]:
    """Check everything and lay out the requests."""
    whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= 1):
        raise UserError(f"batch_size is {batch_size!r}; it must be 1 or more, or None.")
    engine = None
    if isinstance(model, Engine):
        if batch_size is not None:
            raise UserError(f"batch_size is {batch_size}, but the given engine has its own; leave it out.")
        engine, model = model, model.model
    prompts = _as_prompts(prompts)
    count = len(prompts)
    sampling_rows = _per_row("sampling", Sampling() if each.sampling is None else each.sampling, count)
    max_rows = _per_row("max_new_tokens", each.max_new_tokens, count)
    enable_rows = _per_row("enable_thinking", each.enable_thinking, count)
    budget_rows = _per_row("thinking_budget", each.thinking_budget, count)
    tokens = ThinkingTokens.of(tokenizer, shared.thinking_stop_text, tools=bool(shared.tools))
    eos = end_tokens(model, tokenizer)
    if eos.intersection(tokens.stop):
        raise UserError(f"the thinking stop text {shared.thinking_stop_text!r} holds a token that ends the answer.")
    rows: list[tuple[int, list[int], Sampling, int | None, int | None]] = []
    for index, prompt in enumerate(prompts):
        enable, budget = _thinking(index, tokenizer, tokens, enable_rows[index], budget_rows[index])
        ids = _encode(index, prompt, tokenizer, shared.tools, enable, shared.continue_final_message)
        _check_ids(index, ids, model.config.vocab_size)
        resolved = sampling_rows[index].resolve(model.generation_config)
        if resolved.stop and tokenizer is None:
            raise UserError("sampling option 'stop' needs a tokenizer, and there is none.")
        rows.append((index, ids, resolved, max_rows[index], budget))
    if engine is None:
        for index, ids, _, wanted, _ in rows:
            _limit(index, len(ids), wanted, model, model.config.max_position_embeddings)
        engine = Engine(model, rows=min(sum(resolved.n for _, _, resolved, _, _ in rows), batch_size or DEFAULT_ROWS))
    requests = []
    header = None if tokenizer is None else tokenizer.im_start_id
    for index, ids, resolved, wanted, budget in rows:
        limit = _limit(index, len(ids), wanted, model, engine.max_length, shared.most_new_tokens)
        is_open = tokens.is_open(ids, header)
        if shared.fit_budget and budget is not None and budget > 0:
            budget = max(min(budget, limit - _room(tokens, is_open)), 0)
        _check_room(index, budget, limit, tokens, is_open)
        for sample in range(resolved.n):
            held = None if shared.constraint is None else shared.constraint()
            request = Request(tuple(ids), resolved, limit, eos, budget, is_open, tokens, sample, held)
            answer = Answer(
                tokenizer, len(ids), limit, eos, tuple(resolved.stop), is_open, bool(shared.tools), resolved.logprobs,
                shared.raw, shared.one_call, index, sample,
            )  # fmt: skip
            requests.append((request, answer))
    return engine, requests


def _as_prompts(prompts: Any) -> list[Any]:
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray) or hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes) or len(prompts) == 0:
        raise UserError("prompts must be a non-empty list of texts, token-id lists or message lists.")
    if isinstance(prompts[0], (Mapping, int, np.integer)) and not isinstance(prompts[0], bool):
        return [prompts]  # one conversation, or one prompt of token ids
    return list(prompts)


def _per_row(name: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        value = [value] * count
    if len(value) != count:
        raise UserError(f"{name} has {len(value)} entries for {count} prompts.")
    kinds: dict[str, tuple[type, ...]] = {
        "sampling": (Sampling,),
        "max_new_tokens": (int, np.integer),
        "enable_thinking": (bool, np.bool_),
        "thinking_budget": (int, np.integer),
    }
    for item in value:
        if item is None and name != "sampling":
            continue
        if not isinstance(item, kinds[name]) or (isinstance(item, bool) and name != "enable_thinking"):
            raise UserError(
                f"{name} is {item!r}; it must be {kinds[name][0].__name__}{' or None' * (name != 'sampling')}."
            )
    return list(value)


def _thinking(
    index: int, tokenizer: Tokenizer | None, tokens: ThinkingTokens, enable: bool | None, budget: int | None
) -> tuple[bool | None, int | None]:
    """Reconcile the two switches: (what the template is told, what the step enforces)."""
    if tokenizer is None:
        for name, value in (("thinking_budget", budget), ("enable_thinking", enable)):
            if value is not None:
                raise UserError(f"{name} of prompt {index} is {value}; it needs a tokenizer, and there is none.")
        return None, None
    supported = tokenizer.supports_thinking
    if budget is not None:
        if budget < 0:
            raise UserError(
                f"thinking_budget of prompt {index} is {budget}; it must be 0 or more, or None for unlimited."
            )
        if not supported:
            raise UserError(
                f"thinking_budget of prompt {index} is {budget}, but this model does not think: its chat template "
                "never opens <think>. Leave thinking_budget out."
            )
        if enable is False and budget > 0:
            raise UserError(
                f"prompt {index} has enable_thinking=False and thinking_budget={budget}; leave one of them out."
            )
    if enable is True and not supported:
        raise UserError(f"prompt {index} has enable_thinking=True, but this model does not think.")
    if enable is True and budget == 0:
        raise UserError(f"prompt {index} has enable_thinking=True and thinking_budget=0; leave one of them out.")
    if enable is False or budget == 0:
        return False, 0 if tokens.start >= 0 else None
    return enable, budget


def _encode(
    index: int,
    prompt: Any,
    tokenizer: Tokenizer | None,
    tools: Sequence[Mapping[str, Any]] | None,
    enable: bool | None,
    continue_final_message: bool,
) -> list[int]:
    if isinstance(prompt, np.ndarray) or hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    is_chat = isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if (is_chat or isinstance(prompt, str)) and tokenizer is None:
        raise UserError(f"prompt {index} is text, and there is no tokenizer; give token ids.")
    if is_chat:
        assert tokenizer is not None
        return tokenizer.apply_chat_template(
            prompt,
            tools=tools,
            add_generation_prompt=not continue_final_message,
            enable_thinking=enable is not False,
            continue_final_message=continue_final_message,
            tokenize=True,
        )
    for name, given in (("tools", tools), ("continue_final_message", continue_final_message)):
        if given:
            raise UserError(f"{name} needs messages; prompt {index} is {'text' if isinstance(prompt, str) else 'ids'}.")
    if isinstance(prompt, str):
        assert tokenizer is not None
        return tokenizer.encode(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise UserError(f"prompt {index} is {type(prompt).__name__}; give a text, token ids or messages.")
    return list(prompt)


def _check_ids(index: int, ids: list[int], vocabulary: int) -> None:
    if not ids:
        raise UserError(f"prompt {index} is empty.")
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < vocabulary:
            raise UserError(f"prompt {index} has {token!r}; token ids are whole numbers from 0 to {vocabulary - 1}.")


def _limit(index: int, prompt: int, wanted: int | None, model: Qwen3, context: int, most: int | None = None) -> int:
    """Most new tokens of a request; the prompt and they must fit the context, and the engine's cache."""
    if prompt >= context:
        raise UserError(
            f"prompt {index} has {prompt} tokens; the model's maximum context length is {context} tokens, and the answer "
            "needs at least one."
        )
    if wanted is None:
        default = model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        return min(default, context - prompt, context if most is None else most)
    if wanted < 1:
        raise UserError(f"max_new_tokens of prompt {index} is {wanted}; it must be 1 or more.")
    if prompt + wanted > context:
        raise UserError(
            f"prompt {index} has {prompt} tokens and max_new_tokens is {wanted}; the model's maximum context length is "
            f"{context} tokens."
        )
    return wanted


def _room(tokens: ThinkingTokens, is_open: bool) -> int:
    """Tokens of an answer that are not thinking: the stop text, one of content, and perhaps `<think>`."""
    return len(tokens.stop) + 1 + (not is_open)


def _check_room(index: int, budget: int | None, limit: int, tokens: ThinkingTokens, is_open: bool) -> None:
    """A budget must leave room for its stop text and at least one token of the answer."""
    if budget is None or (budget == 0 and not is_open):
        return
    needed = budget + _room(tokens, is_open)
    if needed > limit:
        fits = budget - (needed - limit) if is_open else max(budget - (needed - limit), 0)
        raise UserError(
            f"thinking_budget of prompt {index} is {budget}; with the stop text ({len(tokens.stop)} tokens) that leaves no "
            f"room for an answer in max_new_tokens={limit}: give at least {needed}"
            + (f", or a budget of at most {fits}." if fits >= 0 else ".")
        )


def end_tokens(model: Qwen3, tokenizer: Tokenizer | None) -> frozenset[int]:
    """Tokens that end an answer: the checkpoint's, else the config's, else the tokenizer's."""
    ids = model.generation_config.eos_token_id or model.config.eos_token_ids
    if not ids and tokenizer is not None and tokenizer.eos_token_id is not None:
        ids = (tokenizer.eos_token_id,)
    return frozenset(ids)
