"""Policy objectives against TRL's `GRPOTrainer._compute_loss`: values and gradients on the same log-probabilities."""

import collections
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from qwen3_jax.training.policy import policy, policy_sums
from tests.helpers.answers import K3, MAX_TOKENS, answers_of, around, batch_of, config_of

KL = {"beta": K3["coefficient"]}
CASES = [
    ("grpo", dict(dual_clip=1.3, kl=K3), dict(delta=1.3, **KL)),
    ("grpo", dict(drop_off_policy=0.05, kl=K3 | dict(unbiased=False)), dict(opsm=0.05, plain_kl=True, **KL)),
    ("dr_grpo", dict(importance_cap=1.2), dict(ratio="token")),
    ("dapo", dict(kl=K3), dict(epsilon_high=0.28, **KL)),
    ("gspo", dict(importance_cap=1.5, importance_level="sequence"),
     dict(loss_type="grpo", level="sequence", epsilon_low=3e-4, epsilon_high=4e-4, ratio="sequence")),
    ("cispo", dict(importance_cap=1.2), dict(epsilon_high=5.0, ratio="token")),
]  # fmt: skip


def of_trl(algorithm: str, batch: dict[str, np.ndarray], log_prob: torch.Tensor, entropy: torch.Tensor, given: dict):
    """TRL's loss of one answer in each row; its trainer without a model, which the log-probabilities stand for."""
    from trl import GRPOTrainer

    tensor = {name: torch.from_numpy(value) for name, value in batch.items()}
    trainer = object.__new__(GRPOTrainer)
    settings = dict(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=given.get("opsm"),
        importance_sampling_level=given.get("level", "token"), beta=given.get("beta", 0.0),
        loss_type=given.get("loss_type", algorithm), epsilon_low=given.get("epsilon_low", 0.2),
        epsilon_high=given.get("epsilon_high", 0.2), use_vllm="ratio" in given, vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=MAX_TOKENS,
        _entropy_bonus_enabled=False, _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        args=SimpleNamespace(
            use_bias_correction_kl="plain_kl" not in given, delta=given.get("delta"), steps_per_generation=1
        ),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_prob, entropy, None),
    )  # fmt: skip
    vars(trainer).update(settings)
    mask = tensor["loss_mask"]
    difference = (tensor["old"] - tensor["behaviour"]) * mask
    ratio = difference.exp()
    if given.get("ratio") == "sequence":  # as `_generate_and_score_completions` has it, mode sequence_mask
        ratio = difference.sum(-1, keepdim=True).exp()
        ratio = ratio.masked_fill(ratio > 1.5, 0.0)
    inputs = dict(
        prompt_ids=tensor["tokens"][:, :0], prompt_mask=tensor["tokens"][:, :0], completion_ids=tensor["targets"],
        completion_mask=mask, advantages=tensor["advantages"][:, 0],
        old_per_token_logps=tensor["old"], sampling_per_token_logps=tensor["behaviour"],
        ref_per_token_logps=tensor["reference"], num_items_in_batch=mask.sum(),
        importance_sampling_ratio=ratio.clamp(max=1.2) if given.get("ratio") == "token" else ratio,
    )  # fmt: skip
    return trainer._compute_loss(None, inputs)


@pytest.mark.parametrize(("algorithm", "options", "given"), CASES, ids=[case[0] for case in CASES])
def test_losses_and_gradients_equal_trl_s(algorithm, options, given):
    random = np.random.default_rng(1)
    answers = [one for one in answers_of(16) if one.learned.any()]
    log_probs = [-random.exponential(size=len(one.learned)).astype(np.float32) for one in answers]
    answers = around(answers, log_probs)
    length = max(len(one.learned) for one in answers)
    alone = [batch_of([one], 1, length) for one in answers]
    batch = {name: np.concatenate([one[name] for one in alone]) for name in alone[0]}
    batch["entropy_weights"][:] = 0
    # A packed field is 0 where nothing is learned, and so is theirs.
    log_prob = (batch["old"] + 0.4 * random.normal(size=batch["old"].shape)) * batch["loss_mask"]
    log_prob = log_prob.astype(np.float32)
    config = config_of(algorithm, **options)
    whole = policy(config, 1.0, ()).whole(batch)
    count = whole.tokens if config.aggregation == "token_mean" else whole.answers

    def ours(log_prob):
        return policy_sums(config, log_prob, 0 * log_prob, batch)[0] / count

    value, gradient = jax.jit(jax.value_and_grad(ours))(log_prob)
    live = torch.from_numpy(log_prob).requires_grad_()
    theirs = of_trl(algorithm, batch, live, torch.zeros_like(live), given)
    theirs.backward()
    assert live.grad is not None
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5, atol=1e-6)
    largest = float(live.grad.abs().max())
    np.testing.assert_allclose(gradient, live.grad.numpy(), atol=1e-5 * largest)
