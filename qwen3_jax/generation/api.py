"""`generate` and `stream`: prompts in, answers out. Both run on an `Engine`.

out = qwen3_jax.generate(model, tok, [[{"role": "user", "content": "What is 7 * 8?"}]], thinking_budget=512)
out[0].thinking, out[0].content, out[0].usage.thinking_tokens

for delta in qwen3_jax.stream(model, tok, [{"role": "user", "content": "Hi"}]):
    print(delta.text, end="", flush=True)
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation.answer import Answer, Delta, Generation, extend
from qwen3_jax.generation.engine import Engine
from qwen3_jax.generation.request import Options, Prompt, Request, check_batch_size, is_message, require, resolve
from qwen3_jax.generation.rows import row_size
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import STOP_TEXT, ChatTemplateError, Tokenizer

T = TypeVar("T")
PerPrompt: TypeAlias = T | Sequence[T]

DEFAULT_ROWS = 32  # answers decoded together


def generate(
    model: Qwen3 | Engine,
    tokenizer: Tokenizer | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    sampling: PerPrompt[Sampling] | None = None,
    max_new_tokens: PerPrompt[int | None] = None,
    enable_thinking: PerPrompt[bool | None] = None,
    thinking_budget: PerPrompt[int | None] = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    thinking_stop_text: str = STOP_TEXT,
    adapter: PerPrompt[str | None] = None,
    batch_size: int | None = None,
    progress: bool | None = False,
) -> list[Generation]:
    """Answer every prompt.

    `sampling`, `max_new_tokens`, `enable_thinking`, `thinking_budget` and `adapter` may be lists with one entry per prompt.

    Args:
        model: from `qwen3_jax.load`, on any mesh; or an engine around it, whose prefix cache is then kept between calls.
        tokenizer: its tokenizer; None is enough for prompts of token ids, and leaves the texts empty.
        prompts: a list of texts (continued as they are), of token-id lists, or of message lists (the chat template is
            applied). A single prompt is treated as a list of one.
        sampling: see `Sampling`; None, and fields that are None, follow the checkpoint's generation_config.json.
        max_new_tokens: most tokens of an answer; None is generation_config.json's, else 32,768 or what the context holds.
        enable_thinking: False tells the model not to think; True or None leaves it to the template and soft switches.
        thinking_budget: most thinking tokens of an answer (see `qwen3_jax.generation.budget`); None is unlimited, 0 is
            the same as `enable_thinking=False`.
        tools: functions that the model may call, as JSON schemas in OpenAI's form; calls are returned as `tool_calls`.
        continue_final_message: the last message is an unfinished answer for the model to continue.
        thinking_stop_text: inserted when the budget is reached; must contain `</think>` once.
        adapter: the name of one of the adapters that the model was loaded with (`load(adapter={"french": "DIR"})`); None is the
            model itself. Answers of different adapters are decoded together.
        batch_size: most answers decoded together; None is 32, or the rows of the given engine.
        progress: draw a progress bar; None draws it on a terminal.

    Returns:
        One result per prompt, in order.

    Raises:
        RequestError: an unusable prompt or option, with the prompt's index; a budget that is negative, on a model without
            thinking, or too close to max_new_tokens to leave room for an answer; a prompt beyond the context.
    """
    options = dict(
        sampling=sampling, max_new_tokens=max_new_tokens, enable_thinking=enable_thinking, thinking_budget=thinking_budget,
        tools=tools, continue_final_message=continue_final_message, thinking_stop_text=thinking_stop_text, adapter=adapter,
    )  # fmt: skip
    engine, requests = _resolve(model, tokenizer, prompts, batch_size, options, offline=True)
    results: dict[tuple[int, int], Generation] = {}
    with progress_bar("generating", len(requests), visible=progress) as bar:
        for delta in stream_requests(engine, tokenizer, requests, deltas=False):
            if delta.result is not None:
                results[delta.index, delta.sample] = delta.result
                bar.advance()
    answers: dict[int, list[Generation]] = {}
    for index, sample in sorted(results):
        answers.setdefault(index, []).append(results[index, sample])
    return [dataclasses.replace(first, others=tuple(others)) for first, *others in answers.values()]


def stream(
    model: Qwen3 | Engine,
    tokenizer: Tokenizer | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    sampling: PerPrompt[Sampling] | None = None,
    max_new_tokens: PerPrompt[int | None] = None,
    enable_thinking: PerPrompt[bool | None] = None,
    thinking_budget: PerPrompt[int | None] = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    thinking_stop_text: str = STOP_TEXT,
    adapter: PerPrompt[str | None] = None,
    batch_size: int | None = None,
) -> Iterator[Delta]:
    """Like `generate`, but yield typed deltas as they are generated; each answer closes with a delta of kind "end".

    Requests are checked at the call, before the first delta is requested.
    """
    options = dict(
        sampling=sampling, max_new_tokens=max_new_tokens, enable_thinking=enable_thinking, thinking_budget=thinking_budget,
        tools=tools, continue_final_message=continue_final_message, thinking_stop_text=thinking_stop_text, adapter=adapter,
    )  # fmt: skip
    engine, requests = _resolve(model, tokenizer, prompts, batch_size, options)
    return stream_requests(engine, tokenizer, requests)


def stream_requests(
    engine: Engine, tokenizer: Tokenizer | None, requests: Sequence[Request], *, deltas: bool = True
) -> Iterator[Delta]:
    """Answer the requests that `resolve` has made; cancel what is unfinished when the caller closes the stream.

    Without `deltas` the last one of each answer, with its result, is enough.
    """
    if engine.busy:
        raise UserError(
            "the engine is busy with other requests; finish or close their stream first, or use Engine.submit."
        )
    answers: dict[int, Answer] = {}
    try:
        for request in requests:
            answers[engine.submit(request)] = Answer(tokenizer, request, deltas=deltas)
        while engine.busy:
            tokens = ((token.number, token) for token in engine.step())
            for _, delta in extend(answers, tokens, engine.cancel):
                yield delta
    finally:
        for number in answers:
            engine.cancel(number)  # no effect on finished ones


def _resolve(
    model: Qwen3 | Engine, tokenizer: Tokenizer | None, prompts: Any, batch_size: int | None, options: dict[str, Any],
    *, offline: bool = False,
) -> tuple[Engine, list[Request]]:  # fmt: skip
    """Check everything; return the engine and a request for each answer."""
    check_batch_size(batch_size, isinstance(model, Engine))
    prompts = _as_list(prompts)
    rows = _per_prompt(options, len(prompts))
    if isinstance(model, Engine):
        return model, _requests(model.model, tokenizer, prompts, rows, model.max_length)
    context = model.config.max_position_embeddings
    requests = _requests(model, tokenizer, prompts, rows, context)
    engine = Engine(model, rows=row_size(len(requests), batch_size or DEFAULT_ROWS), offline=offline)
    if engine.max_length < context:  # the free memory holds less than one context
        requests = _requests(model, tokenizer, prompts, rows, engine.max_length)
    return engine, requests


def _requests(
    model: Qwen3, tokenizer: Tokenizer | None, prompts: list[Any], rows: list[dict[str, Any]], max_length: int
) -> list[Request]:
    requests: list[Request] = []
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        try:
            requests += resolve(prompt, Options(**row), model, tokenizer, max_length=max_length, prompt_index=index)
        except RequestError as error:
            error.prompt = index
            raise
        except ChatTemplateError as error:
            failed = RequestError(f"{str(error).rstrip('.')}.", "messages")
            failed.prompt = index
            raise failed from None
    return requests


def _per_prompt(options: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the options of each prompt; a list has one entry per prompt, anything else applies to all."""
    options = dict(options)
    if options["sampling"] is None:
        options["sampling"] = Sampling()
    rows = [dict(options) for _ in range(count)]
    for name in ("sampling", "max_new_tokens", "enable_thinking", "thinking_budget", "adapter"):
        if isinstance(value := options[name], (list, tuple)):
            require(len(value) == count, f"{name} has {len(value)} entries for {count} prompts.", name)
            for row, item in zip(rows, value, strict=True):
                row[name] = item
    return rows


def _as_list(prompts: Any) -> list[Any]:
    """Return the prompts as a list; a single prompt is a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray) or hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    is_list = isinstance(prompts, Sequence) and not isinstance(prompts, bytes) and len(prompts) > 0
    require(is_list, "prompts must be a non-empty list of texts, token-id lists or message lists.", "prompt")
    is_single = is_message(prompts[0]) or isinstance(prompts[0], (int, np.integer))
    if is_single and not isinstance(prompts[0], bool):
        return [prompts]  # one conversation, or one prompt of token ids
    return list(prompts)
