"""Pool and scheduler without a model: random sequences arrive, grow, are cancelled and finish; no page is ever lost."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.generation.pool import Pool
from qwen3_jax.generation.scheduler import Decode, Grow, Prefill, Scheduler, TokenSequence
from tests.helpers.pool_check import check_pool

SIZE = 4


def stored(pool: Pool, contents: dict[int, tuple], pages: list[int], tokens: list[int], count: int) -> None:
    """Write a sequence's tokens to its pages, as the device would."""
    for place in range(count):
        page = contents.setdefault(pages[place // SIZE], [None] * SIZE)
        page[place % SIZE] = tuple(tokens[: place + 1])


@settings(max_examples=300)
@given(st.data())
def test_a_page_is_found_again_only_with_the_whole_text_before_it(data):
    """Whatever is taken, shared, released and evicted: the pages of `match` contain exactly the prefix of the sequence."""
    pool, contents, held = Pool(12, SIZE), {}, []
    beginnings = st.lists(st.integers(0, 1), min_size=1, max_size=24)
    for _ in range(data.draw(st.integers(5, 40))):
        if held and data.draw(st.booleans()):
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            tokens = data.draw(beginnings)
            matched = pool.match(tokens)
            assert len(matched) * SIZE < len(tokens)  # the last token is always left to compute
            for place, page in enumerate(matched):
                assert contents[page][-1] == tuple(tokens[: (place + 1) * SIZE])
            pool.hold(matched)
            fresh = pool.take(-(-len(tokens) // SIZE) - len(matched))
            if fresh is None:
                pool.release(matched)
            else:
                assert len(set(matched + fresh)) == len(matched + fresh)
                assert 0 not in matched + fresh
                stored(pool, contents, matched + fresh, tokens, len(tokens))
                pool.record(matched + fresh, tokens, len(matched), len(tokens))
                held.append(matched + fresh)
        check_pool(pool)
        counts = Counter(page for pages in held for page in pages)
        assert pool.held == len(counts)
    while held:
        pool.release(held.pop())
    check_pool(pool)
    assert pool.available == pool.capacity


def test_the_least_recently_released_is_evicted_first_and_ends_before_beginnings():
    pool = Pool(7, SIZE)
    first, second = [1] * 12, [2] * 12
    pages = {}
    for name, tokens in (("first", first), ("second", second)):
        pages[name] = pool.take(3)
        pool.record(pages[name], tokens, 0, 12)
    pool.release(pages["first"])
    pool.release(pages["second"])
    assert (pool.match([*first, 0]), pool.match([*second, 0])) == (pages["first"], pages["second"])
    assert pool.take(2) == pages["first"][:0:-1]
    assert (pool.match([*first, 0]), pool.match([*second, 0])) == (pages["first"][:1], pages["second"])
    pool.hold(pages["second"])
    assert pool.take(2) is None
    assert pool.match([*first, 0]) == pages["first"][:1]  # a failed `take` takes nothing
    assert pool.take(1) == pages["first"][:1]
    assert pool.match([*first, 0]) == []
    pool.release(pages["second"])
    assert pool.available == 3


def test_equal_sequences_at_once_are_indexed_once():
    pool = Pool(9, SIZE)
    tokens = [3] * 8
    one, two = pool.take(2), pool.take(2)
    pool.record(one, tokens, 0, 8)
    pool.record(two, tokens, 0, 8)
    assert pool.match([*tokens, 0]) == one
    pool.release(two)
    check_pool(pool)
    pool.release(one)
    check_pool(pool)
    assert pool.match([*tokens, 0]) == one


def requests(most: int):
    """(prompt, new tokens, steps until the next arrives, steps until it is cancelled)."""
    prompt = st.builds(lambda n, k: [k] * n, st.integers(1, most - 2), st.integers(0, 2))
    return st.lists(
        st.tuples(prompt, st.integers(1, 12), st.integers(0, 4), st.one_of(st.none(), st.integers(0, 30))),
        min_size=1,
        max_size=12,
    )


@settings(max_examples=300)
@given(
    arrivals=requests(30),
    shards=st.integers(1, 3),
    pages=st.integers(8, 24),
    rows=st.integers(1, 4),
    chunk=st.sampled_from([4, 16, 64]),
    steps=st.integers(1, 5),
    prefix_cache=st.booleans(),
    grows=st.booleans(),
)
def test_every_sequence_finishes_with_its_own_tokens_computed_in_order(
    arrivals, shards, pages, rows, chunk, steps, prefix_cache, grows
):
    """A device of Python lists: each slot contains the sequence up to it, and is read only once written."""
    scheduler = Scheduler(
        shards=shards, pages=pages, page_size=SIZE, rows=rows, chunk=chunk, chunk_rows=2, steps=steps,
        prefix_cache=prefix_cache, max_pages=3 * pages if grows else None,
    )  # fmt: skip
    contents = [{} for _ in range(shards)]
    texts, cancelled, finished, running, order = [], {}, [], 0, []

    def compute(text: TokenSequence, count: int) -> None:
        """Each new slot is written, and all before it must be there."""
        for place in range(text.computed, text.computed + count):
            page = contents[text.shard].setdefault(text.pages[place // SIZE], [None] * SIZE)
            page[place % SIZE] = tuple(text.tokens[: place + 1])
            for earlier in range(place + 1):
                page = contents[text.shard][text.pages[earlier // SIZE]]
                assert page[earlier % SIZE] == tuple(text.tokens[: earlier + 1])

    for prompt, new, pause, cancel_after in arrivals:
        limit = min(len(prompt) + new, (pages - 1) * SIZE)
        if len(prompt) >= limit:
            continue
        text = TokenSequence(tokens=list(prompt), limit=limit)
        scheduler.add(text)
        texts.append(text)
        if cancel_after is not None:
            cancelled[text] = running + cancel_after
        for _ in range(pause):
            running = advance(scheduler, compute, finished, cancelled, running, order)
    for _ in range(5000):
        if not unfinished(scheduler):
            break
        running = advance(scheduler, compute, finished, cancelled, running, order)
    assert not unfinished(scheduler), "a sequence starved"
    for text in finished:
        assert len(text.tokens) == text.limit
    for pool in scheduler.pools:
        check_pool(pool)
        assert pool.available == pool.capacity


def unfinished(scheduler) -> list:
    return [*(sequence for shard in scheduler.admitted for sequence in shard), *scheduler.waiting]


def advance(scheduler, compute, finished, cancelled, running, order) -> int:
    for text in [text for text, when in cancelled.items() if when <= running]:
        del cancelled[text]
        if text in unfinished(scheduler):
            scheduler.remove(text)
    pages = scheduler.pages
    while isinstance(plan := scheduler.schedule(), Grow):
        assert plan.before == pages
        pages = plan.pages
        assert plan.before < pages == min(2 * plan.before, scheduler.max_pages)
        assert all(pool.capacity == pages - 1 for pool in scheduler.pools)
    if isinstance(plan, Prefill):
        for parts in plan.parts:
            assert sum(count for _, count in parts) <= scheduler.chunk
            for text, count in parts:
                ends = count == text.pending
                compute(text, count)
                scheduler.advance(text, count)
                if ends:
                    text.tokens.append(7)
    elif isinstance(plan, Decode):
        for texts in plan.sequences:
            assert len(texts) <= scheduler.rows
            for text in texts:
                for _ in range(plan.steps):
                    compute(text, 1)
                    scheduler.advance(text, 1)
                    text.tokens.append(7)
                    if len(text.tokens) == text.limit:
                        break
    for text in unfinished(scheduler):
        if len(text.tokens) == text.limit:
            scheduler.remove(text)
            finished.append(text)
            order.append(text.number)
    for pool in scheduler.pools:
        check_pool(pool)
    return running + 1


def test_samples_of_one_prompt_and_a_second_turn_are_computed_once():
    scheduler = Scheduler(
        shards=1, pages=40, page_size=SIZE, rows=4, chunk=16, chunk_rows=4, steps=1, prefix_cache=True
    )
    prompt = list(range(33))
    samples = [TokenSequence(tokens=list(prompt), limit=40) for _ in range(4)]
    for text in samples:
        scheduler.add(text)
    computed = 0
    for _ in range(200):
        plan = scheduler.schedule()
        if plan is None:
            break
        if isinstance(plan, Prefill):
            computed += sum(count for _, count in plan.parts[0])
        pairs = plan.parts[0] if isinstance(plan, Prefill) else [(text, 1) for text in plan.sequences[0]]
        for text, count in pairs:
            ends = count == text.pending
            scheduler.advance(text, count)
            if ends:
                text.tokens.append(50 + text.number)
                if len(text.tokens) == text.limit:
                    scheduler.remove(text)
    assert [text.cached for text in samples] == [0, 32, 32, 32]
    assert computed == 32  # the last token of each, alone, is left to a decode step
    turn = TokenSequence(tokens=[*samples[1].tokens, 1, 2, 3], limit=50)
    scheduler.add(turn)
    scheduler.schedule()
    assert turn.cached == 36  # all full pages of the prompt and the answer
