"""Plants bugs by hand, one at a time, and says which the default tests of their package catch.

    pip install -e ".[test,mutation]"
    python -m tests.mutation.planted                     # all
    python -m tests.mutation.planted --only loss_mask rms_norm_eps

Each stands for a kind of bug that tests once let through. An entry whose `old` text is not in its file exactly once is an
error: move it along with the code. The exit status is 1 when a bug survives.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.mutation import runs, session
from tests.mutation.tree import Tree


@dataclasses.dataclass(frozen=True)
class Planted:
    """`old` becomes `new` in `path`. `kind` says what is then wrong."""

    name: str
    kind: str
    path: str
    old: str
    new: str

    @property
    def package(self) -> str:
        return self.path.split("/")[1]

    def source(self, root: Path) -> str:
        """The changed file.

        Raises:
            SystemExit: the file does not have `old` exactly once.
        """
        file = root / self.path
        text = file.read_text() if file.is_file() else ""
        if text.count(self.old) != 1:
            times = f"{text.count(self.old)} times, not once"
            raise SystemExit(f"planted bug {self.name!r}: {self.path} has this text {times}:\n{self.old}")
        return text.replace(self.old, self.new)

    def lines(self, root: Path) -> tuple[int, int]:
        """First and last line of `old`."""
        before = (root / self.path).read_text().partition(self.old)[0]
        first = before.count("\n") + 1
        return first, first + self.old.rstrip("\n").count("\n")


PLANTED = (
    Planted(
        "loss_mask",
        "the loss mask is that of the inputs, not of the targets",
        "qwen3_jax/data/batches.py",
        'batch["loss_mask"][row, here] = document.loss[first + 1 : stop + 1]',
        'batch["loss_mask"][row, here] = document.loss[first:stop]',
    ),
    Planted(
        "label_numbers",
        "numbers of labels mean another shard's labels",
        "qwen3_jax/data/preparation.py",
        "values = np.array(places, COLUMNS[name])[values]",
        "np.array(places, COLUMNS[name])",
    ),
    Planted(
        "eval_where",
        "held-out batches ignore the source's `where`",
        "qwen3_jax/data/pipeline.py",
        "corpus.held_out(source.eval_fraction) & corpus.select(selected)",
        "corpus.held_out(source.eval_fraction)",
    ),
    Planted(
        "held_out_order",
        "held-out documents come in the order of the files, not of their keys",
        "qwen3_jax/data/pipeline.py",
        '    used = used[np.argsort(np.asarray(corpus.key)[used], kind="stable")]\n',
        "",
    ),
    Planted(
        "malformed_signatures",
        "malformed records are each other's duplicates",
        "qwen3_jax/data/shards.py",
        'signed["exact"] = int.from_bytes(own, "little")',
        'signed["exact"] = 0',
    ),
    Planted(
        "similarity_threshold",
        "texts of exactly the similarity asked for are no duplicates",
        "qwen3_jax/data/cleaning.py",
        ".mean() >= similarity",
        ".mean() > similarity",
    ),
    Planted(
        "shares_at_boundary",
        "a stage begins with what the stage before has drawn of each source",
        "qwen3_jax/data/mixture.py",
        '"tokens": {}, "carried": [], "row": 0,',
        '"tokens": dict(self._tokens), "carried": [], "row": 0,',
    ),
    Planted(
        "held_out_mean",
        "the held-out loss is the mean over batches, whose tokens differ in number",
        "qwen3_jax/training/held_out.py",
        "sum(float(p.measure) * float(p.tokens) for p in parts) / sum(float(p.tokens) for p in parts)",
        "sum(float(p.cross_entropy) for p in parts) / len(parts)",
    ),
    Planted(
        "balance_coefficient",
        "the reported total, which the guard reads, has the square of the coefficient",
        "qwen3_jax/training/losses.py",
        "+ balance_coefficient * sums.balance",
        "+ balance_coefficient**2 * sums.balance",
    ),
    Planted(
        "moment_arithmetic",
        "bfloat16 moments are computed in bfloat16",
        "qwen3_jax/training/optimizer.py",
        "optimizer.update(gradients, cast(state, jnp.float32), params)",
        "optimizer.update(gradients, state, params)",
    ),
    Planted(
        "guard_at_stage",
        "the guard remembers the losses of the stage before",
        'qwen3_jax/training/stage_loop.py',
        'state = dataclasses.replace(state, guard=guard.restarted(state.guard))',
        'pass',
    ),
    Planted(
        "reported_rate",
        "the reported learning rate moves on with skipped steps",
        "qwen3_jax/training/step.py",
        "schedule(state.step - state.guard.skipped)",
        "schedule(state.step)",
    ),
    Planted(
        "theta_at_boundary",
        "the checkpoint at the end of a stage is loaded with the next stage's rotary base",
        "qwen3_jax/training/run_folder.py",
        "if step <= done:",
        "if step < done:",
    ),
    Planted(
        "exported_eos",
        "generation_config.json has no end tokens where only config.json had some",
        "qwen3_jax/checkpoint/small_files.py",
        "generation = dataclasses.replace(generation, eos_token_id=config.eos_token_ids)",
        "generation = dataclasses.replace(generation)",
    ),
    Planted(
        "rms_norm_eps",
        "the norms' epsilon is that of most checkpoints, not this one's",
        "qwen3_jax/model/layers.py",
        "self.eps = config.rms_norm_eps",
        "self.eps = 1e-6",
    ),
    Planted(
        "server_max_tokens",
        "the server's limit of tokens does not bind requests that name none",
        'qwen3_jax/generation/request.py',
        'return min(default, max_length - prompt_tokens, options.default_limit or default)',
        'return min(default, max_length - prompt_tokens)',
    ),
    Planted(
        "fitted_budget",
        "a budget that is made to fit is one token too small",
        'qwen3_jax/generation/request.py',
        "return largest if 0 <= largest < budget else budget",
        "return max(largest - 1, 0)",
    ),
    Planted(
        "siblings",
        "an answer that a stop text ended is computed on until its siblings end",
        "qwen3_jax/serving/worker.py",
        "self._worker.post(self._worker.leave, self, index)",
        "pass",
    ),
    Planted(
        "siblings_of_generate",
        "the same without a server",
        'qwen3_jax/generation/answer.py',
        '            cancel(key)\n',
        '            pass\n',
    ),
    Planted(
        "body_size",
        "a body that comes in parts is as large as its largest part",
        "qwen3_jax/serving/guard.py",
        'size += len(message.get("body", b""))',
        'size = len(message.get("body", b""))',
    ),
    Planted(
        "text_offset",
        "`text_offset` begins anew in each chunk of a stream",
        'qwen3_jax/serving/replies.py',
        "self._places[choice], first=not self._begun[choice]",
        "self._new_places(choice), first=not self._begun[choice]",
    ),
    Planted(
        "soft_switch",
        "the first soft switch of a message wins",
        "qwen3_jax/text/chat.py",
        'return switches[-1] == "think"',
        'return switches[0] == "think"',
    ),
    Planted(
        "escape_across_chunks",
        "an escape that two chunks of a tool call divide is forgotten",
        "qwen3_jax/text/tool_json.py",
        "skip = int(self._escaped)",
        "skip = 0",
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in PLANTED], help="by default all")
    session.add_arguments(parser)
    options = parser.parse_args(arguments)
    chosen = [one for one in PLANTED if options.only is None or one.name in options.only]
    for one in chosen:
        one.source(options.root)
    results = session.Results(options.results or options.cache / "planted.jsonl", options.root)
    runs.prepare(options.cache)
    tree = Tree(options.root)
    try:
        for package in dict.fromkeys(one.package for one in chosen):
            _measure(options, tree, package, [one for one in chosen if one.package == package], results)
    finally:
        tree.close()
    results.print_shares()
    sys.exit(any(row["status"] in ("survived", "uncovered") for row in results.rows))


def _measure(
    options: argparse.Namespace, tree: Tree, package: str, chosen: list[Planted], results: session.Results
) -> None:
    chosen = [one for one in chosen if not results.known(one.name)]
    if not chosen:
        return
    measured = session.Session(options, tree, package)
    for one in chosen:
        original, source, lines = (tree.folder / one.path).read_text(), one.source(tree.folder), one.lines(tree.folder)
        outcome = measured.run(one.path, source, measured.selection(one.path, lines, lines))
        row = {"key": one.name, "package": package, "file": one.path, "line": lines[0], "operator": "planted"}
        results.add(row | {"kind": one.kind, "diff": session.diff(original, source)} | outcome)
        print(f"{outcome['status']:10}{one.name}: {one.kind}  {outcome['killed_by'] or ''}", flush=True)


if __name__ == "__main__":
    main()
