"""Rewards of a group of answers to one prompt as advantages (GRPO: Shao et al. 2024, arXiv 2402.03300, section 4.1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

EPSILON = 1e-4  # beside the standard deviation; TRL's


def advantages(rewards: Sequence[float | None], normalize_std: bool) -> np.ndarray:
    """Return (R - mean) / (standard deviation + 1e-4) with ddof 1, or R - mean (Dr. GRPO: arXiv 2503.20783), float32 [G].

    Exactly 0 where all rewards are equal.

    Args:
        rewards: of the answers of one group; None is an answer without a reward, which is no part of the group.
        normalize_std: divide by the standard deviation.
    """
    out = np.full(len(rewards), np.nan, np.float64)
    kept = [number for number, reward in enumerate(rewards) if reward is not None]
    values = np.asarray([rewards[number] for number in kept], np.float64)
    if not kept:
        return out.astype(np.float32)
    if len(values) == 1 or values.max() == values.min():
        centred = np.zeros_like(values)
    else:
        centred = values - values.mean()
        if normalize_std:
            centred /= values.std(ddof=1) + EPSILON
    out[kept] = centred
    return out.astype(np.float32)


def teaches(rewards: Sequence[float | None]) -> bool:
    """Whether the answers of a group have different rewards, without which there is no gradient."""
    values = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    return len(values) > 1 and max(values) > min(values)
