"""One step of supervised fine-tuning on packed chats (forward, backward, clip, AdamW) against TRL, and against transformers.

    python -m benchmarks.sft_step                  # float32 and bf16; goal: at least 1.2x TRL
    python -m benchmarks.sft_step --rounds 3 --dtype float32

All parameters, held in float32; "bfloat16" computes in bfloat16 (torch: autocast). All sides have the same documents in the
same rows, kept apart from each other, learn the same tokens, and must agree on the first loss. torch has its documents apart by
position ids, as packing in TRL does it without flash attention, but a row for each of ours: TRL's own collator joins all rows
to one, whose attention would cost more.
"""

import argparse
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.common import add_shape, interleaved, show
from benchmarks.models import DENSE, stepper_on
from qwen3_jax.checkpoint import save
from qwen3_jax.data import Encoded, read_rows
from qwen3_jax.data.mixture import pack
from qwen3_jax.data.streams import Piece
from qwen3_jax.model import Qwen3

RATE = 1e-5


def packed(rows: int, length: int) -> tuple[list[Encoded], list[tuple[Piece, ...]]]:
    """Documents of 30 to 300 tokens, a prompt of a third of each, and the rows that they fill."""
    random, documents, made = np.random.default_rng(0), [], []
    while len(made) <= rows:
        size = int(min(30 + random.exponential(90), 300, length))
        tokens = random.integers(0, DENSE.vocab_size, size).astype(np.int32)
        documents.append(Encoded(tokens, np.arange(size) >= size // 3))
        made = pack([Piece(0, i, 0, len(one.tokens) - 1) for i, one in enumerate(documents)], length)
    return documents, made[:rows]


def ours(dtype: str, documents: list[Encoded], rows: list[tuple[Piece, ...]], length: int) -> tuple[Qwen3, Any]:
    """Return the model that training starts from, and a function that takes one step and returns the loss."""
    corpus: Any = SimpleNamespace(pairs=False, folder="memory", read=lambda numbers: [documents[i] for i in numbers])
    return stepper_on(DENSE, dtype, dict(read_rows(rows, [corpus], length)), learning_rate=RATE, weight_decay=0.0)


def torch_rows(documents: list[Encoded], rows: list[tuple[Piece, ...]]) -> dict[str, Any]:
    """The same rows with whole documents: input_ids, position_ids, labels; filled up with a document that is not learned."""
    import torch

    width = max(sum(len(documents[piece.document].tokens) for piece in row) for row in rows)
    ids, positions, labels = (np.zeros((len(rows), width), np.int64) for _ in range(3))
    labels[:] = -100
    for number, row in enumerate(rows):
        start = 0
        for piece in row:
            one = documents[piece.document]
            here = slice(start, start + len(one.tokens))
            ids[number, here], positions[number, here] = one.tokens, np.arange(len(one.tokens))
            labels[number, here] = np.where(one.loss & (np.arange(len(one.tokens)) > 0), one.tokens, -100)
            start += len(one.tokens)
        positions[number, start:] = np.arange(width - start)
    return {
        name: torch.from_numpy(array)
        for name, array in (("input_ids", ids), ("position_ids", positions), ("labels", labels))
    }


def loaded(folder: str) -> Any:
    """Return transformers' model."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()


def torch_step(model: Any, dtype: str, forward: Callable[[], Any]) -> Callable[[], float]:
    """Return a step around a function that computes the loss and its gradients and returns the loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return step


def plain_peer(folder: str, dtype: str, inputs: dict[str, Any]) -> Callable[[], float]:
    """The step in torch, of transformers' model."""
    model = loaded(folder)

    def forward() -> Any:
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return torch_step(model, dtype, forward)


def trl_peer(folder: str, dtype: str, inputs: dict[str, Any], scratch: str) -> Callable[[], float]:
    """The same with `SFTTrainer.training_step` of TRL."""
    import datasets
    import trl
    from transformers import AutoTokenizer

    from tests.helpers import tiny_models

    tiny_models.tokenizer().save_pretrained(scratch)
    arguments = trl.SFTConfig(
        output_dir=scratch, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    model = loaded(folder)
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=datasets.Dataset.from_dict({"input_ids": inputs["input_ids"].tolist()}),
        processing_class=AutoTokenizer.from_pretrained(scratch),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # which `train` sets
    model.train()
    return torch_step(model, dtype, lambda: trainer.training_step(trainer.model, dict(inputs)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="compute types")
    options = parser.parse_args()
    documents, rows = packed(options.rows, options.length)
    tokens, table = sum(piece.pairs for row in rows for piece in row), []
    for dtype in options.dtype:
        start, step = ours(dtype, documents, rows, options.length)
        inputs = torch_rows(documents, rows)
        with tempfile.TemporaryDirectory() as folder:
            save(start, None, f"{folder}/hf")
            sides = {
                "qwen3-jax": step,
                "TRL": trl_peer(f"{folder}/hf", dtype, inputs, folder),
                "transformers": plain_peer(f"{folder}/hf", dtype, inputs),
            }
            losses: dict[str, float] = {}

            def remember(name: str, call: Callable[[], float], losses: dict[str, float] = losses) -> None:
                losses.setdefault(name, call())

            calls = {name: lambda name=name, call=call: remember(name, call) for name, call in sides.items()}
            seconds = interleaved(calls, options.rounds, dtype)
        spread = 1e-5 if dtype == "float32" else 1e-2
        assert max(losses.values()) - min(losses.values()) < spread * losses["qwen3-jax"], losses
        table.append([
            dtype, *(f"{tokens / seconds[name]:,.0f}" for name in sides),
            *(f"{seconds[name] / seconds['qwen3-jax']:.2f}x" for name in ("TRL", "transformers")),
        ])  # fmt: skip
    show(f"SFT step, 29M parameters, {sum(map(len, rows))} documents in {options.rows} rows of {options.length} tokens",
         ["compute", "qwen3-jax tok/s", "TRL", "transformers", "against TRL", "against transformers"], table)  # fmt: skip


if __name__ == "__main__":
    main()
