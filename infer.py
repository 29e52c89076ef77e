"""Answer prompts with a Qwen3 model, under a thinking budget.

    python infer.py --model Qwen/Qwen3-0.6B --prompt "What is 7 * 8?" --thinking-budget 256
    python infer.py --model DIR --chat
    python infer.py --help

The same as `qwen3 infer`; the code is in qwen3_jax/cli/infer.py.
"""

import os
import signal
import sys

if __name__ == "__main__":
    # Until the command listens itself: a Ctrl-C during the imports is no traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from qwen3_jax.cli.infer import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(prog="infer.py"))
