"""Two checkpoints that every mesh of the tests divides. Run as a script, it is one of two processes."""

import sys
from pathlib import Path

import numpy as np

PROMPTS = [[5, 6, 7], list(range(20, 33)), [300] * 8, [9]]
NEW = 12
SHAPE = (8, 120)  # of the tokens of one forward pass


def write(kind: str, folder: Path) -> Path:
    """Save a random model, "dense" or "moe", with weights wide enough for lively logits."""
    import qwen3_jax
    from tests.helpers import tiny_models

    fields = tiny_models.MOE if kind == "moe" else tiny_models.DENSE | dict(tie_word_embeddings=True)
    return qwen3_jax.save(tiny_models.drawn(qwen3_jax.Qwen3Config(**fields)), None, folder)


def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 320, SHAPE).astype(np.int32)


def greedy(model) -> list[list[int]]:
    """Greedy tokens under a thinking budget, one row past it at once and one with no budget."""
    from qwen3_jax import Engine, Request, Sampling
    from qwen3_jax.generation import ThinkingTokens

    think = ThinkingTokens(start=310, end=311, stop=(17, 311, 18))
    budgets = [(None, False), (3, True), (0, True), (5, True)]
    engine = Engine(model, rows=len(PROMPTS))
    got: dict[int, list[int]] = {}
    for prompt, (budget, thinking) in zip(PROMPTS, budgets, strict=True):
        sampling = Sampling(temperature=0, seed=0)
        request = Request(tuple(prompt), sampling, NEW, budget=budget, thinking=thinking, thinking_tokens=think)
        got[engine.submit(request)] = []
    while engine.busy:
        for token in engine.step():
            got[token.number].append(token.id)
    return list(got.values())


def main(index: int, coordinator: str, folder: Path, out: Path) -> None:
    """Process `index` of two: load over all eight devices, write the logits and greedy tokens, save the model again."""
    import jax
    from jax.experimental.multihost_utils import process_allgather

    import qwen3_jax
    import sharding

    sharding.initialize(coordinator, process_count=2, process_index=index)
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
    try:
        sharding.make_mesh(data=4)
    except sharding.ShardingError as error:
        assert "with several processes it must use all" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a mesh of half the devices was made")
    mesh = sharding.make_mesh(data=2, expert=2, tensor=2)
    model, _ = qwen3_jax.load(folder, mesh=mesh)
    assert not model.embed[...].is_fully_addressable
    logits = process_allgather(model(tokens()), tiled=True)
    np.savez(out / f"process-{index}.npz", logits=logits, greedy=np.asarray(greedy(model)))
    qwen3_jax.save(model, None, out / "saved")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
