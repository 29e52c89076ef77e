"""The student of `qwen3 data distil` against its annotator: F1 at 3 and more, and documents per second and core.

    python examples/collect_corpus.py --output corpus --domains docs manual --max-mb 24
    python -m benchmarks.student --path corpus --annotator-documents 3

There is no annotating model here. The labels come from a rule (`education`) over what the student cannot see: lines, headings,
indented examples, lengths of sentences. The student sees hashed words and pairs of the first 512 words, so it has to learn
which words go with such a layout. The rate of the annotator is that of the engine in this process with the shape of Qwen3-0.6B
and random weights: the `annotate` recipe, its JSON Schema enforced, answers as long as the recipe's example. Rates count
processor time of all threads of this process. English documents alone are used, which the rule is about.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import re
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import Record, Source
from qwen3_jax.data.factory import RecipeTask, load_recipe, run
from qwen3_jax.data.factory.student import Labelled, scores
from qwen3_jax.data.records import DataError, Malformed
from qwen3_jax.data.sources import read, splits
from qwen3_jax.generation import Engine, end_tokens
from qwen3_jax.generation.backend import EngineBackend
from qwen3_jax.model import Qwen3
from qwen3_jax.serving.grammars import Grammars
from qwen3_jax.serving.objects import ResponseFormat
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.student import train_student

_READ = 6000  # characters that the recipe gives to an annotator
_EXPLAINS = re.compile(
    r"\b(for example|because|therefore|note that|e\.g\.|i\.e\.|in other words|such as|this means)", re.I
)


def education(text: str) -> int:
    """0 to 5: a point for prose, for sentences of readable length, for explanations, for examples and for sections."""
    text = text[:_READ]
    lines = [line for line in text.splitlines() if line.strip()]
    words = text.split()
    if not lines or not words:
        return 0
    sentences = [len(one.split()) for one in re.split(r"[.!?]\s", text) if one.strip()]
    headings = sum(bool(re.fullmatch(r"(#+ .*|[A-Z][A-Z /-]{3,}|[=~-]{4,})", line.strip())) for line in lines)
    examples = sum(
        line.rstrip().endswith(":") and following.startswith((" " * 2, "\t"))
        for line, following in itertools.pairwise(lines)
    )
    return sum((
        sum(len(line.split()) >= 8 for line in lines) / len(lines) > 0.4,
        8 <= float(np.median(sentences)) <= 25,
        len(_EXPLAINS.findall(text)) / len(words) > 1 / 300,
        examples >= 2,
        headings >= 3 and len(words) >= 300,
    ))  # fmt: skip


def documents_of(path: str) -> list[str]:
    """English texts of a corpus."""
    source = Source("corpus", path)
    records = [
        record for split in splits(source) for record in read(split, source) if not isinstance(record, Malformed)
    ]
    return [
        str(record.body["text"])
        for record in records
        if isinstance(record, Record) and record.body.get("language", "en") == "en"
    ]


def measure(documents: list[str], count: int, held_out: int, seed: int) -> dict[str, float]:
    """Train on `count` documents; F1, accuracy and kappa on `held_out` others, and documents per second and core."""
    order = np.random.default_rng(seed).permutation(len(documents))
    tested = [documents[i] for i in order[:held_out]]
    trained = [documents[i] for i in order[held_out : held_out + count]]
    labels: list = [education(text) for text in trained]
    # train_student holds documents out by itself; these are others, the same for every size.
    labelled = Labelled(trained, {"education": labels}, {"education": sorted(set(labels))})
    student, _ = train_student(labelled, held_out=1e-9, seed=seed)
    started = time.process_time()
    found = [
        value
        for start in range(0, held_out, 256)
        for value in student.predict(tested[start : start + 256])["education"]
    ]
    rate = held_out / (time.process_time() - started)
    truth: list = [education(text) for text in tested]
    always = scores([value >= 3 for value in truth], [True] * held_out, 1)["f1"]
    return scores(truth, found, 3) | {
        "rate": rate,
        "share": sum(value >= 3 for value in truth) / held_out,
        "always": always,
    }


def annotate(documents: list[str], folder: Path) -> tuple[float, dict[str, int]]:
    """Annotate documents with the engine, answers as long as the recipe's example; return (processor seconds, cost.json)."""
    from tests.helpers.real_tokenizer import build_real_tokenizer

    tokenizer = Tokenizer.from_pretrained(build_real_tokenizer(folder / "tokenizer"))
    model = Qwen3(Qwen3Config.preset("Qwen3-0.6B"), rngs=nnx.Rngs(0), dtype=jnp.float32, param_dtype=jnp.float32)
    engine = Engine(model, rows=len(documents))
    grammars = Grammars(tokenizer, end_tokens(model, tokenizer, chat=True))

    def constrain(schema):
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        return grammars.of(ResponseFormat.model_validate(wanted), [], several=False)

    recipe = load_recipe("annotate")
    length = len(tokenizer.encode(recipe.example.strip()))
    recipe = dataclasses.replace(recipe, max_new_tokens=length, attempts=1)  # random weights come to no end
    seconds = 0.0
    for turn in range(2):  # the first one compiles
        path = folder / f"{turn}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{turn} {text}"}) + "\n" for text in documents))
        started = time.process_time()
        backend = EngineBackend(engine, tokenizer, "random", constrain)
        with contextlib.suppress(DataError):  # no record was made of answers that are cut off
            run(Source("in", str(path)), RecipeTask(recipe, "annotate"), folder / f"out-{turn}", backend)
        seconds = time.process_time() - started
    return seconds, json.loads((folder / "out-1/cost.json").read_text())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="a corpus")
    parser.add_argument(
        "--labelled", type=int, nargs="+", default=[500, 1000, 2000, 4000], help="documents to learn from"
    )
    parser.add_argument("--held-out", type=int, default=1000, help="documents to measure on (default: 1000)")
    parser.add_argument(
        "--annotator-documents",
        type=int,
        default=0,
        help="number of documents on which to measure the annotator's rate too",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the training (default: 0)")
    args = parser.parse_args()
    documents = documents_of(args.path)
    table = Table(
        "labelled", "F1 at >= 3", "accuracy", "kappa", "documents/s and core", title=f"{len(documents):,} documents"
    )
    one: dict[str, float] = {}
    for count in args.labelled:
        if count + args.held_out > len(documents):
            print(f"there are not {count + args.held_out:,} documents")
            continue
        one = measure(documents, count, args.held_out, args.seed)
        cells = (f"{one[name]:.3f}" for name in ("f1", "accuracy", "kappa"))
        table.add_row(f"{count:,}", *cells, f"{one['rate']:,.0f}")
    Console().print(table)
    print(
        f"{one['share']:.1%} of the documents have 3 or more; calling all of them so has an F1 of {one['always']:.3f}"
    )
    if args.annotator_documents:
        with tempfile.TemporaryDirectory() as folder:
            middle = sorted(documents, key=len)[len(documents) // 2 :][: args.annotator_documents]
            seconds, cost = annotate(middle, Path(folder))
        count = len(middle)
        print(
            f"the annotator: {count} documents ({cost['prompt_tokens'] / count:.0f} tokens, answers of "
            f"{cost['completion_tokens'] / count:.0f}) in {seconds:.0f} s of processor time, "
            f"{count / seconds:.4f} per second and core"
        )
        print(f"the student is {one['rate'] * seconds / count:,.0f} times as fast")


if __name__ == "__main__":
    main()
