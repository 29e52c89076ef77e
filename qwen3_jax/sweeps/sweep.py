"""Many small training runs: one line of results each, none repeated, compiled programs and prepared data shared.

    OUTPUT/results.jsonl    a line for each finished run, written when it ends; what is there is not run again
    OUTPUT/tokenizer, data  made once, for all runs
    OUTPUT/compiled         programs: runs that differ in learning rate, seed or mixture alone share one
    OUTPUT/runs/KEY         metrics.jsonl, config.json, log.txt of a run; its weights are deleted

A run is an ordinary one (`qwen3_jax.training.train`). One that was interrupted starts again, with the same result.
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

import jax

from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Labels, open_sources
from qwen3_jax.data.config import Cleaning
from qwen3_jax.errors import Diverged, UserError
from qwen3_jax.model import parameter_count
from qwen3_jax.progress import Bar, progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training import metrics, run_folder, train
from qwen3_jax.training.config import TrainConfig

Row = dict[str, Any]
_LEAST_STEPS = 20


@dataclass(frozen=True)
class Run:
    """One run to make.

    Attributes:
        key: names it, in results and as a folder.
        labels: what its line says besides losses.
        config: of the run; run_dir is set here.
    """

    key: str
    labels: Row
    config: TrainConfig

    @property
    def tokens(self) -> float:
        """That it trains on."""
        return self.config.total_steps * self.config.data.batch_size * self.config.data.sequence_length


class Sweep:
    """The folder of an experiment.

    Args:
        output: the folder.

    Raises:
        UserError: results.jsonl is damaged.
    """

    def __init__(self, output: str | Path):
        self.output = Path(output).expanduser()
        self.results = self.output / "results.jsonl"
        self._data: list[Row] = []  # what the prepared corpora are
        self.rows: dict[str, Row] = {}
        if self.results.exists():
            self.rows = {row["key"]: row for row in read_rows(self.results, cut=True)}

    def share(self, config: TrainConfig) -> tuple[TrainConfig, Tokenizer]:
        """Return the configuration with its tokenizer made and its data prepared, once for all runs, and the tokenizer.

        Raises:
            UserError: data cannot be read, or the folder holds those of another configuration.
        """
        folder = self.output / "tokenizer"
        self.output.mkdir(parents=True, exist_ok=True)
        if jax.config.values["jax_compilation_cache_dir"] is None:
            jax.config.update("jax_compilation_cache_dir", str(self.output.absolute() / "compiled"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        if config.tokenizer.path is None and not folder.exists():
            source = resolve(config.model.init_from) if config.model.init_from else None
            partial = folder.with_name("tokenizer.partial")
            run_folder.load_or_train_tokenizer(self.output, config, source).save_pretrained(partial)
            partial.rename(folder)
        path = config.tokenizer.path or str(folder.absolute())
        tokenizer = Tokenizer.from_pretrained(resolve(path))
        corpora = open_sources(config.data, tokenizer, self.output / "data")
        self._data = [corpus.manifest for corpus in corpora]
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

    def run(self, runs: Sequence[Run], title: str) -> list[Row]:
        """Make the runs that have no result yet; return the lines of all, in order.

        Raises:
            UserError: a run of this name has other settings in results.jsonl, or a configuration is at fault; names the run.
        """
        fingerprints = {run.key: _fingerprint(run.config, self._data) for run in runs}
        for run in runs:
            known = self.rows.get(run.key)
            if known is not None and known.get("settings") != fingerprints[run.key]:
                raise UserError(
                    f"{self.results}: {run.key!r} was run with other settings; choose another output, or delete the file."
                )
        todo = [run for run in runs if run.key not in self.rows]
        with progress_bar(title, sum(run.tokens for run in todo) / 1e6, unit="M tokens") as bar:
            for number, run in enumerate(todo, 1):
                bar.advance(0, f"run {number}/{len(todo)}: {run.key}")
                watch = _advancing(bar, run)
                row = self._one(run, fingerprints[run.key], watch)
                watch(run.config.total_steps, None)  # one that diverged ends early
                loss = "diverged" if row["loss"] is None else f"loss {row['loss']:.4f}"
                bar.print(f"{title} {number}/{len(todo)}: {run.key}: {loss} ({row['seconds']:.0f} s)")
        return [self.rows[run.key] for run in runs]

    def _one(self, run: Run, settings: str, watch: Any) -> Row:
        run_dir = self.output / "runs" / re.sub(r"[^\w.=,-]+", "_", run.key)
        shutil.rmtree(run_dir, ignore_errors=True)  # of a run that was interrupted
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

    def _append(self, row: Row) -> None:
        """One line, on the disk before the next run starts."""
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[row["key"]] = row


def _advancing(bar: Bar, run: Run) -> Callable[[int, Any], None]:
    """A watch for `train` that moves the bar on by the tokens trained since it was last called."""
    done = 0

    def watch(step: int, _: Any) -> None:
        nonlocal done
        bar.advance((step - done) / run.config.total_steps * run.tokens / 1e6)
        done = step

    return watch


def read_rows(path: Path, cut: bool = False) -> list[Row]:
    """The lines of a results file.

    Args:
        cut: remove an unfinished last line (the process was killed while it wrote).

    Raises:
        UserError: it does not exist, or a line is no JSON object; names file and line.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if cut and len(whole) < len(raw):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
        raw = whole
    rows = []
    for number, line in enumerate(raw.splitlines(), 1):
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
    """The last held-out losses of a run, by name; None is one that is not finite.

    Raises:
        UserError: nothing is held out, so there is nothing to compare runs by.
    """
    losses = metrics.last_held_out(metrics.read(run_dir / "metrics.jsonl"))
    if not losses:
        raise UserError("no source holds anything out (data.sources: eval_fraction): there is no loss to compare.")
    return losses


def sized(
    config: TrainConfig, tokens: float, batch_size: int, warmup_share: float, eval_tokens: int, seed: int, what: str
) -> TrainConfig:
    """Return the configuration of a run of so many tokens, that measures held-out loss once, at its end.

    Raises:
        UserError: a run without stages is wanted, or so few steps show nothing; names the run (`what`).
    """
    if config.stages:
        raise UserError("an experiment trains in one stage: give its training configuration steps and no stages.")
    steps = round(tokens / (batch_size * config.data.sequence_length))
    if steps < _LEAST_STEPS:
        raise UserError(
            f"{what}: {tokens:,.0f} tokens in batches of {batch_size * config.data.sequence_length:,} are {steps} steps; "
            f"it takes {_LEAST_STEPS} at least."
        )
    rows = max(eval_tokens // config.data.sequence_length, 1)
    return dataclasses.replace(
        config,
        steps=steps,
        data=dataclasses.replace(config.data, batch_size=batch_size),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=min(round(warmup_share * steps), steps - 1)),
        seed=seed,
        eval_every=0,
        # The same held-out rows whatever the batch.
        eval_batches=max(rows // batch_size, 1),
        checkpoint_every=0,
        checkpoint_keep_best=0,
        log_every=max(steps // 20, 1),
        budget_curve=None,
        wandb=None,
        profile=False,
    )


def active_parameters(config: Qwen3Config) -> int:
    """Parameters that a token passes through, without the embedding and the output projection: the N of published laws."""
    tables = 1 if config.tie_word_embeddings else 2
    return parameter_count(config, active=True) - tables * config.vocab_size * config.hidden_size


def _fingerprint(config: TrainConfig, data: list[Row]) -> str:
    """Of everything that decides a run's result."""
    values = dataclasses.asdict(config)
    for name in ("run_dir", "mesh", "log_every", "checkpoint_keep"):
        del values[name]
    for name in ("cache", "prefetch_batches"):
        del values["data"][name]
    # What the data and the tokenizer are, not where they lie.
    for source in values["data"]["sources"]:
        del source["path"]
    del values["tokenizer"]
    return hashlib.blake2b(json.dumps([values, data], sort_keys=True).encode(), digest_size=8).hexdigest()
