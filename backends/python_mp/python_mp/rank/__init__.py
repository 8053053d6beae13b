"""Runs in the rank processes: torch, the engines and the user's code, but nothing of Triton."""
