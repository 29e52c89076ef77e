"""Every request gets the tokens that it would get alone, whatever runs beside it and however it is computed."""

import dataclasses
import functools
import resource

import numpy as np
import pytest
import scipy.stats
import torch
from flax import nnx

import qwen3_jax
import sharding
from qwen3_jax import DraftModel, Engine, Request, Sampling
from qwen3_jax.generation import ThinkingTokens
from qwen3_jax.generation.stats import Clock
from tests.helpers import hf_checkpoints, tiny_models
from tests.helpers.engine_runs import DRAFT_SHAPE, LOOKUP, SHAPE, SMALL_SHAPE, ids, layered_engine, leave, run
from tests.helpers.pool_check import check_pool

THINK = ThinkingTokens(start=310, end=311, stop=(17, 311, 18))
REQUESTS = 150


# ---- against transformers ------------------------------------------------------------------------------------------------


@functools.cache
def mixed_requests() -> tuple[list[Request], list[int]]:
    """Prompts of 1 to 150 tokens, a third with a common prefix, half with budgets of 0 to 12; arrivals over time."""
    random = np.random.default_rng(0)
    common = random.integers(0, 300, 70).tolist()
    requests = []
    for _ in range(REQUESTS):
        prompt = random.integers(0, 300, random.choice([random.integers(1, 12), random.integers(12, 150)])).tolist()
        if random.random() < 0.33:
            prompt = common[: random.integers(40, 70)] + prompt[:20]
        budget = None if random.random() < 0.5 else int(random.integers(0, 13))
        thinking = budget is not None and bool(random.random() < 0.8)
        if thinking:
            prompt.append(THINK.start)
        requests.append(
            Request(
                tuple(prompt), Sampling(temperature=0, top_k=0, top_p=1.0, repetition_penalty=1.0),
                int(random.integers(1, 25)) + (budget or 0), budget=budget, thinking=thinking, thinking_tokens=THINK,
            )
        )  # fmt: skip
    return requests, np.cumsum(random.random(REQUESTS) < 0.6).tolist()


Expected = tuple[list[int], list[bool], list[bool]]


def greedy(hf, request: Request) -> Expected:
    """Greedy tokens of transformers' model with its own cache; which of them are forced, and which count as thinking."""
    tokens, forced, counted, content, thinking, used, force = [], [], [], [], request.thinking, 0, []
    over = False  # the one thinking section: closed, or the answer has begun without it
    with torch.no_grad():
        out = hf(torch.tensor([request.prompt]), use_cache=True)
        while len(tokens) < request.max_new_tokens and not request.eos.intersection(tokens[-1:]):
            if thinking and used == request.budget and not force:
                force = list(THINK.stop)
            logits = out.logits[0, -1].clone()
            for token, bias in request.sampling.logit_bias.items():
                logits[token] += bias
            if request.constraint is not None and thinking:
                logits[Fives.END] = -torch.inf
            if request.constraint is not None and not thinking:
                may = {THINK.start} - set(tokens and [THINK.start]) | set(request.constraint.next(content))
                logits[[token for token in range(len(logits)) if token not in may]] = -torch.inf
            if request.budget is not None and not thinking and used >= request.budget:
                logits[THINK.start] = -torch.inf
            token = force.pop(0) if (was := bool(force)) else int(logits.argmax())
            counted.append(thinking and token != THINK.end and not was)
            used += counted[-1]
            content += [token] * (not thinking and token != THINK.start and not was)
            begins = not thinking and not over and token == THINK.start
            over |= token == THINK.end if thinking else not begins
            thinking = (thinking and token != THINK.end) or begins
            tokens.append(token)
            forced.append(was)
            out = hf(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
    return tokens, forced, counted


FEW = 60
built = functools.cache(hf_checkpoints.build)


@functools.cache
def expected_tokens(variant: str, place: int) -> Expected:
    """The tokens of `greedy` for one of the mixed requests."""
    return greedy(built(variant), mixed_requests()[0][place])


TIGHT = 192  # tokens of a cache for requests of up to 187 tokens
WAYS: dict[str, tuple[dict, int | None]] = {  # options, and the tokens that are left of the cache
    "as_it_is": ({}, None),
    "no_prefix_cache": (dict(prefix_cache=False), None),
    "small_chunks": (dict(prefill_chunk=16), None),
    "single_steps": (dict(prefill_chunk=16, decode_steps=1), None),
    "preemptions": ({}, TIGHT),
    "preemptions_no_prefix_cache": (dict(prefix_cache=False), TIGHT),
    "offline": (dict(offline=True), None),
    "offline_and_preemptions": (dict(offline=True), TIGHT),
    "lookup": (dict(speculation=LOOKUP), None),
    "lookup_and_preemptions": (dict(speculation=LOOKUP), TIGHT),
    "layered": ({}, None),
    "layered_lookup_and_preemptions": (dict(speculation=LOOKUP), TIGHT),
}
FEW_WAYS = (
    "as_it_is",
    "small_chunks",
    "offline_and_preemptions",
    "preemptions_no_prefix_cache",
    "lookup_and_preemptions",
    "layered_lookup_and_preemptions",
)
SHARED = "dense_tied", "1_device"  # what most tests use
MESHES = {"1_device": None, "data_2_tensor_2": dict(data=2, tensor=2), "8_devices": dict(data=2, expert=2, tensor=2)}


@functools.cache
def loaded(variant: str, mesh: str, folder):
    hf_checkpoints.build(variant).save_pretrained(folder / variant)
    devices = None if MESHES[mesh] is None else sharding.make_mesh(**MESHES[mesh])
    return qwen3_jax.load(folder / variant, mesh=devices, scan_layers=mesh != "1_device")[0]


def engine_of(variant: str, mesh: str, way: str, folder) -> tuple[Engine, int]:
    """An engine and the pages per shard that are never free."""
    model = loaded(variant, mesh, folder)
    shards, shape = model.execution.placement.parts("batch"), SHAPE if (variant, mesh) == SHARED else SMALL_SHAPE
    options, tokens = WAYS[way]
    make = layered_engine if "layered" in way else Engine
    engine = make(model, **shape | dict(rows=shards * shape["rows"], cache_tokens=shards * 2048) | options)
    return engine, 0 if tokens is None else leave(engine, tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


class Fives:
    """Six tokens, the n-th a multiple of n + 5, and then the end."""

    END = 299

    def __init__(self):
        self.taken = []

    @classmethod
    def next(cls, taken: list[int]) -> list[int]:
        return list(range(0, cls.END, len(taken) + 5)) if len(taken) < 6 else [cls.END]

    def allowed(self) -> np.ndarray:
        bits = np.zeros(320, bool)
        bits[self.next(self.taken)] = True
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def take(self, token: int) -> None:
        assert token in self.next(self.taken)
        self.taken.append(token)


@functools.cache
def constrained_requests() -> list[tuple[Request, Expected]]:
    """Requests with the tokens of `greedy`: half have a constraint, two thirds have biases, some think."""
    hf, requests = hf_checkpoints.build("dense_tied"), []
    for place, request in enumerate(mixed_requests()[0][:60]):
        biases = {7: 100.0, 35: 99.5, 8: -100.0} if place % 3 else {}
        constrained = dict(constraint=Fives(), max_new_tokens=request.max_new_tokens + 10) if place % 2 else {}
        sampling = dataclasses.replace(request.sampling, logit_bias=biases)
        requests.append(dataclasses.replace(request, sampling=sampling, eos=frozenset({Fives.END}), **constrained))
    return [(request, greedy(hf, request)) for request in requests]


@pytest.mark.parametrize(
    ("mesh", "way"),
    [
        ("1_device", "offline"),
        pytest.param("1_device", "lookup_and_preemptions", marks=pytest.mark.slow),
        pytest.param("1_device", "layered", marks=pytest.mark.slow),
        pytest.param("1_device", "small_chunks", marks=pytest.mark.slow),
        pytest.param("data_2_tensor_2", "preemptions", marks=pytest.mark.slow),
        pytest.param("1_device", "single_steps", marks=pytest.mark.soak),
    ],
)
def test_constraints_and_biases_hold_in_any_company(mesh, way, folder):
    engine, _ = engine_of("dense_tied", mesh, way, folder)
    # Constraints have state; each run needs fresh ones.
    requests = [
        dataclasses.replace(request, constraint=None if request.constraint is None else Fives())
        for request, _ in constrained_requests()
    ]
    got = run(engine, requests, mixed_requests()[1][:60])
    for (_, expected), tokens in zip(constrained_requests(), got, strict=True):
        assert (ids(tokens), [token.forced for token in tokens], [token.thinking for token in tokens]) == expected
    whole = [tokens for request, tokens in zip(requests, got, strict=True) if request.constraint is not None]
    assert sum(tokens[-1].id == Fives.END and len(tokens) > 7 for tokens in whole) > 5  # some have thought before


QUICK = [("dense_tied", "1_device", way, FEW) for way in WAYS if way in FEW_WAYS]
MORE = pytest.mark.soak  # the same cases with more requests
EVERY = [("dense_tied", "1_device", way) for way in WAYS]
EVERY += [("moe", "8_devices", "as_it_is")]
EVERY += [("moe", "1_device", way) for way in ("lookup_and_preemptions", "layered")]
EVERY += [("dense_tied", "data_2_tensor_2", "preemptions")]
BY_HAND = [("moe", "8_devices", way) for way in ("single_steps", *FEW_WAYS[2:], "lookup")] + [
    ("moe", "1_device", "as_it_is")
]


@pytest.mark.parametrize(
    ("variant", "mesh", "way", "count"),
    QUICK
    + [pytest.param(*case, FEW, marks=pytest.mark.slow) for case in EVERY if (*case, FEW) not in QUICK]
    + [pytest.param(*case, REQUESTS, marks=MORE) for case in EVERY + BY_HAND],
)
def test_mixed_requests_equal_transformers(variant, mesh, way, count, folder):
    requests, arrivals = (of[:count] for of in mixed_requests())
    engine, held = engine_of(variant, mesh, way, folder)
    # With several shards submit all at once, or their rows would stay empty.
    got = run(engine, requests, arrivals if len(engine._scheduler.pools) == 1 else None)
    for place, (tokens, request) in enumerate(zip(got, requests, strict=True)):
        expected = expected_tokens(variant, place)
        assert (ids(tokens), [token.forced for token in tokens], [token.thinking for token in tokens]) == expected
        assert request.budget is None or sum(token.thinking for token in tokens) <= request.budget
    if "preemptions" in way:
        assert engine.stats.preemptions > count / 15
    if "no_prefix_cache" in way:
        assert engine.stats.cached_tokens == 0
    elif "preemptions" not in way:
        assert engine.stats.cached_tokens > 5 * count
    if "lookup" in way:
        assert 0 < engine.stats.accepted <= engine.stats.guessed
    for pool in engine._scheduler.pools:
        check_pool(pool)
        assert pool.held == held


@pytest.mark.soak
@pytest.mark.parametrize(("same", "count"), [(True, REQUESTS), (False, FEW)], ids=["itself", "another_model"])
def test_a_draft_model_changes_nothing(same, count, folder):
    """The model itself always guesses right; one with other weights nearly always wrong. In CI the seeds below have one."""
    requests, arrivals = (of[:count] for of in mixed_requests())
    model = loaded("dense_tied", "1_device", folder)
    draft = model if same else tiny_draft(model)
    engine = Engine(model, **SMALL_SHAPE, speculation=DraftModel(draft, 3))
    got = run(engine, requests, arrivals)
    assert [ids(tokens) for tokens in got] == [expected_tokens("dense_tied", place)[0] for place in range(count)]
    rate = engine.stats.accepted / engine.stats.guessed
    assert rate > 0.6 if same else rate < 0.5  # guesses after an answer's end, and of forced tokens, are not accepted


def tiny_draft(model):
    config = dataclasses.replace(model.config, num_hidden_layers=1, tie_word_embeddings=False)
    return qwen3_jax.Qwen3(config, rngs=nnx.Rngs(5), scan_layers=False)


# ---- seeds ---------------------------------------------------------------------------------------------------------------


def sampled_requests(count: int) -> list[Request]:
    random = np.random.default_rng(1)
    tokens = ThinkingTokens.of(tiny_models.tokenizer())
    requests = []
    for seed in range(count):
        budget = None if random.random() < 0.5 else int(random.integers(0, 20))
        sampling = Sampling(
            temperature=float(random.choice([0.0, 0.6, 1.0])), top_k=int(random.choice([0, 5, 20])), top_p=0.95,
            presence_penalty=float(random.choice([0.0, 1.0])), frequency_penalty=float(random.choice([0.0, 0.0, 0.5])),
            repetition_penalty=float(random.choice([1.0, 1.2])), seed=seed, logprobs=int(seed % 3) or None,
            sampled_logprobs=seed % 3 == 2,
        )  # fmt: skip
        prompt = tuple(random.integers(0, tiny_models.VOCABULARY, random.integers(1, 60)).tolist())
        fields = dict(budget=budget, thinking_tokens=tokens, score_from=seed % len(prompt) if seed % 4 == 2 else None)
        requests.append(Request(prompt, sampling, int(random.integers(20, 50)), **fields))
    return requests


@functools.cache
def sampled_alone() -> list[list]:
    """The tokens of 40 sampled requests, each alone in an engine."""
    alone = Engine(tiny_models.model(3, eos=False), **SHAPE, prefix_cache=False)
    return [run(alone, [request])[0] for request in sampled_requests(40)]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, None),
        ({}, 160),
        pytest.param(dict(prefill_chunk=16, speculation=LOOKUP), None, marks=pytest.mark.slow),
        (dict(speculation=LOOKUP), 160),
        pytest.param(dict(layered=True, speculation=LOOKUP), 160, marks=pytest.mark.slow),
        pytest.param(dict(speculation="draft"), 160, marks=pytest.mark.slow),
    ],
    ids=["batched", "preempted", "guessed", "preempted_and_guessed", "layered", "preempted_and_drafted"],
)
def test_a_seed_gives_the_same_tokens_alone_and_in_any_company(options, left):
    """With penalties, budgets and log probabilities, of prompts too; all of them survive preemption."""
    model, requests = tiny_models.model(3, eos=False), sampled_requests(40)
    if options.get("speculation") == "draft":
        options = DRAFT_SHAPE | dict(speculation=DraftModel(tiny_models.model(7, eos=False), 3))
    make = layered_engine if options.get("layered") else Engine
    engine = make(model, **SHAPE | {name: value for name, value in options.items() if name != "layered"})
    if left is not None:
        leave(engine, left)
    together = run(engine, requests)
    for tokens, expected in zip(together, sampled_alone(), strict=True):
        assert ids(tokens) == ids(expected)
        assert [(t.forced, t.thinking, t.finish, t.prompt) for t in tokens] == [
            (t.forced, t.thinking, t.finish, t.prompt) for t in expected
        ]
        for one, other in zip(tokens, expected, strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            if one.logprob is not None:
                pairs = [(each.logprob.logprob, each.logprob.sampled or 0.0) for each in (one, other)]
                np.testing.assert_allclose(*pairs, atol=2e-5)
    if left is not None:
        assert engine.stats.preemptions > 5
    if "speculation" in options:
        assert engine.stats.accepted > 0


@pytest.mark.parametrize("count", [pytest.param(250, marks=pytest.mark.slow), pytest.param(1000, marks=MORE)])
def test_guessed_tokens_follow_the_distribution(count):
    """Many seeds with speculation and as many others without: the distributions at each position agree."""
    model = tiny_models.model(4, eos=False)
    prompt = tuple([5, 6, 7, 8] * 4)

    def draw(first: int, **options) -> np.ndarray:
        engine = Engine(model, **SHAPE | options)
        sampling = [Sampling(temperature=0.8, top_k=8, seed=first + seed) for seed in range(count)]
        return np.asarray([ids(tokens) for tokens in run(engine, [Request(prompt, s, 6) for s in sampling])])

    plain, guessed = draw(0), draw(10_000, speculation=LOOKUP)
    for place in (1, 3, 5):
        tokens, counts = np.unique(plain[:, place], return_counts=True)
        common = tokens[counts > 10]
        table = [[(of[:, place] == token).sum() for token in common] for of in (plain, guessed)]
        assert scipy.stats.chi2_contingency(np.asarray(table)).pvalue > 1e-3


# ---- limits and errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "seed"), [(200, 0), pytest.param(5000, 1, marks=pytest.mark.soak)])
def test_nothing_is_compiled_after_warm_up_and_nothing_leaks(count, seed):
    """Random requests with cancellations on a cache that is too small for half of its rows."""
    random = np.random.default_rng(seed)
    model, tokens = tiny_models.model(3, eos=False), ThinkingTokens.of(tiny_models.tokenizer())
    ends = frozenset({tiny_models.tokenizer().im_end_id})
    engine = Engine(model, **SHAPE, speculation=LOOKUP)
    engine.warm_up(prompt_logprobs=True)
    held = leave(engine, 256)
    compiled, memory = Clock.compilations, []
    live, finished, cancelled, submitted, waited = {}, 0, 0, 0, 0
    common = random.integers(0, tiny_models.VOCABULARY, 64).tolist()
    while submitted < count or live:
        while submitted < count and len(live) < 40:
            prompt = (
                common[: random.integers(0, 64)]
                + random.integers(0, tiny_models.VOCABULARY, random.integers(1, 40)).tolist()
            )
            budget = None if random.random() < 0.5 else int(random.integers(0, 30))
            sampling = Sampling(
                temperature=float(random.choice([0.0, 1.0])), seed=submitted,
                logprobs=2 if random.random() < 0.1 else None, presence_penalty=1.0 if random.random() < 0.3 else 0.0,
            )  # fmt: skip
            scored = int(random.integers(0, len(prompt) + 1)) if random.random() < 0.2 else None
            limit = int(random.integers(1, 60)) * (scored is None or random.random() < 0.5)
            request = Request(tuple(prompt), sampling, limit, ends, budget, False, tokens, score_from=scored)
            live[engine.submit(request)] = request
            submitted += 1
        got = engine.step()
        waited = 0 if got else waited + 1
        assert waited < 20, "no request advances"
        for token in got:
            if token.finish:
                del live[token.number]
                finished += 1
        if live and random.random() < 0.05:
            number = int(random.choice(list(live)))
            engine.cancel(number)
            engine.cancel(number)  # a second time is ignored
            del live[number]
            cancelled += 1
        for pool in engine._scheduler.pools:
            check_pool(pool)
        if submitted % 100 == 0:
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert finished + cancelled == count
    assert finished > 0.6 * count
    assert cancelled > 0.01 * count
    assert engine.stats.preemptions > count / 20
    assert Clock.compilations == compiled
    assert not engine.busy
    assert sorted(engine._runner.slots) == list(range(8))
    assert all(pool.held == held for pool in engine._scheduler.pools)
    assert memory[-1] - memory[len(memory) // 2] < 32 * 1024  # KiB


@pytest.mark.parametrize(
    "mesh", [pytest.param(name, marks=[] if name == "8_devices" else pytest.mark.slow) for name in MESHES]
)
def test_a_second_request_compiles_nothing(mesh, folder):
    """Nor of a loaded model: the state that a program returns has the sharding of the one it was given."""
    engine, _ = engine_of("dense_tied", mesh, "as_it_is", folder)
    request = Request((5, 6, 7), Sampling(temperature=0, seed=0), 4)
    first = run(engine, [request])
    compiled = Clock.compilations
    assert run(engine, [request]) != first  # only their numbers differ
    assert Clock.compilations == compiled


def test_a_cache_grows_when_it_is_full():
    """Without a given size it starts small and doubles; its contents are kept."""
    model, requests = tiny_models.model(2, eos=False), sampled_requests(2)
    requests = [dataclasses.replace(request, max_new_tokens=700, budget=None) for request in requests]
    fixed = run(Engine(model, rows=2, cache_tokens=2048), requests)
    engine = Engine(model, rows=2)
    before = engine._scheduler.pages
    assert [ids(tokens) for tokens in run(engine, requests)] == [ids(tokens) for tokens in fixed]
    assert engine._scheduler.pages > before
    assert engine.stats.preemptions == 0


def test_a_cancelled_request_disturbs_no_other():
    model = tiny_models.model(2, eos=False)
    requests = sampled_requests(6)
    expected = [ids(tokens) for tokens in run(Engine(model, **SHAPE), requests)]
    engine = Engine(model, **SHAPE)
    numbers = [engine.submit(request) for request in requests]
    got = {number: [] for number in numbers}
    for step in range(10_000):
        if step == 3:
            engine.cancel(numbers[2])
        if not engine.busy:
            break
        for token in engine.step():
            got[token.number].append(token.id)
    for place, number in enumerate(numbers):
        assert got[number] == expected[place] or place == 2
    assert got[numbers[2]] == expected[2][: len(got[numbers[2]])]
    assert len(got[numbers[2]]) < len(expected[2])
