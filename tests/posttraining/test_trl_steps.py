"""Steps of the method grpo against TRL's `GRPOTrainer` on the same answers: rewards, advantages and trained weights."""

import collections
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.posttraining import samples as storage
from qwen3_jax.posttraining.reinforcement import train
from qwen3_jax.verifiers import verify
from tests.posttraining.test_reinforcement_runs import base, write_config

__all__ = ["base"]  # a fixture

STEPS, PROMPTS, GROUP, LONGEST, RATE = 3, 4, 4, 32, 3e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "given"),
    [
        ("grpo", dict(loss_type="grpo", scale_rewards="group")),
        ("dapo", dict(loss_type="dapo", scale_rewards="group", epsilon_high=0.28)),
    ],
    ids=["grpo", "dapo"],
)
def test_steps_on_the_same_answers_give_the_weights_of_trl(algorithm, given, base, tmp_path, monkeypatch):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    optimizer = {
        "learning_rate": RATE, "warmup_steps": 0, "weight_decay": 0.0, "schedule": "constant", "beta1": 0.9, "beta2": 0.99,
        "clip_norm": 1.0,
    }  # fmt: skip
    rollouts = {"prompts": PROMPTS, "group_size": GROUP, "max_new_tokens": LONGEST, "keep": STEPS}
    file = write_config(tmp_path, base, steps=STEPS, eval_every=0, optimizer=optimizer)
    config = yaml.safe_load(file.read_text())
    config["data"]["batch_size"] = PROMPTS * GROUP
    config["rl"] = {"prompts": config["rl"]["prompts"], "rollouts": rollouts, "policy": {"algorithm": algorithm}}
    file.write_text(yaml.safe_dump(config))
    run = train(parse_train([f"--config={file}"], "train").config).parent
    rounds = [storage.load(run / "rollouts", step)[0] for step in range(STEPS)]

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    asked = {one.group: (one.about["messages"], one.about["answer"]) for samples in rounds for one in samples}
    learned: list[float] = []

    class Trainer(GRPOTrainer):
        """Answers as ours did."""

        def _generate_single_turn(self, prompt_ids, *_: Any, **__: Any):
            left = collections.defaultdict(list)
            for one in rounds[self.state.global_step]:
                left[tuple(one.prompt.tolist())].append(one.tokens.tolist())
            return [left[tuple(ids)].pop(0) for ids in prompt_ids], None

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any):
            out = super()._generate_and_score_completions(*args, **kwargs)
            ours = [one.advantage for one in rounds[self.state.global_step]]
            np.testing.assert_allclose(ours, out["advantages"].numpy(), atol=1e-5)
            learned.append(float(np.abs(ours).max()))
            return out

    def reward(completion_ids: list[list[int]], answer: list[dict], **_: Any) -> list[float | None]:
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [verify("length", text, wanted).score or 0.0 for text, wanted in zip(texts, answer, strict=True)]

    settings = GRPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_strategy="no", gradient_checkpointing=False, max_steps=STEPS, per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP, max_completion_length=LONGEST, shuffle_dataset=False, temperature=1.0, beta=0.0,
        learning_rate=RATE, lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.99, weight_decay=0.0,
        max_grad_norm=1.0, **given,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    data = Dataset.from_list([{"prompt": messages, "answer": answer} for messages, answer in asked.values()])
    Trainer(theirs, reward, args=settings, train_dataset=data, processing_class=tokenizer).train()
    assert min(learned) > 0, "nothing was learned from, so nothing was compared"

    before, ours = (
        AutoModelForCausalLM.from_pretrained(of, dtype=torch.float32).state_dict() for of in (base, run / "hf")
    )
    for name, after in theirs.state_dict().items():
        moved = float((after - before[name]).norm())
        assert float((after - ours[name]).norm()) <= 2e-3 * moved, name
