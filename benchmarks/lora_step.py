"""One LoRA step (forward, backward, clip, AdamW) against TRL and against transformers, both with peft; and its memory.

    python -m benchmarks.lora_step                  # float32 and bf16; goal: at least 1.2x TRL
    python -m benchmarks.lora_step --memory         # bytes of the compiled step, against one of all parameters

Rank 16 on all linear layers, one device, no recomputation, the base in the compute type, adapters and moments in float32. All
sides see the same tokens and must agree on the first loss.
"""

import argparse
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

import sharding
from benchmarks.common import add_shape, interleaved, show
from benchmarks.models import DENSE, batch
from qwen3_jax import AdapterConfig
from qwen3_jax.checkpoint import save
from qwen3_jax.checkpoint.adapters.targets import targets
from qwen3_jax.model import Qwen3, flatten
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer

RANK = 16
RATE = 1e-4


def trainer_of(dtype: str, adapters: bool, placement: sharding.Placement = sharding.Placement()) -> Trainer:
    """Return a trainer of adapters, or of all parameters."""
    options = OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=RATE)
    lora = targets(AdapterConfig(RANK, 2.0 * RANK, "all-linear"), DENSE) if adapters else None
    model = ModelConfig(dtype=dtype, param_dtype=dtype if adapters else "float32", scan_layers=False)
    return Trainer(DENSE, model, options, schedule(options, 10**6), placement, lora=lora)


def ours(base: Qwen3, dtype: str, rows: int, length: int) -> Callable[[], float]:
    """Return a function that takes one step and returns the loss."""
    trainer = trainer_of(dtype, adapters=True)
    trainer.take_base(flatten(base) | trainer.constants())
    state, placed = trainer.init(0), trainer.place(batch(DENSE, rows, length))

    def step() -> float:
        nonlocal state
        state, metrics = trainer.step(state, placed)
        return float(metrics.loss.cross_entropy)

    return step


def adapted(folder: str, dtype: str):
    """Return transformers' model with peft's adapters."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def torch_step(model, forward: Callable[[], object]) -> Callable[[], float]:
    """Return a step around a function that computes the loss and its gradients and returns the loss."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss)

    return step


def plain_peer(folder: str, dtype: str, rows: int, length: int) -> Callable[[], float]:
    """The step in torch, of transformers' model with peft."""
    import torch

    model = adapted(folder, dtype).train()
    data = batch(DENSE, rows, length)
    tokens, labels = (torch.from_numpy(data[name].astype(np.int64)) for name in ("tokens", "targets"))

    def forward():
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        return loss.detach()

    return torch_step(model, forward)


def trl_peer(folder: str, dtype: str, rows: int, length: int, scratch: str) -> Callable[[], float]:
    """The same with `SFTTrainer.training_step` of TRL."""
    import datasets
    import torch
    import trl

    model, data = adapted(folder, dtype), batch(DENSE, rows, length)
    # TRL shifts by itself: one token more than the rows above, so that as many are learned.
    tokens = np.concatenate([data["tokens"], data["targets"][:, -1:]], axis=1).astype(np.int64)
    arguments = trl.SFTConfig(
        output_dir=scratch, per_device_train_batch_size=rows, max_length=length + 1, report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, packing=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=datasets.Dataset.from_dict({"input_ids": tokens.tolist()}),
        processing_class=_tokenizer(scratch),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # `train` sets it
    ids = torch.from_numpy(tokens)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    model.train()
    return torch_step(model, lambda: trainer.training_step(trainer.model, dict(inputs)))


def _tokenizer(folder: str):
    from transformers import AutoTokenizer

    from tests.helpers import tiny_models

    tiny_models.tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def speed(options: argparse.Namespace) -> None:
    """Time all sides and print."""
    table, tokens = [], options.rows * options.length
    for dtype in options.dtype:
        base = Qwen3(DENSE, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype, scan_layers=False)
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, f"{folder}/hf")
            sides = {
                "qwen3-jax": ours(base, dtype, options.rows, options.length),
                "TRL": trl_peer(f"{folder}/hf", dtype, options.rows, options.length, folder),
                "transformers": plain_peer(f"{folder}/hf", dtype, options.rows, options.length),
            }
            losses: dict[str, float] = {}

            def remember(name: str, call: Callable[[], float], losses: dict[str, float] = losses) -> None:
                losses.setdefault(name, call())

            calls = {name: lambda name=name, call=call: remember(name, call) for name, call in sides.items()}
            seconds = interleaved(calls, options.rounds, dtype)
        assert max(losses.values()) - min(losses.values()) < 0.02 * losses["qwen3-jax"], losses
        table.append([
            dtype, *(f"{tokens / seconds[name]:,.0f}" for name in sides),
            *(f"{seconds[name] / seconds['qwen3-jax']:.2f}x" for name in ("TRL", "transformers")),
        ])  # fmt: skip
    show(f"LoRA step, rank {RANK}, 29M parameters, {options.rows} x {options.length} tokens",
         ["compute", "qwen3-jax tok/s", "TRL + peft", "transformers + peft", "against TRL", "against transformers"],
         table)  # fmt: skip


def memory(options: argparse.Namespace) -> None:
    """Print what the compiled steps hold and use."""
    table = []
    for dtype in options.dtype:
        for adapters in (False, True):
            mesh = sharding.make_mesh(data=1)  # shapes without values are described on a mesh
            trainer = trainer_of(dtype, adapters, sharding.Placement(mesh, sharding.TRAINING))
            trainer.base = trainer.abstract_base(None)
            state, rows = trainer.abstract_state(), trainer.abstract_batch(options.rows, options.length)
            analysis = trainer.lower(state, rows).compile().memory_analysis()
            sizes = {
                name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20
                for name, tree in (("weights", (state.params, trainer.base)), ("moments", state.optimizer))
            }
            temporary = analysis.temp_size_in_bytes / 2**20
            kind = "LoRA" if adapters else "all parameters"
            table.append(
                [dtype, kind, *(f"{x:,.1f}" for x in (*sizes.values(), temporary, sum(sizes.values()) + temporary))]
            )
    show(f"memory of a step, MiB, {options.rows} x {options.length} tokens",
         ["compute", "trained", "weights", "moments", "temporary", "in all"], table)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="compute types")
    parser.add_argument("--memory", action="store_true", help="memory of the compiled steps; nothing is timed")
    options = parser.parse_args()
    (memory if options.memory else speed)(options)


if __name__ == "__main__":
    main()
