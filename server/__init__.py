"""Starts and watches tritonserver: the one in nvidia-pytriton's wheel, or /opt/tritonserver's."""
