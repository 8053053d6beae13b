"""What the plain Python backend costs by itself."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._echo(pb_utils.get_input_tensor_by_name(r, "X").as_numpy()) for r in requests]

    @staticmethod
    def _echo(array):
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", array)])
