"""An engine without a server: {"texts": ..., "seconds": ...} on standard input; on standard output
texts a second in batches of 32, the median of milliseconds for one, and the vectors."""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

from exported import Encoder

BATCH = 32


def seconds_each(call: Callable[[list[str]], object], parts: list[list[str]], for_: float) -> float:
    """The median over calls."""
    took: list[float] = []
    end = time.perf_counter() + for_
    while (began := time.perf_counter()) < end:
        call(parts[len(took) % len(parts)])
        took.append(time.perf_counter() - began)
    return median(took)


if __name__ == "__main__":
    order = json.load(sys.stdin)
    texts, encode = order["texts"], Encoder.of_environment()
    whole = [texts[n : n + BATCH] for n in range(0, len(texts) // BATCH * BATCH, BATCH)]
    vectors = encode(texts).tolist()
    one = seconds_each(encode, [[text] for text in texts], order["seconds"])
    many = seconds_each(encode, whole, order["seconds"])
    result = {"p50_ms": one * 1e3, "texts_per_second": BATCH / many, "vectors": vectors}
    json.dump(result, sys.stdout)
