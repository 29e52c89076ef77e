"""Post-training against transformers and TRL: losses, gradients and steps on the same tokens; reward folders read by both."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import qwen3_jax
import sharding
from qwen3_jax.checkpoint import load_model
from qwen3_jax.data import Encoded, read_rows
from qwen3_jax.data.mixture import pack
from qwen3_jax.data.streams import Piece
from qwen3_jax.errors import UserError
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.model import RewardModel, flatten
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.losses import LANGUAGE_MODEL
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.preferences import REWARD_MODEL, dpo
from qwen3_jax.training.step import Trainer
from tests.helpers import tiny_models

BETA = 0.2


def documents(count: int, vocabulary: int, seed: int = 0) -> list[Encoded]:
    """Prompts of 2 to 8 tokens, not learned, and answers of 2 to 9."""
    random, out = np.random.default_rng(seed), []
    for _ in range(count):
        prompt, answer = random.integers(2, 9), random.integers(2, 10)
        tokens = random.integers(0, vocabulary, prompt + answer).astype(np.int32)
        out.append(Encoded(tokens, np.arange(len(tokens)) >= prompt))
    return out


def paired(chosen: list[Encoded], rejected: list[Encoded]) -> list[Encoded]:
    return [
        Encoded(np.concatenate([a.tokens, b.tokens]), np.concatenate([a.loss, b.loss]), len(a.tokens))
        for a, b in zip(chosen, rejected, strict=True)
    ]


def batch_of(held: list[Encoded], length: int, rows: int, reference=None, together: bool = True):
    """Documents or pairs in rows, packed or one to a row."""
    pairs = bool(held[0].rejected)
    corpus = SimpleNamespace(pairs=pairs, folder="memory", read=lambda numbers: [held[i] for i in numbers])
    pieces = [Piece(0, i, 0, len(one.tokens) - (not pairs)) for i, one in enumerate(held)]
    packed = pack(pieces, length) if together else [(piece,) for piece in pieces]
    return read_rows(packed + [()] * (rows - len(packed)), [corpus], length, None if reference is None else [reference])


def padded(held: list[Encoded], side: str = "right"):
    """(input_ids, attention_mask, learned) as torch tensors."""
    import torch

    length = max(len(one.tokens) for one in held)
    ids, mask, learned = (np.zeros((len(held), length), np.int64) for _ in range(3))
    for row, one in enumerate(held):
        here = slice(0, len(one.tokens)) if side == "right" else slice(length - len(one.tokens), None)
        ids[row, here], mask[row, here], learned[row, here] = one.tokens, 1, one.loss
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(learned)


def trainer_of(folder: Path, objective, optimizer: OptimizerConfig | None = None) -> tuple[Trainer, dict]:
    """A trainer and the folder's parameters; without the load-balancing loss, which TRL leaves out too."""
    optimizer = optimizer or OptimizerConfig()
    model = load_model(folder, dtype="float32", param_dtype="float32", scan_layers=False)
    config = dataclasses.replace(model.config, router_aux_loss_coef=0.0)
    settings = ModelConfig(scan_layers=False)
    trainer = Trainer(
        config, settings, optimizer, schedule(optimizer, 10**3), sharding.Placement(), objective=objective
    )
    return trainer, flatten(model)


def slopes_of(peer, folder: Path) -> dict[str, np.ndarray]:
    """The peer's gradients under our names: they travel as the weights of a folder."""
    import torch

    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    peer.save_pretrained(folder)
    return flatten(load_model(folder, dtype="float32", param_dtype="float32", scan_layers=False))


def assert_equal(gradients, expected, tolerance=1e-5):
    """Each parameter's gradient, relative to its norm and to its largest element. Single elements near 0 are sums that cancel:
    both sides are about 2e-6 of the norm from those of float64."""
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        value, want = np.asarray(value, np.float64), np.asarray(expected[name], np.float64)
        assert np.linalg.norm(value - want) <= tolerance * np.linalg.norm(want), name
        assert np.abs(value - want).max() <= tolerance * np.abs(want).max(), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dense_untied", "moe"])
def test_sft_loss_and_gradients_are_those_of_transformers(variant, tmp_path):
    """Packed or a document to a row, against padded rows."""
    from tests.helpers import hf_checkpoints

    peer = hf_checkpoints.build(variant)
    peer.save_pretrained(tmp_path / "base")
    held = documents(7, peer.config.vocab_size)
    ids, mask, learned = padded(held)
    loss = peer(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(learned == 0, -100)).loss
    loss.backward()
    trainer, params = trainer_of(tmp_path / "base", LANGUAGE_MODEL)
    slopes = slopes_of(peer, tmp_path / "slopes")
    for batch in (batch_of(held, 32, 8), batch_of(held, 24, 8, together=False)):
        gradients, got = trainer.gradients(params, trainer.place(batch))
        np.testing.assert_allclose(got.total, float(loss), rtol=1e-5)
        assert_equal(gradients, slopes)


@pytest.mark.slow
def test_twenty_steps_are_those_of_trl_s_sft_trainer(tmp_path):
    """All documents in each batch, so that the order does not matter."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    import transformers

    from tests.helpers import hf_checkpoints

    peer = hf_checkpoints.build_from(False, hf_checkpoints.SMALL | {"vocab_size": tiny_models.VOCABULARY})
    peer.save_pretrained(tmp_path / "base")
    tiny_models.tokenizer().save_pretrained(tmp_path / "tokenizer")
    held = documents(8, tiny_models.VOCABULARY)
    rows = [{"input_ids": one.tokens.tolist(), "labels": np.where(one.loss, one.tokens, -100).tolist()} for one in held]
    options = trl.SFTConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=8, max_steps=20, learning_rate=1e-3, lr_scheduler_type="constant",
        warmup_steps=0, adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, optim="adamw_torch",
    )  # fmt: skip
    other = trl.SFTTrainer(
        peer, options, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
    )  # fmt: skip
    other.train()
    expected = [row["loss"] for row in other.state.log_history if "loss" in row]

    settings = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=0, schedule="constant", weight_decay=0.0, spike_sigmas=0
    )
    trainer, params = trainer_of(tmp_path / "base", LANGUAGE_MODEL, settings)
    state, losses = trainer.init_from(params), []
    batch = trainer.place(batch_of(held, 64, 4))
    for _ in range(20):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics.loss.total))
    assert len(expected) == 20
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    other.model.save_pretrained(tmp_path / "after")
    after = flatten(load_model(tmp_path / "after", dtype="float32", param_dtype="float32", scan_layers=False))
    for name, value in state.params.items():
        np.testing.assert_allclose(value, after[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dense_untied", "moe"])
def test_dpo_loss_and_gradients_are_those_of_trl(variant, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    import torch
    import transformers

    from tests.helpers import hf_checkpoints

    moe, fields = hf_checkpoints.VARIANTS[variant]
    fields = fields | {"vocab_size": tiny_models.VOCABULARY}
    peer, reference = (hf_checkpoints.build_from(moe, fields, seed=seed) for seed in (0, 1))
    peer.save_pretrained(tmp_path / "base")
    tiny_models.tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = trl.DPOConfig(
        str(tmp_path / "trl"), beta=BETA, per_device_train_batch_size=4, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_dropout=False, **({"router_aux_loss_coef": 0.0} if moe else {}),
    )  # fmt: skip
    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    other = trl.DPOTrainer(
        peer, reference, options, train_dataset=datasets.Dataset.from_list([text] * 4),
        processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
    )  # fmt: skip
    chosen, rejected = documents(4, tiny_models.VOCABULARY, 1), documents(4, tiny_models.VOCABULARY, 2)
    ids, mask, learned = padded(chosen + rejected)
    other.model.train()  # its metrics are then those of training; there is no dropout
    loss = other._compute_loss(
        other.model, {"input_ids": ids, "attention_mask": mask, "completion_mask": learned}, return_outputs=False
    )
    loss.backward()
    with torch.no_grad():
        logits = reference(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[:, :-1]
    logps = (logits.gather(-1, ids[:, 1:, None])[..., 0] * learned[:, 1:]).sum(-1).numpy().reshape(2, -1).T

    trainer, params = trainer_of(tmp_path / "base", dpo(BETA))
    metrics = {name: float(np.mean(values)) for name, values in other._metrics["train"].items()}
    slopes = slopes_of(other.model, tmp_path / "slopes")
    batch = batch_of(paired(chosen, rejected), 64, 4, logps.astype(np.float32))
    gradients, got = trainer.gradients(params, trainer.place(batch))
    np.testing.assert_allclose(got.total, float(loss), rtol=1e-5)
    assert_equal(gradients, slopes)
    for ours, theirs in (("rewards_chosen", "rewards/chosen"), ("rewards_rejected", "rewards/rejected"),
                         ("margins", "rewards/margins"), ("accuracies", "rewards/accuracies"),
                         ("logps_chosen", "logps/chosen"), ("logps_rejected", "logps/rejected")):  # fmt: skip
        np.testing.assert_allclose(getattr(got, ours), metrics[theirs], rtol=1e-4, err_msg=ours)


@pytest.mark.slow
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_a_reward_folder_gives_transformers_the_same_scalar_on_either_side_of_padding(moe, tmp_path):
    import torch
    import transformers

    fields = tiny_models.TINY_MOE if moe else tiny_models.TINY
    structure = trainer_for_rewards(fields)
    params = structure.init(0).params
    model = structure.model(params)
    model.generation_config = GenerationConfig(pad_token_id=0)
    folder = qwen3_jax.save(model, None, tmp_path / "rewards")
    ours, _ = qwen3_jax.load(folder)
    assert isinstance(ours, RewardModel)
    held = [dataclasses.replace(one, tokens=one.tokens % 63 + 1) for one in documents(6, 63)]  # 0 is the pad
    rewards = qwen3_jax.reward(ours, None, [one.tokens.tolist() for one in held], batch_size=4)
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(peer).__name__ == ("Qwen3MoeForSequenceClassification" if moe else "Qwen3ForSequenceClassification")
    assert peer.num_labels == 1
    for side in ("right", "left"):
        ids, mask, _ = padded(held, side)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            scores = peer(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 0]
        np.testing.assert_allclose(rewards, scores.numpy(), rtol=1e-4, atol=1e-6)

    # TRL's own loss of the same folder, whose pad is the first token.
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tiny_models.tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = trl.RewardConfig(
        str(tmp_path / "trl"), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, disable_dropout=False,
    )  # fmt: skip
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [3, 4]}]
    other = trl.RewardTrainer(
        peer, options, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
    )  # fmt: skip
    peer.config.pad_token_id = 0
    pairs = paired(held[:3], held[3:])
    ids, mask, _ = padded(held)
    loss = other.compute_loss(peer, {"input_ids": ids, "attention_mask": mask})
    loss.backward()
    gradients, got = structure.gradients(params, structure.place(batch_of(pairs, 64, 3)))
    np.testing.assert_allclose(got.total, float(loss), rtol=1e-5)
    assert_equal(gradients, slopes_of(peer, tmp_path / "slopes"))

    with pytest.raises(UserError, match="has no vocabulary to answer with"):
        ours(jnp.ones((1, 4), jnp.int32))


def trainer_for_rewards(config) -> Trainer:
    optimizer = OptimizerConfig()
    config = dataclasses.replace(config, router_aux_loss_coef=0.0, initializer_range=0.2)
    settings = ModelConfig(scan_layers=False)
    return Trainer(config, settings, optimizer, schedule(optimizer, 10), sharding.Placement(), objective=REWARD_MODEL)
