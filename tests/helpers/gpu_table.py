"""The table of kernels, cards and this JAX: what compiles, and the sentence with which the rest is refused.

JAX_PLATFORMS=cpu python -m tests.helpers.gpu_table                  # every form, every card
JAX_PLATFORMS=cpu python -m tests.helpers.gpu_table h100 attention   # one card; forms that contain a word
"""

import argparse
import sys
import time

import jax

from qwen3_jax.errors import UserError
from tests.helpers.gpu_forms import FORMS
from tests.helpers.gpu_targets import CARDS, compiled


def outcome(name: str, card: str) -> str:
    """Return "compiles", or the reason of the refusal; raises what the code does not expect."""
    try:
        lowered = FORMS[name](card)
    except UserError as error:
        return str(error)
    compiled(lowered)
    return "compiles"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="cards, and parts of the names of forms (default: all)")
    given = parser.parse_args().words
    known = (*CARDS, "h200", "t4")
    cards = [card for card in known if card in given] or list(CARDS)
    words = [word for word in given if word not in known]
    broken = 0
    print(f"jax {jax.__version__}\n| form | " + " | ".join(cards) + " |\n|" + "---|" * (1 + len(cards)), flush=True)
    for name in FORMS:
        if not all(word in name for word in words):
            continue
        cells = []
        for card in cards:
            started = time.perf_counter()
            try:
                text = outcome(name, card)
            except Exception as error:
                broken += 1
                text = f"BROKEN {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            cells.append(f"{text} ({time.perf_counter() - started:.0f} s)")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return broken


if __name__ == "__main__":
    sys.exit(main())
