"""What a request says of how its tokens are chosen, as columns of two tensors: the front writes
them, the rank that samples reads them."""

from enum import IntEnum


class Real(IntEnum):
    """Of `sampling`, float32 [sequences, len(Real)]."""

    TEMPERATURE = 0  # 0: the likeliest token, no draw
    TOP_P = 1  # 1: all
    MIN_P = 2  # 0: all
    PRESENCE = 3  # 0: none
    FREQUENCY = 4  # 0: none
    REPETITION = 5  # 1: none
    SPARE = 6


class Whole(IntEnum):
    """Of `sampling_ints`, int64 [sequences, len(Whole)]."""

    TOP_K = 0  # 0: all
    SEED = 1
    POSITION = 2  # of the new token, the first behind the prompt is 0
    LOGPROBS = 3  # of so many likeliest tokens; 0: only of the chosen one; -1: none
