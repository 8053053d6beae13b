"""Score feature vectors with the model `ranker`: `python -m clients.ranker [N]`."""

import sys

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput

from clients.connection import connect, default_url


def score(client: InferenceServerClient, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """FEATURES float32 [n, 256] to SCORE float32 [n, 1]; n is at most 256."""
    tensor = InferInput("FEATURES", list(features.shape), "FP32")
    tensor.set_data_from_numpy(features)
    scores: NDArray[np.float32] = client.infer("ranker", [tensor]).as_numpy("SCORE")
    return scores


if __name__ == "__main__":
    candidates = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    features = np.random.default_rng(0).standard_normal((candidates, 256), dtype=np.float32)
    with connect("grpc", default_url("grpc")) as client:
        for index, value in enumerate(score(client, features)[:, 0]):
            print(f"candidate {index}: {value:+.4f}")
