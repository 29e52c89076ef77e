"""The other side of `benchmarks.distillation`: TRL's GKDTrainer on given documents or prompts, and the figures of each step."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

from benchmarks.distillation import BETAS, CLIP, PHASES, RATE, Document, Step
from qwen3_jax.verifiers import verify


def collated(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The batch of a step: documents padded on the right, and prompts on the left."""
    (example,) = examples
    tokens = [one["tokens"] for one in example["documents"]]
    labels = [one.get("labels") or one["tokens"] for one in example["documents"]]
    width = max(map(len, tokens))

    def padded(rows: list[list[int]], fill: int, left: bool = False) -> torch.Tensor:
        fills = [[fill] * (width - len(row)) for row in rows]
        return torch.tensor([more + row if left else row + more for row, more in zip(rows, fills, strict=True)])

    ones = [[1] * len(row) for row in tokens]
    return {
        "input_ids": padded(tokens, 0), "attention_mask": padded(ones, 0), "labels": padded(labels, -100),
        "prompts": padded(tokens, 0, left=True), "prompt_attention_mask": padded(ones, 0, left=True),
    }  # fmt: skip


class Trainer(GKDTrainer):
    """Takes documents in order, and keeps what the last step did: `learned` labels, `divergence`, `seconds` by phase."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds: Step = dict.fromkeys(PHASES, 0.0)
        self.divergence = self._began = 0.0
        self.learned = torch.empty(0)
        self.teacher_model.register_forward_pre_hook(lambda *_: setattr(self, "_began", time.perf_counter()))
        self.teacher_model.register_forward_hook(lambda *_: self._count("teacher", self._began))

    def _count(self, phase: str, began: float) -> None:
        self.seconds[phase] += time.perf_counter() - began

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def generate_on_policy_outputs(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        began = time.perf_counter()
        out = GKDTrainer.generate_on_policy_outputs(*args, **kwargs)
        self._count("rollout", began)
        return out

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.learned = inputs["labels"]
        loss = super().compute_loss(model, inputs, return_outputs, None if self.lmbda else num_items_in_batch)
        self.divergence = loss.item()
        return loss


class Clock(TrainerCallback):
    """Collects the figures of steps."""

    def __init__(self, documents: list[list[Document]], tokenizer: Any, verifier: str):
        self.documents, self.tokenizer, self.verifier = documents, tokenizer, verifier
        self.steps: list[Step] = []
        self.trainer: Trainer | None = None
        self._began = self._cpu = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        self.trainer.seconds = dict.fromkeys(PHASES, 0.0)
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        whole, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        assert self.trainer is not None
        seconds, labels = self.trainer.seconds, self.trainer.learned
        tokens = float((labels != -100).sum())
        step = Step(divergence=self.trainer.divergence, tokens=tokens, whole=whole, cpu=cpu)
        if seconds["rollout"]:
            rest = whole - seconds["rollout"] - seconds["teacher"]
            step |= seconds | {"reward": self._reward(labels), "rest": rest}
        self.steps.append(step)

    def _reward(self, labels: torch.Tensor) -> float:
        texts = [self.tokenizer.decode(row[row != -100], skip_special_tokens=True) for row in labels]
        asked = self.documents[len(self.steps)]
        scores = [
            verify(self.verifier, text, one["answer"]).score or 0.0 for text, one in zip(texts, asked, strict=True)
        ]
        return statistics.fmean(scores)


def gkd(
    student: str, teacher: str, documents: list[list[Document]], folder: Path, *, verifier: str = "number", **settings: Any
) -> tuple[Any, list[Step]]:  # fmt: skip
    """Train a step for each list of documents; return the model and the figures of each step.

    Args:
        settings: of GKDConfig, besides those that both sides have.
    """
    config = GKDConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_strategy="no", gradient_checkpointing=False, max_steps=len(documents), per_device_train_batch_size=1,
        temperature=1.0, learning_rate=RATE, lr_scheduler_type="constant", adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        weight_decay=0.0, max_grad_norm=CLIP, **settings,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(student, padding_side="left")
    model, other = (AutoModelForCausalLM.from_pretrained(of, dtype=torch.float32) for of in (student, teacher))
    data = Dataset.from_list([{"documents": some} for some in documents])
    clock = Clock(documents, tokenizer, verifier)
    clock.trainer = Trainer(
        model, other, config, data_collator=collated, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
    )
    clock.trainer.train()
    return model, clock.steps
