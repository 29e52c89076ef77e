"""The invariant of `qwen3_jax.generation.pool`."""

from qwen3_jax.generation.pool import Pool


def check_pool(pool: Pool) -> None:
    """Raise AssertionError unless every page is free, held, or indexed without holders, and in one of these states only."""
    free, idle = set(pool._free), set(pool._idle)
    held = {page for page in range(1, pool.capacity + 1) if pool._holders[page] > 0}
    assert len(free) == len(pool._free), "a page is free twice"
    assert len(free) + len(idle) + len(held) == len(free | idle | held), "a page is in two states"
    assert free | idle | held == set(range(1, pool.capacity + 1)), "a page is lost, or page 0 is in use"
    assert idle <= set(pool._key_of) <= idle | held, "a page is indexed and free, or idle and not indexed"
    assert {pool._page_of[key] for key in pool._page_of} == set(pool._key_of) == set(pool._name_of)
