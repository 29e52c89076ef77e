"""Steps of distillation on data against TRL's `GKDTrainer` on the same documents: losses and trained weights."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.distillation import BETAS, CLIP, RATE, placed_batches
from qwen3_jax.posttraining.reinforcement import train
from tests.posttraining.test_distillation import config_of, off_policy, teacher
from tests.posttraining.test_reinforcement_runs import base, metrics

__all__ = ["base", "teacher"]  # fixtures

STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "beta"),
    [
        ({"divergence": "reverse_kl"}, 1.0),
        ({"divergence": "forward_kl"}, 0.0),
        ({"divergence": "jsd", "beta": 0.3}, 0.3),
    ],
    ids=["reverse_kl", "forward_kl", "jsd"],
)
def test_steps_on_the_same_documents_give_the_weights_of_trl(settings, beta, base, teacher, tmp_path, monkeypatch):
    from benchmarks.gkd import gkd

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    optimizer = {
        "learning_rate": RATE, "warmup_steps": 0, "weight_decay": 0.0, "schedule": "constant", "beta1": BETAS[0],
        "beta2": BETAS[1], "clip_norm": CLIP,
    }  # fmt: skip
    file = off_policy(
        tmp_path, base, teacher, distillation=settings, steps=STEPS, optimizer=optimizer,
        eval_every=0, eval_at_start=False,  # its batches would be among the documents
    )  # fmt: skip
    with placed_batches() as documents:
        run = train(config_of(file)).parent
    theirs, steps = gkd(str(base), str(teacher), documents[:STEPS], tmp_path / "trl", lmbda=0.0, beta=beta)

    ours = [row["train.divergence"] for row in metrics(run) if "train.divergence" in row]
    assert min(ours) > 0, "nothing was learned from, so nothing was compared"
    np.testing.assert_allclose(ours, [step["divergence"] for step in steps], rtol=1e-4)
    before, after = (
        AutoModelForCausalLM.from_pretrained(of, dtype=torch.float32).state_dict() for of in (base, run / "hf")
    )
    for name, value in theirs.state_dict().items():
        moved = float((value - before[name]).norm())
        assert moved > 0, name
        assert float((value - after[name]).norm()) <= 2e-3 * moved, name
