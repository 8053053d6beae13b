"""All that knows Triton's Python backend, `triton_python_backend_utils`."""
