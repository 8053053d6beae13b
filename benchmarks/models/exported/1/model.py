"""An exported graph in the plain Python backend, as benchmarks/peers/apps/exported.py runs it."""

import os
import sys

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, os.environ["ENCODER_CODE"])  # PYTHONPATH is Triton's own here
from exported import Encoder


class TritonPythonModel:
    def initialize(self, args):
        self.encode = Encoder.of_environment()

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(r, "TEXT").as_numpy() for r in requests]
        vectors = self.encode([text.decode() for array in arrays for text in array.ravel()])
        ends = np.cumsum([len(array) for array in arrays])
        return [self._response(part) for part in np.split(vectors, ends[:-1])]

    @staticmethod
    def _response(vectors):
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", vectors)])
