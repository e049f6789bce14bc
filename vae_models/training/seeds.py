"""Seeds of one use each, derived from the seed of a run."""

from enum import IntEnum

import numpy as np

__all__ = ["Stream", "derived_seed"]


class Stream(IntEnum):
    """What a seed is derived for."""

    ORDER = 0
    TRAINING_NOISE = 1
    VALIDATION_NOISE = 2


def derived_seed(seed: int, stream: Stream, *numbers: int) -> int:
    """A seed for one use of many. Unlike sums of numbers, hashes don't collide."""
    return int(np.random.SeedSequence((seed, stream, *numbers)).generate_state(1, np.uint64)[0])
