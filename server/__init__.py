"""Starts and watches tritonserver: the one in nvidia-pytriton's wheel, or /opt/tritonserver's."""

__version__ = "0.2.0"
