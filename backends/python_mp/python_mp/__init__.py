"""Serve one model from several processes or devices behind one Triton instance."""

import os

# Read when ONNX Runtime is imported, which would tell its makers what runs here, and keep a record
# of it in the user's home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
