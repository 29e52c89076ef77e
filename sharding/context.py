"""The order of tokens with which every part of a split sequence has the same work in causal attention.

Cut in order, the last part of a sequence attends to everything and the first to itself alone. Cut into 2 C chunks, of which
part i holds chunks i and 2 C - 1 - i, every part has the same work (Llama 3 report, arXiv 2407.21783, section 3.3.2).
"""

import numpy as np

from sharding.rules import ShardingError


def balanced_order(length: int, parts: int) -> np.ndarray:
    """Return int32 [length]: the position in the sequence of each token of a balanced row.

    `row[balanced_order(T, C)]` is the row in balanced order; split evenly into C parts, part i is chunks i and 2 C - 1 - i.
    With one part the order is unchanged.

    Raises:
        ShardingError: `length` does not divide by 2 C.
    """
    positions = np.arange(length, dtype=np.int32)
    if parts == 1:
        return positions
    if length % (2 * parts):
        raise ShardingError(
            f"a sequence of {length} tokens cannot be balanced over {parts} parts of the context axis: its length must "
            f"divide by {2 * parts}."
        )
    chunks = positions.reshape(2 * parts, -1)
    return np.concatenate([chunks[[i, 2 * parts - 1 - i]].reshape(-1) for i in range(parts)])
