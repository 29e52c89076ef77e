"""`python -m qwen3_jax.cli` is the `qwen3` command."""

import sys

from qwen3_jax.cli.main import main

sys.exit(main())
