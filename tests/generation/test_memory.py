"""What an engine holds besides its weights: a cache that starts small, and programs that copy neither weights nor cache."""

import dataclasses

import jax
import pytest
from flax import nnx

from qwen3_jax import Engine
from qwen3_jax.generation import program, runner
from tests.helpers import tiny_models
from tests.helpers.engine_runs import SHAPE

# Wide enough that a copy of its weights would stand out: 12 MB, most of it the vocabulary.
CONFIG = dataclasses.replace(tiny_models.TINY, vocab_size=8192, hidden_size=256, intermediate_size=512, head_dim=32)


def size_of(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_programs_copy_neither_weights_nor_cache(monkeypatch):
    engine = Engine(tiny_models.drawn(CONFIG, scan_layers=False), rows=1, cache_tokens=16_384, prefill_chunk=16)
    weights, cache = size_of(nnx.state(engine.model)), size_of(engine._runner.state.groups)
    assert cache > weights > 10e6
    compiled = {}
    for name in ("prefill", "decode"):
        jitted = getattr(program, name)

        def call(*args, jitted=jitted, name=name, **options):
            compiled[name] = jitted.lower(*args, **options).compile()
            return jitted(*args, **options)

        monkeypatch.setattr(program, name, call)
    for compile_one in engine.programs():
        compile_one()
    assert compiled.keys() == {"prefill", "decode"}
    for name, one in compiled.items():
        stats = one.memory_analysis()
        assert stats.argument_size_in_bytes > weights + cache, f"{name}: weights are constants"
        assert stats.alias_size_in_bytes > cache, f"{name}: the cache is not written in place"
        assert stats.output_size_in_bytes - stats.alias_size_in_bytes < 0.1 * weights, name
        assert stats.temp_size_in_bytes < 0.1 * weights, f"{name}: a weight is copied, or a buffer as large"


@pytest.mark.parametrize(("bytes_", "tokens"), [(None, 8 * 512), (1 << 40, 8 * 512), (1 << 20, 2048), (0, 512)])
def test_a_cache_that_grows_starts_with_what_memory_allows_and_one_row(bytes_, tokens, monkeypatch):
    """512 tokens a row; on CPU no more than `early_cache_bytes`."""
    monkeypatch.setattr(runner, "early_cache_bytes", lambda _: bytes_)
    monkeypatch.setattr(runner, "free_memory", lambda _: None)
    model = tiny_models.model()
    one_token = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim * 4
    assert one_token == 512
    engine = Engine(model, rows=8)
    assert engine.cache_usage[1] * 32 == tokens
    assert size_of(engine._runner.state.groups) == (tokens + 32) * one_token  # a page is the sink


def test_memory_goes_back_to_the_system_once_a_program_is_compiled(monkeypatch):
    returned = []
    monkeypatch.setattr(runner, "return_freed_memory", lambda: returned.append(None))
    engine = Engine(tiny_models.model(), **SHAPE)
    first, *_ = engine.programs()
    first()
    first()
    assert len(returned) == 1
    monkeypatch.undo()
    runner.return_freed_memory()
