"""Loss on text several times as long as a model was trained for, with plain RoPE, YaRN and Dual Chunk Attention.

    python -m benchmarks.long_context --model runs/quickstart/hf --trained 128
    python -m benchmarks.long_context --model Qwen/Qwen3-0.6B --trained 32768 --path corpus --dtype bfloat16

The text is the Python standard library's own source, or of `--path`. Losses are means over positions, in nats per token, of the
same texts for all three; no model is trained.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.common import show
from qwen3_jax.progress import progress_bar

TIMES = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--trained", type=int, required=True, help="tokens of the longest text it was trained on")
    parser.add_argument(
        "--path",
        type=Path,
        default=Path(argparse.__file__).parent,
        help="folder of Python source to read (default: the standard library)",
    )
    parser.add_argument("--dtype", default="float32", help="compute type (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=16, help="files to read (default: %(default)s)")
    options = parser.parse_args()
    trained, length = options.trained, TIMES * options.trained
    local = trained // 4
    variants = {
        "plain": {},
        "YaRN": dict(rope_scaling=dict(rope_type="yarn", factor=TIMES, original_max_position_embeddings=trained)),
        "Dual Chunk Attention": dict(dual_chunk_attention_config=dict(chunk_size=trained, local_size=local)),
    }
    rows = []
    for name, fields in variants.items():
        losses = loss_by_position(
            options.model, options.dtype, options.path, options.texts, length, trained - local, fields
        )
        parts = losses[:trained], *np.split(losses[trained:], TIMES - 1)
        rows.append([name, *(f"{part.mean():.3f}" for part in parts)])
        print(" | ".join(rows[-1]), flush=True)
    columns = [f"to {(i + 1) * trained:,}" for i in range(TIMES)]
    show(f"Loss by position, {options.model}", ["positions", *columns], rows)


def loss_by_position(
    model: str, dtype: str, path: Path, count: int, length: int, chunk: int, fields: dict
) -> np.ndarray:
    """Return the mean loss [length] at each position of `count` texts."""
    import qwen3_jax

    network, tokenizer = qwen3_jax.load(model, dtype=dtype, hf_overrides=fields | dict(max_position_embeddings=length))
    texts = []
    for file in sorted(path.rglob("*.py"), key=lambda file: (-file.stat().st_size, file))[: 4 * count : 4]:
        ids = tokenizer.encode(file.read_text(errors="replace"))[: length + 1]
        assert len(ids) == length + 1, f"{file} is too short"
        texts.append(ids)
    graphdef, params = nnx.split(network)
    step = np.gcd(chunk, 512)

    @jax.jit
    def losses(params, cache, tokens_bt, labels_bt):
        logits, cache = nnx.merge(graphdef, params)(tokens_bt, cache=cache)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels_bt), cache

    sums = np.zeros(length)
    with progress_bar("texts", len(texts)) as bar:
        for ids in texts:
            cache, row = network.new_cache(1, length), jnp.asarray(ids)[None]
            parts = []
            for start in range(0, length, step):
                part, cache = losses(params, cache, row[:, start : start + step], row[:, start + 1 : start + step + 1])
                parts.append(np.asarray(part[0]))
            sums += np.concatenate(parts)
            bar.advance()
    return sums / len(texts)


if __name__ == "__main__":
    main()
