"""Every invalid request is refused before anything runs, with a message of its own."""

import numpy as np
import pytest

import qwen3_jax
from qwen3_jax import Engine, Sampling, UserError
from qwen3_jax.generation import STOP_TEXT, program
from qwen3_jax.text import ChatTemplateError
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
INSTRUCT = tiny_models.tokenizer(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENS_THINKING = tiny_models.tokenizer(INSTRUCT.chat_template.replace("assistant\n", "assistant\n<think>\n"))
CHAT = [{"role": "user", "content": "Hi"}]
IDS = [1, 2, 3]
STOP = len(TOK.encode(STOP_TEXT))
CONTEXT, VOCABULARY = tiny_models.CONTEXT, tiny_models.VOCABULARY
TOOLS = tiny_models.TOOLS
SIZES = dict(rows=2, cache_tokens=512, slots_per_page=4, prefill_chunk=16)

# (tokenizer, prompts, options, what the error says)
REFUSED = {
    "negative budget": (TOK, [CHAT], dict(thinking_budget=-1), "prompt 0: thinking_budget is -1; it must be 0 or more"),
    "negative budget of one row": (TOK, [CHAT, CHAT], dict(thinking_budget=[5, -3]), "prompt 1: thinking_budget is -3"),
    "fractional budget": (TOK, [CHAT], dict(thinking_budget=1.5), "thinking_budget is 1.5; it must be int or None"),
    "truth as a budget": (TOK, [CHAT], dict(thinking_budget=True), "thinking_budget is True; it must be int or None"),
    "budget without thinking": (INSTRUCT, [CHAT], dict(thinking_budget=5), "thinking_budget.* does not think"),
    "budget of 0 without thinking": (INSTRUCT, [CHAT], dict(thinking_budget=0), "thinking_budget.* does not think"),
    "thinking without thinking": (INSTRUCT, [CHAT], dict(enable_thinking=True), "enable_thinking is True, .* does not think"),
    "budget without tokenizer": (None, [IDS], dict(thinking_budget=5), "thinking_budget is 5; it needs a tokenizer"),
    "no thinking without tokenizer": (None, [IDS], dict(enable_thinking=False), "enable_thinking .* needs a tokenizer"),
    "budget, thinking off": (
        TOK, [CHAT], dict(thinking_budget=5, enable_thinking=False), "enable_thinking=False and thinking_budget=5",
    ),
    "no budget, thinking on": (
        TOK, [CHAT], dict(thinking_budget=0, enable_thinking=True), "enable_thinking=True and thinking_budget=0",
    ),
    "number for enable_thinking": (TOK, [CHAT], dict(enable_thinking=1), "enable_thinking is 1; it must be bool or None"),
    "no room": (
        TOK, [CHAT], dict(thinking_budget=10, max_new_tokens=STOP + 11),
        rf"budget is 10; .*{STOP} tokens.* no room .*max_new_tokens={STOP + 11}: set max_new_tokens to at least {STOP + 12}, "
        r"or the budget to at most 9\.$",
    ),
    "no room, thinking open": (
        OPENS_THINKING, [CHAT], dict(thinking_budget=10, max_new_tokens=STOP + 10),
        rf"no room .* at least {STOP + 11}, or the budget to at most 9\.$",
    ),
    "no room even for the stop text": (
        OPENS_THINKING, [CHAT], dict(thinking_budget=0, max_new_tokens=STOP), rf"no room .* at least {STOP + 1}\.$",
    ),
    "no room in the context": (TOK, [[1] * (CONTEXT - 20)], dict(thinking_budget=1), "no room .* the 20 tokens that the"),
    "stop text without an end": (TOK, [CHAT], dict(thinking_stop_text="Stop."), "must contain </think> once.*'Stop.'"),
    "stop text with two ends": (TOK, [CHAT], dict(thinking_stop_text="</think></think>"), "must contain </think> once"),
    "stop text that begins": (TOK, [CHAT], dict(thinking_stop_text="<think></think>"), "and no <think>"),
    "stop text that ends the answer": (
        TOK, [CHAT], dict(thinking_stop_text="</think><|im_end|>"), "stop text .* ends the answer",
    ),
    "samplings": (TOK, [CHAT, "a"], dict(sampling=[Sampling()]), "sampling has 1 entries for 2 prompts"),
    "limits": (TOK, [CHAT], dict(max_new_tokens=[1, 2]), "max_new_tokens has 2 entries for 1 prompts"),
    "modes": (TOK, [CHAT], dict(enable_thinking=[]), "enable_thinking has 0 entries for 1 prompts"),
    "budgets": (TOK, [CHAT], dict(thinking_budget=[1, 2, 3]), "thinking_budget has 3 entries for 1 prompts"),
    "sampling of another type": (TOK, [CHAT], dict(sampling={"top_k": 1}), "sampling is .* must be Sampling"),
    "sampling None in a list": (TOK, [CHAT], dict(sampling=[None]), "sampling is None; it must be Sampling"),
    "no prompts": (TOK, [], {}, "non-empty list"),
    "prompts of another type": (TOK, 5, {}, "non-empty list"),
    "bytes": (TOK, b"Hi", {}, "non-empty list"),
    "bytes in a list": (TOK, ["a", b"Hi"], {}, "prompt 1: a prompt is a text, token ids or messages; got bytes"),
    "truth as a prompt": (TOK, [True], {}, "prompt 0: a prompt is a text, .*got bool"),
    "empty text": (TOK, ["a", ""], {}, "prompt 1: the prompt is empty"),
    "empty string alone": (TOK, "", {}, "prompt 0: the prompt is empty"),
    "empty ids": (TOK, [[]], {}, "prompt 0: the prompt is empty"),
    "id too large": (TOK, [[1], [VOCABULARY]], {}, rf"prompt 1: {VOCABULARY} is not a token id; .* from 0 to {VOCABULARY - 1}"),
    "id too small": (TOK, [[-1]], {}, "prompt 0: -1 is not a token id"),
    "fractional id": (TOK, [[1, 2.5]], {}, r"prompt 0: 2\.5 is not a token id"),
    "truth as an id": (TOK, [[1, True]], {}, "prompt 0: True is not a token id"),
    "text among ids": (TOK, [[1, "a"]], {}, "prompt 0: 'a' is not a token id"),
    "prompt as long as the context": (
        TOK, ["a", [1] * CONTEXT], {}, rf"prompt 1: the prompt has {CONTEXT} tokens; the maximum context length is {CONTEXT}",
    ),
    "prompt and answer longer than the context": (
        TOK, [[1] * 1000], dict(max_new_tokens=25),
        r"prompt 0: the prompt has 1000 tokens and max_new_tokens is 25; .* is 1024 tokens, which leaves 24",
    ),
    "max_new_tokens of 0": (TOK, [CHAT], dict(max_new_tokens=0), "max_new_tokens is 0; it must be 1 or more"),
    "max_new_tokens of a fraction": (TOK, [CHAT], dict(max_new_tokens=2.0), "max_new_tokens is 2.0; it must be int"),
    "tools with text": (TOK, ["Hi"], dict(tools=TOOLS), "prompt 0: tools needs messages; the prompt is text"),
    "tools with ids": (TOK, [CHAT, IDS], dict(tools=TOOLS), "prompt 1: tools needs messages; the prompt is token ids"),
    "continuing text": (TOK, ["Hi"], dict(continue_final_message=True), "continue_final_message needs messages"),
    "continuing the user": (TOK, [CHAT], dict(continue_final_message=True), "needs the assistant's message last"),
    "text without tokenizer": (None, ["Hi"], {}, "prompt 0: the prompt is text, which needs a tokenizer"),
    "messages without tokenizer": (None, [CHAT], {}, "prompt 0: the prompt is text, which needs a tokenizer"),
    "stop without tokenizer": (None, [IDS], dict(sampling=Sampling(stop="a")), "'stop' needs a tokenizer"),
    "a message without a role": (TOK, [[{"content": "Hi"}]], {}, "role"),
    "batch of nothing": (TOK, [CHAT], dict(batch_size=0), "batch_size is 0; it must be 1 or more"),
    "batch of a fraction": (TOK, [CHAT], dict(batch_size=1.5), r"batch_size is 1\.5"),
}  # fmt: skip


@pytest.mark.parametrize("call", [qwen3_jax.generate, qwen3_jax.stream], ids=["generate", "stream"])
@pytest.mark.parametrize("case", REFUSED)
def test_invalid_requests_are_refused_before_anything_runs(case, call, monkeypatch):
    tokenizer, prompts, options, words = REFUSED[case]
    monkeypatch.setattr(program, "prefill", None)
    with pytest.raises(UserError, match=words):  # at the call: `stream` is not iterated
        call(tiny_models.model(0), tokenizer, prompts, **options)
    assert issubclass(ChatTemplateError, UserError)


@pytest.mark.parametrize(
    ("tokenizer", "budget", "limit"),
    [(TOK, 10, STOP + 12), (OPENS_THINKING, 10, STOP + 11), (OPENS_THINKING, 0, STOP + 1), (TOK, 0, 1)],
)
def test_a_budget_that_just_fits_is_accepted_and_leaves_room_for_the_answer(tokenizer, budget, limit):
    """Checked by a model that begins to think at once and never stops by itself."""
    engine = Engine(tiny_models.model(2, eos=False, tag_scale=0.0), **SIZES)
    prompts = [CHAT] if tokenizer is OPENS_THINKING or budget == 0 else ["a"]
    (result,) = qwen3_jax.generate(
        engine, tokenizer, prompts, thinking_budget=budget, max_new_tokens=limit, sampling=Sampling(temperature=0)
    )
    assert len(result.token_ids) == limit
    if tokenizer is OPENS_THINKING:
        assert result.forced_mask == [False] * budget + [True] * STOP + [False]
        assert result.usage.thinking_tokens == budget


def test_every_form_of_prompt_is_accepted():
    model = tiny_models.model(1)
    options = dict(sampling=Sampling(temperature=0), max_new_tokens=8, batch_size=1)

    def tokens(prompts):
        return [result.token_ids for result in qwen3_jax.generate(model, TOK, prompts, **options)]

    ids = TOK.encode("What is")
    chat_ids = TOK.apply_chat_template(CHAT, tokenize=True)
    (expected,) = tokens([ids])
    for prompts in (
        "What is",
        ["What is"],
        ids,
        tuple(ids),
        [tuple(ids)],
        np.asarray(ids),
        np.asarray([ids]),
        [np.asarray(ids)],
    ):
        assert tokens(prompts) == [expected]
    assert tokens(CHAT) == tokens([CHAT]) == tokens(chat_ids) == tokens([tuple(CHAT)])
    assert tokens(["What is", ids, CHAT]) == [expected, expected, tokens(CHAT)[0]]
    without = qwen3_jax.generate(model, None, [ids], **options)[0]
    assert without.token_ids == expected
    assert (without.text, without.content, without.thinking) == ("", "", None)


def test_answers_may_fill_the_context_but_not_pass_it():
    model = tiny_models.model(1, eos=False)
    (result,) = qwen3_jax.generate(model, TOK, [[1] * (CONTEXT - 5)], sampling=Sampling(temperature=0))
    assert len(result.token_ids) == 5
    assert result.finish_reason == "length"


def test_a_given_engine_is_used_and_keeps_its_cache():
    model = tiny_models.model(1, eos=False)
    engine = Engine(model, **SIZES)
    options = dict(sampling=Sampling(temperature=0), max_new_tokens=8)
    expected = qwen3_jax.generate(model, TOK, [CHAT], **options)
    assert qwen3_jax.generate(engine, TOK, [CHAT], **options) == expected
    assert engine.stats.cached_tokens == 0
    assert qwen3_jax.generate(engine, TOK, [CHAT], **options) == expected
    assert engine.stats.cached_tokens > 0
    with pytest.raises(UserError, match="batch_size is 4, but the given engine has its own"):
        qwen3_jax.generate(engine, TOK, [CHAT], batch_size=4)
    with pytest.raises(UserError, match="maximum context length is 512 tokens"):
        qwen3_jax.generate(engine, TOK, [[1] * 500], max_new_tokens=100)

    endless = Sampling(temperature=1, seed=1, logit_bias={TOK.im_end_id: -100})
    first = qwen3_jax.stream(engine, TOK, [CHAT], sampling=endless, max_new_tokens=200)
    assert next(first).kind != "end"
    with pytest.raises(UserError, match="the engine is busy"):
        next(qwen3_jax.stream(engine, TOK, [CHAT], **options))
    first.close()  # closed early: its request is cancelled
    assert not engine.busy
    assert qwen3_jax.generate(engine, TOK, [CHAT], **options) == expected
