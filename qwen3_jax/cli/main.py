"""The `qwen3` command.

    qwen3 train --config configs/quickstart.yaml
    qwen3 plan --config configs/scale/qwen3-8b.yaml --topology v5p:2x2x1
    qwen3 infer --model Qwen/Qwen3-0.6B --prompt "What is 7 * 8?" --thinking-budget 256
    qwen3 run Qwen/Qwen3-0.6B
    qwen3 serve --model Qwen/Qwen3-0.6B
    qwen3 convert Qwen/Qwen3-0.6B qwen3-0.6b-orbax --to orbax
    qwen3 quantize Qwen/Qwen3-8B --to int8 --out qwen3-8b-int8 --text held-out.txt
    qwen3 eval --model DIR --task gsm8k --data gsm8k=FOLDER --thinking-budget 0 512 none --output results
    qwen3 tokenizer train --input 'corpus/**/*.txt' --vocab-size 32000 --output tokenizer/

Names of options have hyphens (`--batch-size`); keys of a configuration file, which are flags too, have the file's spelling
(`--run_dir`, `--model.config.hidden_size`). Nothing here imports JAX before the command line has been read: `--help` and a
mistyped option answer at once. Bad input is one sentence on standard error and exit code 2.
"""

import sys

from qwen3_jax.cli.dispatch import dispatch
from qwen3_jax.cli.exit_codes import guarded

# command -> (module with `main(argv, prog)`, one line of help)
COMMANDS = {
    "train": ("qwen3_jax.cli.train", "train a model from a configuration file"),
    "plan": ("qwen3_jax.cli.plan", "compile a training run for TPUs that are not present: memory, traffic, speed"),
    "infer": ("qwen3_jax.cli.infer", "answer prompts, chat, or work through a file of conversations"),
    "run": ("qwen3_jax.cli.run", "talk to a model in the terminal"),
    "serve": ("qwen3_jax.cli.serve", "serve an OpenAI-compatible API and a chat page"),
    "convert": ("qwen3_jax.cli.convert", "Hugging Face safetensors <-> Orbax, or to another data type"),
    "quantize": ("qwen3_jax.cli.quantize", "write an int8, fp8 or int4 checkpoint and measure what it lost"),
    "eval": ("qwen3_jax.cli.evaluate", "measure a model on tasks, under thinking budgets; compare two runs"),
    "report": ("qwen3_jax.cli.report", "draw one page about a training run"),
    "configs": ("qwen3_jax.cli.configs", "list, print or copy the configurations that come with the package"),
    "data": ("qwen3_jax.cli.data", "prepare a corpus: tokens and labels, deduplicated, in ArrayRecord"),
    "scaling": ("qwen3_jax.cli.scaling", "learning rate and batch size by experiment: sweep, power laws, prediction"),
    "mixture": ("qwen3_jax.cli.mixture", "weights of a data mixture by experiment: proxies, regression, verification"),
    "tokenizer": ("qwen3_jax.cli.tokenizer", "train a tokenizer"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--version"]:
        import qwen3_jax

        print(f"qwen3-jax {qwen3_jax.__version__}")
        return 0
    return guarded("qwen3", lambda: dispatch("qwen3", "Qwen3 in JAX.", COMMANDS, argv))
