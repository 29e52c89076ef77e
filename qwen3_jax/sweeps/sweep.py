"""Many small training runs with shared data and compiled programs; finished runs are not repeated.

    OUTPUT/results.jsonl    one line for each finished run, written when it ends
    OUTPUT/tokenizer, data  shared by all runs
    OUTPUT/runs/KEY         metrics.jsonl, config.json, log.txt of a run; its weights are deleted

A run is a `qwen3_jax.training.train` of its own. An interrupted one starts again, with the same result. Runs that differ only
in learning rate, seed or mixture share their compiled programs through JAX's compilation cache, where one is set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Labels, open_sources
from qwen3_jax.data.config import Cleaning
from qwen3_jax.errors import Diverged, UserError
from qwen3_jax.file_writes import cut_unfinished_line
from qwen3_jax.model import parameter_count
from qwen3_jax.paths import local_path
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import metrics, run_folder, train
from qwen3_jax.training.config import TrainConfig

Result = dict[str, Any]  # a line of results.jsonl
_LEAST_STEPS = 20


@dataclass(frozen=True)
class PlannedRun:
    """A training run of a sweep.

    Attributes:
        key: unique name, in results.jsonl and of its folder.
        labels: further fields of its result.
        config: its configuration; run_dir is set by the sweep.
    """

    key: str
    labels: Result
    config: TrainConfig

    @property
    def tokens(self) -> float:
        """Tokens it trains on."""
        return self.config.total_steps * self.config.data.batch_size * self.config.data.sequence_length


class Sweep:
    """The folder of a sweep, and its results so far.

    Args:
        output: the folder.

    Raises:
        UserError: results.jsonl is damaged.
    """

    def __init__(self, output: str | Path):
        self.output = local_path(output, "output")
        self.path = self.output / "results.jsonl"
        self._manifests: list[dict[str, Any]] = []  # of the prepared corpora
        self.results: dict[str, Result] = {}
        if self.path.exists():
            self.results = {row["key"]: row for row in read_rows(self.path, cut=True)}

    def prepare_shared(self, config: TrainConfig) -> tuple[TrainConfig, Tokenizer]:
        """Train the tokenizer and prepare the data of all runs, unless the folder has them.

        Returns:
            The configuration that reads the shared tokenizer and data, and the tokenizer.

        Raises:
            UserError: data cannot be read, or the folder holds data of another configuration.
        """
        folder = self.output / "tokenizer"
        self.output.mkdir(parents=True, exist_ok=True)
        if config.tokenizer.path is None and not folder.exists():
            source = resolve(config.model.init_from, key="model.init_from") if config.model.init_from else None
            partial = folder.with_name("tokenizer.partial")
            run_folder.load_or_train_tokenizer(self.output, config, source).save_pretrained(partial)
            partial.rename(folder)
        path = config.tokenizer.path or str(folder.absolute())
        tokenizer = Tokenizer.from_pretrained(resolve(path, key="tokenizer.path"))
        corpora = open_sources(config.data, tokenizer, self.output / "data")
        self._manifests = [corpus.manifest for corpus in corpora]
        sources = [
            dataclasses.replace(
                source, path=str(corpus.folder.absolute()), format="auto", text_key="text", loss_on="assistant",
                labels=Labels(), cleaning=Cleaning(), running_sum=None,
            )
            for source, corpus in zip(config.data.sources, corpora, strict=True)
        ]  # fmt: skip
        return dataclasses.replace(
            config,
            tokenizer=dataclasses.replace(config.tokenizer, path=path),
            data=dataclasses.replace(config.data, sources=sources),
        ), tokenizer

    def run(self, runs: Sequence[PlannedRun], title: str) -> list[Result]:
        """Train the runs that have no result yet; return the results of all, in order.

        Raises:
            UserError: results.jsonl has a run of the same key with other settings, or a configuration is invalid.
        """
        fingerprints = {run.key: _fingerprint(run.config, self._manifests) for run in runs}
        for run in runs:
            result = self.results.get(run.key)
            if result is not None and result.get("settings") != fingerprints[run.key]:
                raise UserError(
                    f"{self.path}: {run.key!r} was run with other settings; choose another output, or delete the file."
                )
        todo = [run for run in runs if run.key not in self.results]
        with progress_bar(title, sum(run.tokens for run in todo) / 1e6, unit="M tokens") as bar:
            for number, run in enumerate(todo, 1):
                bar.advance(0, f"run {number}/{len(todo)}: {run.key}")
                watch = _advancing(bar, run)
                row = self._one(run, fingerprints[run.key], watch)
                watch(run.config.total_steps, None)  # a diverged run ends early
                loss = "diverged" if row["loss"] is None else f"loss {row['loss']:.4f}"
                bar.print(f"{title} {number}/{len(todo)}: {run.key}: {loss} ({row['seconds']:.0f} s)")
        return [self.results[run.key] for run in runs]

    def _one(self, run: PlannedRun, settings: str, watch: Any) -> Result:
        run_dir = self.output / "runs" / re.sub(r"[^\w.=,-]+", "_", run.key)
        shutil.rmtree(run_dir, ignore_errors=True)  # left by an interrupted run
        run_dir.mkdir(parents=True)
        config = dataclasses.replace(run.config, run_dir=str(run_dir))
        started = time.perf_counter()
        diverged = None
        with (
            open(run_dir / "log.txt", "w", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                train(config, watch)
            except Diverged as error:
                diverged = str(error)
            except UserError as error:
                raise UserError(f"run {run.key!r}: {error}") from None
        losses: dict[str, float | None] = {} if diverged else final_losses(run_dir)
        finite = [value for value in losses.values() if value is not None]
        mean = sum(finite) / len(finite) if finite and len(finite) == len(losses) else None
        row = {
            "key": run.key, **run.labels, "loss": mean, "losses": losses,
            "seconds": round(time.perf_counter() - started, 1), "settings": settings,
        }  # fmt: skip
        if diverged:
            row["diverged"] = diverged
        self._append(row)
        for name in ("checkpoints", "hf", "tensorboard", "tokenizer"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        return row

    def _append(self, row: Result) -> None:
        """Append a line and sync it to disk."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.results[row["key"]] = row


def _advancing(bar: Bar, run: PlannedRun) -> Callable[[int, Any], None]:
    """Return a watch for `train` that advances the bar by the tokens trained since its last call."""
    done = 0

    def watch(step: int, _: Any) -> None:
        nonlocal done
        bar.advance((step - done) / run.config.total_steps * run.tokens / 1e6)
        done = step

    return watch


def read_rows(path: Path, cut: bool = False) -> list[Result]:
    """Return the lines of a results file.

    Args:
        cut: truncate an unfinished last line, left by a killed process.

    Raises:
        UserError: the file does not exist, or a line is no JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    if cut:
        cut_unfinished_line(path)
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is not a JSON object.")
        rows.append(row)
    return rows


def final_losses(run_dir: Path) -> dict[str, float | None]:
    """Return the last held-out losses of a run by name; None for one that is not finite.

    Raises:
        UserError: no source holds out data.
    """
    losses = metrics.last_held_out(metrics.read(run_dir / "metrics.jsonl"))
    if not losses:
        raise UserError("no source holds out data (data.sources: eval_fraction), so there is no loss to compare.")
    return losses


def sized(
    config: TrainConfig, tokens: float, batch_size: int, warmup_share: float, eval_tokens: int, seed: int, what: str
) -> TrainConfig:
    """Return the configuration of a run of `tokens` tokens that measures held-out loss once, at its end.

    Raises:
        UserError: the configuration has stages, or the run has fewer than 20 steps; names the run (`what`).
    """
    if config.stages:
        raise UserError("a sweep trains in one stage: give its training configuration steps instead of stages.")
    steps = round(tokens / (batch_size * config.data.sequence_length))
    if steps < _LEAST_STEPS:
        raise UserError(
            f"{what}: {tokens:,.0f} tokens in batches of {batch_size * config.data.sequence_length:,} are {steps} steps; "
            f"at least {_LEAST_STEPS} are needed."
        )
    rows = max(eval_tokens // config.data.sequence_length, 1)
    return dataclasses.replace(
        config,
        steps=steps,
        data=dataclasses.replace(config.data, batch_size=batch_size),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=min(round(warmup_share * steps), steps - 1)),
        seed=seed,
        eval_every=0,
        # The number of held-out rows does not depend on the batch size.
        eval_batches=max(rows // batch_size, 1),
        checkpoint_every=0,
        checkpoint_keep_best=0,
        log_every=max(steps // 20, 1),
        budget_curve=None,
        wandb=None,
        profile=False,
    )


def active_parameters(config: Qwen3Config) -> int:
    """Return the parameters that a token uses, without embedding and output projection: the N of published laws."""
    tables = 1 if config.tie_word_embeddings else 2
    return parameter_count(config, active=True) - tables * config.vocab_size * config.hidden_size


def _fingerprint(config: TrainConfig, data: list[Result]) -> str:
    """Return a hash of all that decides a run's result."""
    values = dataclasses.asdict(config)
    for name in ("run_dir", "mesh", "log_every", "checkpoint_keep"):
        del values[name]
    for name in ("cache", "prefetch_batches"):
        del values["data"][name]
    # Data and tokenizer count by content (`data`: the corpora's manifests), not by path.
    for source in values["data"]["sources"]:
        del source["path"]
    del values["tokenizer"]
    return hashlib.blake2b(json.dumps([values, data], sort_keys=True).encode(), digest_size=8).hexdigest()
