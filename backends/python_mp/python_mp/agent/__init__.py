"""Ranks on other hosts: an agent on each of them, and the hub on Triton's own, to which they dial."""
