"""Preparing a corpus as an Apache Beam job: the same functions on the same splits, so the same files.

    prepare_with_beam(source, tokenizer, "prepared/web", ["--runner=FlinkRunner", "--flink_master=..."])

The pipeline hands splits to workers and collects counts; text and tokens never pass through it. Workers read the corpus and
write into OUTPUT.partial, which they all must see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.config import Source
from qwen3_jax.data.preparation import begin_preparation, find_duplicates
from qwen3_jax.data.prepared import Prepared
from qwen3_jax.data.records import TextTokenizer
from qwen3_jax.data.shards import PreparationJob, prepare_split, sign_split
from qwen3_jax.data.sources import SPLIT_BYTES, Split
from qwen3_jax.errors import UserError, nearest


def prepare_with_beam(
    source: Source,
    tokenizer: TextTokenizer,
    output: str | Path,
    options: Sequence[str] = (),
    *,
    seed: int = 0,
    split_bytes: int = SPLIT_BYTES,
) -> Prepared:
    """Prepare a corpus and return it; see `qwen3_jax.data.prepare`.

    Args:
        options: Beam's own, such as --runner=DataflowRunner.

    Raises:
        UserError: Beam is not installed, or does not know an option; besides the errors of `prepare`.
    """
    beam = import_beam()
    chosen = pipeline_options(options)
    with begin_preparation(source, tokenizer, output, seed, split_bytes) as begun:
        if begun is None:
            return Prepared(Path(output).expanduser())
        job = begun.job
        with beam.Pipeline(options=chosen) as pipeline:
            numbered = pipeline | "splits" >> beam.Create(list(enumerate(begun.splits))) | "spread" >> beam.Reshuffle()
            if source.cleaning.duplicates == "keep":
                work = numbered | "keep all" >> beam.MapTuple(lambda number, split: (number, split, None))
            else:
                signed = numbered | "sign" >> beam.MapTuple(lambda n, split: (n, str(sign_split(job, n, split))))
                together = signed | "together" >> beam.combiners.ToList()
                drops = together | "duplicates" >> beam.FlatMap(lambda signed: _drops(job, signed))
                both = {"split": numbered, "drop": drops} | "join" >> beam.CoGroupByKey()
                work = both | "unpack" >> beam.MapTuple(lambda n, joined: (n, *joined["split"], *joined["drop"]))
            work | "prepare" >> beam.Map(lambda one: _prepare(job, *one))
        # Every shard is on disk; their counts are read back from it, with any runner.
        return begun.publish([prepare_split(job, number, split, None) for number, split in enumerate(begun.splits)])


def import_beam() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import apache_beam
    except ImportError:
        raise UserError('--beam needs Apache Beam: pip install "qwen3-jax[beam]"') from None
    return apache_beam


def pipeline_options(flags: Sequence[str]) -> Any:
    """Beam's options. It passes over what it does not know, with a warning; here it is refused.

    Raises:
        UserError: names the option.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    parser = _BeamArgumentParser(allow_abbrev=False, add_help=False)
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(flags))[1]
    if unknown:
        options = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"Apache Beam has no option {unknown[0]!r}.{nearest(unknown[0].partition('=')[0], options)}")
    return PipelineOptions(list(flags), save_main_session=False)


def _drops(job: PreparationJob, signed: Iterable[tuple[int, str]]) -> list[tuple[int, np.ndarray]]:
    return list(enumerate(find_duplicates(job, [Path(path) for _, path in sorted(signed)])))


def _prepare(job: PreparationJob, number: int, split: Split, drop: Any) -> None:
    prepare_split(job, number, split, drop)
