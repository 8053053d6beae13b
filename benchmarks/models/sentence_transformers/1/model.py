"""How one would serve the checkpoint without python_mp: sentence-transformers, batches padded."""

import json

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from sentence_transformers import SentenceTransformer


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        dtype, checkpoint = (parameters[key]["string_value"] for key in ("dtype", "checkpoint"))
        gpu = f"cuda:{args['model_instance_device_id']}"
        device = gpu if args["model_instance_kind"] == "GPU" else "cpu"
        self.model = SentenceTransformer(checkpoint, device=device).to(getattr(torch, dtype))

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(r, "TEXT").as_numpy() for r in requests]
        texts = [text.decode() for array in arrays for text in array.ravel()]
        vectors = self.model.encode(texts, batch_size=64, show_progress_bar=False)
        ends = np.cumsum([len(array) for array in arrays])
        return [self._response(part) for part in np.split(vectors.astype(np.float32), ends[:-1])]

    @staticmethod
    def _response(vectors):
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", vectors)])
