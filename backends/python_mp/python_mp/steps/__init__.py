"""What runs before and after a model, in Triton's own Python backend: one module for each step of
an ensemble. A version's model.py imports its `TritonPythonModel`; the build writes both."""
