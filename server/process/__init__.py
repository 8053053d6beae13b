"""One tritonserver: how it is started, and what is left of it."""
