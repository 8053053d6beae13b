"""The last step of the ensemble `classify`: the library's."""

from python_mp.steps.labels import TritonPythonModel as TritonPythonModel
