"""The prepared corpora of a run: RUN/data, or a copy of it on this machine where the run's folder is in a bucket.

Rows are read from local disks (ArrayRecord). Of a run in a bucket the first process prepares the raw sources here and copies
them to RUN/data; every host copies them from there, also when the run is resumed on other machines.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from qwen3_jax.data import DataConfig, Prepared, open_sources
from qwen3_jax.data.prepared import MANIFEST, is_prepared
from qwen3_jax.errors import UserError, warn
from qwen3_jax.paths import cache_folder, download, is_url, upload
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import TrainConfig


def prepare_corpora(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer) -> list[Prepared]:
    """Return the prepared corpus of every source. The first process prepares raw sources; the others wait for it.

    Raises:
        UserError: data cannot be read, or does not fit the run's tokenizer.
    """
    shared = run_dir / "data"
    copied = is_url(shared) and config.data.cache is None
    folder = cache_folder(str(shared)) if copied else shared
    first, several = jax.process_index() == 0, jax.process_count() > 1
    if several or copied:
        if first:
            if copied:
                _fetch(config.data, shared, folder)
            open_sources(config.data, tokenizer, folder)
            if copied:
                _share(config.data, shared, folder)
        if several:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("data is prepared")
        if copied and not first:
            _fetch(config.data, shared, folder)
    corpora = open_sources(config.data, tokenizer, folder)
    if config.method in ("sft", "distillation"):
        _check_fine_tuning(config, corpora)
    return corpora


def _check_fine_tuning(config: TrainConfig, corpora: list[Prepared]) -> None:
    """Refuse what is no data for fine-tuning.

    Raises:
        UserError: a source has no prompts, or documents that are cut, so that a part of an answer has no prompt.
    """
    row = min(stage.run.data.sequence_length for stage in config.resolved())
    for source, corpus in zip(config.data.sources, corpora, strict=True):
        if corpus.whole == len(corpus):
            raise UserError(
                f"source {source.name!r}: every token of its {len(corpus):,} documents is learned, so it has no prompts to "
                f"answer; method: {config.method} is for chats and completions, and plain text is for method: pretrain."
            )
        if corpus.whole:
            warn(
                f"source {source.name!r}: {corpus.whole:,} of {len(corpus):,} documents are learned whole (plain text)."
            )
        lengths = np.asarray(corpus.lengths)[corpus.select(source.where)]
        if (long := int((lengths - 1 > row).sum())) > 0:
            raise UserError(
                f"source {source.name!r}: {long:,} of {len(lengths):,} samples are longer than a row of {row} tokens (the "
                f"longest has {lengths.max():,}), and the rest of an answer would be learned without its prompt; raise "
                f"data.sequence_length, or leave them out with 'where: {{length: [null, {row + 1}]}}' of the source."
            )


def _raw(data: DataConfig) -> list[str]:
    """Names of the sources that a run prepares."""
    return [source.name for source in data.sources if len(source.paths) > 1 or not is_prepared(source.paths[0])]


def _fetch(data: DataConfig, shared: Path, folder: Path) -> None:
    """Make `folder` hold the corpora that `shared` holds, and no finished ones besides."""
    for name in _raw(data):
        there, here = shared / name / MANIFEST, folder / name / MANIFEST
        wanted = there.read_bytes() if there.exists() else None
        if here.exists() and here.read_bytes() == wanted:
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        if wanted is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetched-") as temporary:
            download(shared / name, Path(temporary) / name)
            try:
                (Path(temporary) / name).rename(folder / name)
            except OSError:  # another process of this host was faster
                if not here.exists():
                    raise


def _share(data: DataConfig, shared: Path, folder: Path) -> None:
    for name in _raw(data):
        if not (shared / name / MANIFEST).exists():
            upload(folder / name, shared / name, last=MANIFEST)
