"""One training step (forward, backward, clip, AdamW) against transformers and torch, on the same shapes.

    python benchmarks/train_step.py                  # fp32 and bf16; goal: at least 1.0x torch
    python benchmarks/train_step.py --rows 4 --length 512 --rounds 10

Both hold float32 parameters; "bf16" computes in bfloat16 (torch: autocast). Both see the same tokens and must agree on the
first loss.
"""

import argparse

import numpy as np

from benchmarks.common import add_shape, interleaved, show
from benchmarks.models import DENSE, batch, stepper


def peer(folder: str, dtype: str, rows: int, length: int):
    """Return the same step in torch, from a checkpoint folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    not_decayed = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": not_decayed, "weight_decay": 0.0}],
        lr=1e-4, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    data = batch(DENSE, rows, length)
    tokens, targets = (torch.from_numpy(data[name].astype(np.int64)) for name in ("tokens", "targets"))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return step


def main() -> None:
    """Measure and print."""
    import tempfile

    from qwen3_jax.checkpoint import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    options = parser.parse_args()
    table, tokens = [], options.rows * options.length
    for dtype in ("float32", "bfloat16"):
        start, step = stepper(DENSE, dtype, options.rows, options.length)
        with tempfile.TemporaryDirectory() as folder:
            save(start, None, f"{folder}/hf")
            torch_step = peer(f"{folder}/hf", dtype, options.rows, options.length)
        losses = {}

        def remember(name, call, losses=losses):
            losses.setdefault(name, call())

        seconds = interleaved(
            {"qwen3-jax": lambda s=step: remember("ours", s), "torch": lambda s=torch_step: remember("torch", s)},
            options.rounds, dtype,
        )  # fmt: skip
        assert abs(losses["ours"] - losses["torch"]) < 0.02 * losses["torch"], losses
        table.append([
            dtype, f"{tokens / seconds['qwen3-jax']:,.0f}", f"{tokens / seconds['torch']:,.0f}",
            f"{seconds['torch'] / seconds['qwen3-jax']:.2f}x",
        ])  # fmt: skip
    show(f"train step, 29M parameters, {options.rows} x {options.length} tokens",
         ["compute", "qwen3-jax tok/s", "transformers + torch tok/s", "ratio"], table)  # fmt: skip


if __name__ == "__main__":
    main()
