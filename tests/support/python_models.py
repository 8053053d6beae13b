"""Models of Triton's Python backend that only tests have: one FP32, IN, comes back as OUT."""

from pathlib import Path

CONFIG = """
backend: "python"
max_batch_size: 8
input [ {{ name: "IN" data_type: TYPE_{0} dims: [ {1} ] }} ]
output [ {{ name: "OUT" data_type: TYPE_{0} dims: [ {1} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
IDENTITY = CONFIG.format("FP32", 1)
ECHO = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]) for value in values]
"""
# Says in the folder `gate` that it has a request, and answers when told to.
GATED = """
import pathlib, time
import triton_python_backend_utils as pb_utils

GATE = pathlib.Path({gate!r})


class TritonPythonModel:
    def execute(self, requests):
        (GATE / "entered").touch()
        while not (GATE / "open").exists():
            time.sleep(0.01)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())])
            for tensor in (pb_utils.get_input_tensor_by_name(r, "IN") for r in requests)
        ]
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the weights are missing")
"""


def add(repository: Path, name: str, source: str = ECHO, config: str = IDENTITY) -> Path:
    """Puts it there at once, as a whole; its folder."""
    draft = repository / f".{name}"
    (draft / "1").mkdir(parents=True)
    (draft / "config.pbtxt").write_text(config)
    (draft / "1" / "model.py").write_text(source)
    return draft.rename(repository / name)
