"""Talk to a model in the terminal.

    qwen3 run Qwen/Qwen3-0.6B                              # a conversation; /help there lists the commands
    qwen3 run Qwen/Qwen3-0.6B "What is 7 * 8?"             # one answer
    cat report.txt | qwen3 run DIR --thinking-budget 256   # one answer to the piped text

Takes all options of `qwen3 infer`.
"""

import sys

from qwen3_jax.cli import infer
from qwen3_jax.cli.exit_codes import BAD_INPUT


def main(argv: list[str] | None = None, prog: str = "qwen3 run") -> int:
    """Run `run`; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        print(
            f"usage: {prog} DIR|ID [PROMPT] [OPTIONS of qwen3 infer]\n\n{__doc__}",
            file=sys.stdout if argv else sys.stderr,
        )
        return 0 if argv[:1] in (["-h"], ["--help"]) else BAD_INPUT
    model, *rest = argv
    if rest and not rest[0].startswith("-"):
        rest = ["--prompt", *rest]
    elif sys.stdin.isatty() and not {"--prompt", "--messages", "--chat"} & set(rest):
        rest = ["--chat", *rest]
    return infer.main(["--model", model, *rest], prog)
