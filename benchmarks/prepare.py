"""Preparing text and loading it, against their peers.

    python examples/collect_corpus.py --output corpus
    python -m benchmarks.prepare --path 'corpus/*-000.jsonl' --mb 8

Prepare (goal: at least 1.0x): MB/s of text for each core, from JSONL to tokens on disk, against `datasets` (`load_dataset` of
the same JSONL, then `map` with the same tokenizer). Quality measures and near-duplicates, which `datasets` has not, have rows
of their own. One thread each, in turn, in CPU seconds, so that other load on the machine does not count. Both must give the
same tokens.

Loader (goal: at least 5x): tokens/s of packed batches on one thread, against what the training step of a model of the
quickstart's size consumes.
"""

import argparse
import dataclasses
import glob
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks.common import interleaved, show
from qwen3_jax.data import Cleaning, DataConfig, Labels, Prepared, Source, make_train_loader, prepare
from qwen3_jax.text import Tokenizer, train_tokenizer


def sample(pattern: str, megabytes: float, folder: Path) -> Path:
    """Copy some lines of every file into a folder."""
    files = sorted(glob.glob(pattern))
    for number, name in enumerate(files):
        with open(name, "rb") as source, (folder / f"{number:03}.jsonl").open("wb") as out:
            for line in source:
                if out.tell() + len(line) > megabytes * 1e6 / len(files):
                    break
                out.write(line)
    return folder


def preparing(corpus: Path, tokenizer: Tokenizer, work: Path, rounds: int) -> Prepared:
    """Print the table of preparation; return the prepared corpus."""
    import datasets

    datasets.disable_progress_bars()
    end = tokenizer.endoftext_id
    results: dict[str, Any] = {}

    def ours(name: str, quality: float | None = None, **options: Any) -> None:
        labels = Labels(domain_key="domain", language_key="language", quality=quality)
        source = Source("text", str(corpus), labels=labels, **options)
        results[name] = prepare(source, tokenizer, tempfile.mkdtemp(dir=work) + "/out", processes=1, visible=False)

    def theirs() -> None:
        def encode(rows: dict) -> dict:
            return {"input_ids": [[*ids, end] for ids in tokenizer.encode_batch(rows["text"])]}

        table = datasets.load_dataset(
            "json", data_files=sorted(map(str, corpus.iterdir())), split="train", cache_dir=tempfile.mkdtemp(dir=work)
        )
        results["map"] = table.map(
            encode,
            batched=True,
            batch_size=64,
            remove_columns=table.column_names,
            cache_file_name=tempfile.mkdtemp(dir=work) + "/tokens.arrow",
            load_from_cache_file=False,
        )

    near = Cleaning(duplicates="near")
    contestants = {
        "prepare": lambda: ours("prepare", quality=1.0),
        "datasets.map": theirs,
        "prepare, quality measured": lambda: ours("quality"),
        "prepare, quality measured, near-duplicates left out": lambda: ours("near", cleaning=near),
    }
    seconds = interleaved(contestants, rounds, "preparing", clock=time.process_time)
    prepared = results["prepare"]
    assert prepared.tokens == sum(map(len, results["map"]["input_ids"])), "the same tokens"
    megabytes = prepared.manifest["text_bytes"] / 1e6
    show(
        f"{megabytes:.1f} MB of text, {prepared.tokens:,} tokens, {rounds} rounds",
        ["", "MB/s per core", "ratio to datasets.map"],
        [[name, f"{megabytes / s:.2f}", f"{seconds['datasets.map'] / s:.2f}x"] for name, s in seconds.items()],
    )
    return prepared


def loading(corpus: Prepared, tokenizer: Tokenizer, rounds: int) -> None:
    """Print the table of loading."""
    from benchmarks.models import DENSE, stepper
    from qwen3_jax.training.run_folder import padded_vocabulary

    rows, length, batches = 16, 128, 200
    small = dataclasses.replace(
        DENSE, vocab_size=padded_vocabulary(tokenizer.vocab_size), hidden_size=128, intermediate_size=256,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    _, step = stepper(small, "float32", rows, length)
    config = DataConfig(
        [Source("text", str(corpus.folder))], sequence_length=length, batch_size=rows, prefetch_batches=0
    )
    loader = iter(make_train_loader(config, [corpus]))
    seconds = interleaved(
        {"loader": lambda: [next(loader) for _ in range(batches)], "step": lambda: [step() for _ in range(3)]},
        rounds, "loading", clock=time.perf_counter,
    )  # fmt: skip
    rates = {
        "loader": batches * rows * length / seconds["loader"],
        "step": 3 * rows * length / seconds["step"],
    }
    show(
        f"batches of {rows} x {length} tokens",
        ["", "tokens/s", "ratio to the step"],
        [[name, f"{rate:,.0f}", f"{rate / rates['step']:.1f}x"] for name, rate in rates.items()],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="corpus/*-000.jsonl", help="JSONL files of {'text': ...}")
    parser.add_argument("--mb", type=float, default=8, help="megabytes of text to read")
    parser.add_argument("--tokenizer", help="a folder; by default one of 16,000 tokens is trained on the text")
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each side, in turn (default: %(default)s)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        corpus = sample(args.path, args.mb, Path(folder) / "in")
        if args.tokenizer:
            tokenizer = Tokenizer.from_pretrained(args.tokenizer)
        else:
            from qwen3_jax.data import training_texts

            texts = training_texts(DataConfig([Source("text", str(corpus))]))
            tokenizer = train_tokenizer(texts, 16_000, show_progress=False)
        prepared = preparing(corpus, tokenizer, Path(folder), args.rounds)
        loading(prepared, tokenizer, args.rounds)


if __name__ == "__main__":
    main()
