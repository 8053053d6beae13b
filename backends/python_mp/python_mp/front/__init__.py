"""Runs in Triton's stub: no torch, no CUDA, no user code, because Triton never restarts a stub."""
