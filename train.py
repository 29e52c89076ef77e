"""Train a Qwen3 model.

python train.py --config configs/quickstart.yaml
python train.py --config configs/quickstart.yaml --run_dir runs/wide --model.config.hidden_size=192
python train.py --help
"""

import os
import signal
import sys

if __name__ == "__main__":
    # Until the command listens itself: a Ctrl-C during the imports is no traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from qwen3_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main(prog="train.py"))
