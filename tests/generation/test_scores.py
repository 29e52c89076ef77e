"""Log probabilities of prompts, and of the distribution that was sampled from, against NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

import qwen3_jax
import sharding
from qwen3_jax import Engine, GenerationConfig, Request, Sampling, UserError
from qwen3_jax.errors import RequestError
from qwen3_jax.generation import ThinkingTokens
from qwen3_jax.generation.draw import sample
from qwen3_jax.generation.sampling import SamplingRows
from tests.generation.test_draw import SIZE, draw_settings, expected_probabilities
from tests.helpers import small_checkpoints, tiny_models
from tests.helpers.engine_runs import SHAPE, leave, run

TOK = tiny_models.tokenizer()
CONTEXT = tiny_models.CONTEXT


def log_softmax(logits: np.ndarray) -> np.ndarray:
    below = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


def expected(model, ids: list[int], start: int) -> tuple[np.ndarray, np.ndarray]:
    """(log probabilities [N], logs of the whole distributions [N, V]; NaN for the first token) of ids[start:]."""
    logs = log_softmax(tiny_models.next_token_logits(model, ids[:1], ids[1:])) if len(ids) > 1 else np.zeros((0, 1))
    logs = np.concatenate([np.full((1, logs.shape[1]), np.nan), logs])[start:]
    return np.asarray([row[token % row.size] for row, token in zip(logs, ids[start:], strict=True)]), logs


def texts() -> tuple[list[list[int]], list[int]]:
    """Options that share a context of two pages and a half, equal ones among them, and texts up to the context and one."""
    random = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return random.integers(0, tiny_models.VOCABULARY, count).tolist()

    context = ids(10)
    rows = [context + ids(count) for count in (3, 5, 1)]
    rows += [rows[0], ids(1), ids(2), ids(130), ids(CONTEXT + 1), context]
    return rows, [10, 10, 10, 10, 0, 1, 0, CONTEXT - 300, 2]


@pytest.mark.parametrize("experts", [0, pytest.param(8, marks=pytest.mark.slow)], ids=["dense", "moe"])
def test_log_probabilities_of_texts(experts):
    model, (rows, starts) = tiny_models.model(1, experts=experts), texts()
    engine = Engine(model, **SHAPE)
    before = dataclasses.replace(engine.stats)
    scores = qwen3_jax.score(engine, None, rows, start=starts, top_logprobs=3)
    for ids, start, got in zip(rows, starts, scores, strict=True):
        chosen, logs = expected(model, ids, start)
        assert got.token_ids.tolist() == ids[start:]
        np.testing.assert_allclose(got.logprobs, chosen, atol=1e-4)
        assert got.total == pytest.approx(np.nansum(chosen), abs=2e-3)
        assert got.greedy.tolist() == [
            bool(log.argmax() == token) for log, token in zip(logs, ids[start:], strict=True)
        ]
        assert [len(top) for top in got.top] == [3 * (start + place > 0) for place in range(len(ids) - start)]
        for log, top in zip(logs, got.top, strict=True):
            for token, value in top:
                assert abs(log[token] - value) < 1e-4
            assert [value for _, value in top] == pytest.approx(np.sort(log)[::-1][: len(top)], abs=1e-4)
    assert scores[0] is scores[3]
    # Computed once: the context's whole pages, and the equal text; the last token of a text never.
    used, size = engine.stats.since(before), SHAPE["slots_per_page"]
    distinct = [row for place, row in enumerate(rows) if place != 3]
    assert used.prefill_tokens + used.cached_tokens == sum(len(row) - 1 for row in distinct)
    assert used.cached_tokens >= 2 * (10 // size) * size
    assert engine.cache_usage[0] == 0


def test_a_preempted_text_is_reported_once():
    """The cache holds one of the long texts and a part of the other, beside an answer that grows."""
    model, random = tiny_models.model(2, eos=False), np.random.default_rng(3)
    engine = Engine(model, **SHAPE)
    held = leave(engine, 120)
    long = [tuple(random.integers(0, tiny_models.VOCABULARY, 80).tolist()) for _ in range(2)]
    requests = [Request((5, 6, 7), Sampling(temperature=0), 100)]
    requests += [Request(ids, Sampling(logprobs=0), 0, score_from=20) for ids in long]
    _, *got = run(engine, requests)
    for ids, tokens in zip(long, got, strict=True):
        assert [token.id for token in tokens] == list(ids[20:])
        np.testing.assert_allclose([t.logprob.logprob for t in tokens], expected(model, list(ids), 20)[0], atol=1e-4)
    assert engine.stats.preemptions > 0 or engine.stats.prefill_tokens >= 160
    assert engine._scheduler.pools[0].held == held


def test_prompt_and_answer_of_one_request():
    """Prompt tokens come first, the very first without a log probability; they change nothing of the answer."""
    model = tiny_models.model(3, eos=False)
    prompt = tuple(TOK.encode("What is 2 + 3?"))
    sampling = Sampling(temperature=0.9, seed=3, logprobs=2)
    plain = Request(prompt, sampling, 9)
    for first in (0, 1, len(prompt) - 1, len(prompt)):
        with_prompt = dataclasses.replace(plain, score_from=first)
        alone, both = run(Engine(model, **SHAPE), [plain, with_prompt])
        own = [token for token in both if token.prompt]
        assert [token.id for token in own] == list(prompt[first:])
        assert [(token.id, token.finish) for token in both[len(own) :]] == [(token.id, token.finish) for token in alone]
        pairs = [(a.logprob.logprob, b.logprob.logprob) for a, b in zip(alone, both[len(own) :], strict=True)]
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], abs=1e-4)
        chosen, _ = expected(model, list(prompt), first)
        values = [np.nan if token.logprob is None else token.logprob.logprob for token in own]
        np.testing.assert_allclose(values, chosen, atol=1e-4)
        assert not any(token.forced or token.thinking for token in own)
    (nothing,) = run(Engine(model, **SHAPE), [dataclasses.replace(plain, score_from=len(prompt), max_new_tokens=0)])
    assert [(token.id, token.prompt, token.logprob, token.finish) for token in nothing] == [
        (prompt[-1], True, None, "length")
    ]
    engine = Engine(model, **SHAPE)
    engine.cancel(engine.submit(dataclasses.replace(plain, score_from=0)))
    assert not engine.busy
    assert engine.step() == []


@pytest.mark.parametrize(
    "name",
    [pytest.param("data2_expert2_tensor2", marks=pytest.mark.soak), pytest.param("data3", marks=pytest.mark.slow)],
)
def test_on_a_mesh(name, tmp_path):
    axes = dict(data=3) if name == "data3" else dict(data=2, expert=2, tensor=2)
    folder = small_checkpoints.write("moe", tmp_path / "moe")
    rows, starts = [list(range(20, 33)), [300] * 8, [9, 4], [*range(20, 30), 5]], [9, 0, 1, 10]
    alone = qwen3_jax.score(qwen3_jax.load(folder)[0], None, rows, start=starts)
    spread = qwen3_jax.score(qwen3_jax.load(folder, mesh=sharding.make_mesh(**axes))[0], None, rows, start=starts)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert (one.greedy == other.greedy).all()


def test_quantised_weights(tmp_path):
    """As the model itself computes them, in 8 bits."""
    model, _ = qwen3_jax.load(small_checkpoints.write("dense", tmp_path / "dense"), quantize="int8")
    ids = list(range(20, 45))
    (got,) = qwen3_jax.score(model, None, ids, start=3)
    np.testing.assert_allclose(got.logprobs, expected(model, ids, 3)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(texts=[]), "texts must be a non-empty list of texts or of token-id lists"),
        (dict(texts=[[{"role": "user", "content": "x"}]]), "is not a token id"),
        (dict(texts=[[1, 2], [480]]), "prompt 1: 480 is not a token id; they are whole numbers from 0 to 479"),
        (dict(texts=[[1, True]]), "True is not a token id"),
        (dict(texts=[[]]), "prompt 0: the text has no tokens"),
        (dict(texts=["a"], tokenizer=None), "the texts need a tokenizer"),
        (dict(texts=[[1] * (CONTEXT + 2)]), f"the text has {CONTEXT + 2} tokens; the maximum context length is {CONTEXT}"),
        (dict(texts=[[1, 2]], start=2), "start is 2; the text has 2 tokens"),
        (dict(texts=[[1, 2]], start=-1), "start is -1"),
        (dict(texts=[[1, 2]], start=[0, 0]), "start has 2 entries for 1 texts"),
        (dict(texts=[[1, 2]], start=0.5), "start has 0.5"),
        (dict(texts=[[1, 2]], top_logprobs=21), "top_logprobs is 21; it must be between 0 and 20"),
        (dict(texts=[[1, 2]], batch_size=0), "batch_size is 0"),
        (dict(texts=[3.5]), "text 0 is a float; it must be a text or token ids"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_scored(arguments, words):
    with pytest.raises(UserError, match=words):
        qwen3_jax.score(tiny_models.model(0), **(dict(tokenizer=TOK) | arguments))


def test_what_a_request_may_not_ask():
    engine = Engine(tiny_models.model(0), **SHAPE)
    for fields, words in (
        (dict(score_from=4), "score_from is 4; it must be between 0 and the length of the prompt, 3"),
        (dict(score_from=-1), "score_from is -1"),
        (dict(max_new_tokens=0), "max_new_tokens is 0; it must be 1 or more"),
        (dict(score_from=0, max_new_tokens=-1), "max_new_tokens is -1; it must be 0 or more"),
    ):
        with pytest.raises(RequestError, match=words):
            engine.submit(Request(**(dict(prompt=(1, 2, 3), sampling=Sampling(), max_new_tokens=1) | fields)))
    with pytest.raises(RequestError, match="'sampled_logprobs' needs 'logprobs'"):
        Sampling(sampled_logprobs=True)
    with pytest.raises(RequestError, match="'sampled_logprobs' is 1; it must be True or False"):
        Sampling(logprobs=0, sampled_logprobs=1)


# ---- the distribution that was sampled from ----------------------------------------------------------------------------


def test_log_probabilities_of_draws():
    """Every setting in one batch, and each alone: whether a partial sort or a search finds the candidates changes nothing."""
    settings = [dataclasses.replace(each, logprobs=0, sampled_logprobs=True) for each in draw_settings()]
    settings += [Sampling(temperature=0, logprobs=0, sampled_logprobs=True).resolve(GenerationConfig())]
    logits = np.random.default_rng(3).normal(size=(len(settings), SIZE)).astype(np.float32) * 2
    logits[:, 7] = -np.inf
    compute = jax.jit(sample)
    for position in range(3):
        rows, positions = SamplingRows.of(settings, range(len(settings))), np.full(len(settings), position, np.int32)
        tokens, together = map(np.asarray, compute(logits, rows, positions))
        for i, setting in enumerate(settings):
            one = jax.tree.map(lambda x, i=i: x[i : i + 1], rows)
            token, alone = map(np.asarray, compute(logits[i : i + 1], one, positions[:1]))
            probs = expected_probabilities(logits[i], setting) if setting.temperature else np.eye(SIZE)[tokens[i]]
            assert token[0] == tokens[i]
            assert together[i] == pytest.approx(np.log(probs[tokens[i]]), abs=2e-5)
            assert alone[0] == pytest.approx(together[i], abs=2e-5)
    unasked = SamplingRows.of(
        [dataclasses.replace(each, sampled_logprobs=False) for each in settings], range(len(settings))
    )
    assert not np.asarray(compute(logits, unasked, positions)[1]).any()


def test_log_probabilities_of_what_an_answer_was_drawn_from():
    """Under bias, penalties, cuts and a budget, from a plain forward pass; forced tokens have none, greedy ones 0."""
    model = tiny_models.model(0, eos=False, tag_scale=0.0)
    think = ThinkingTokens.of(TOK)
    prompt = (*TOK.encode("2 + 3?\n"), TOK.think_start_id)
    settings = Sampling(
        temperature=0.8, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2,
        logit_bias={9: 4.0, 11: -100.0}, seed=5, logprobs=1, sampled_logprobs=True,
    )  # fmt: skip
    fields = dict(prompt=prompt, max_new_tokens=40 + len(think.stop), budget=6, thinking=True, thinking_tokens=think)
    requests = [Request(sampling=settings, **fields)]
    requests += [Request(sampling=Sampling(temperature=0, logprobs=0, sampled_logprobs=True), **fields)]
    requests += [Request(sampling=dataclasses.replace(settings, sampled_logprobs=False), **fields)]
    drawn, greedy, unasked = run(Engine(model, **SHAPE), requests)
    logits = tiny_models.next_token_logits(model, list(prompt), [token.id for token in drawn]).astype(np.float64)
    answer: list[int] = []
    resolved = settings.resolve(model.generation_config)
    for i, token in enumerate(drawn):
        assert token.logprob.logprob == pytest.approx(log_softmax(logits[i])[token.id], abs=1e-4)
        assert np.isnan(token.logprob.sampled) == token.forced
        if not token.forced:
            shaped, counts = logits[i].copy(), np.bincount(answer, minlength=logits.shape[1])
            for biased, by in settings.logit_bias.items():
                shaped[biased] += by
            seen = (counts > 0) | np.isin(np.arange(len(shaped)), prompt)
            shaped = np.where(seen, np.where(shaped > 0, shaped / 1.3, shaped * 1.3), shaped)
            shaped -= 0.4 * (counts > 0) + 0.2 * counts
            if any(each.forced for each in drawn[:i]):
                shaped[think.start] = -np.inf
            probs = expected_probabilities(shaped, resolved)
            assert token.logprob.sampled == pytest.approx(np.log(probs[token.id]), abs=2e-4)
        answer.append(token.id)
    assert sum(token.forced for token in drawn) == len(think.stop)
    assert {token.logprob.sampled for token in greedy if not token.forced} == {0.0}
    assert [token.id for token in unasked] == answer
    assert {token.logprob.sampled for token in unasked} == {None}


def test_log_probabilities_that_no_row_asks_for_are_not_computed():
    """They are computed in branches of conditionals, of which the other one does nothing."""
    rows = SamplingRows.of(draw_settings(), range(len(draw_settings())))
    logits = np.zeros((len(draw_settings()), SIZE), np.float32)
    program = jax.make_jaxpr(sample)(logits, rows, np.zeros(len(logits), np.int32))
    assert not {"sort", "top_k", "exp", "cumsum"} & {equation.primitive.name for equation in program.eqns}
    sums = {"reduce_max", "is_finite", "exp", "reduce_sum", "log"}  # of logsumexp
    skipped = [branches for branches in conditionals(program.jaxpr) if sums <= branches[1] and not sums & branches[0]]
    assert len(skipped) == 2  # among the most likely tokens, and among all


def conditionals(jaxpr) -> list[tuple[set[str], ...]]:
    """The operations of each branch of every conditional, without those of conditionals inside."""
    found = []
    for equation in jaxpr.eqns:
        inside = [each.jaxpr for each in equation.params.get("branches", ())]
        if inside:
            found.append(tuple({inner.primitive.name for inner in each.eqns} for each in inside))
        for each in [*inside, *(equation.params[key].jaxpr for key in ("jaxpr",) if key in equation.params)]:
            found += conditionals(each)
    return found
