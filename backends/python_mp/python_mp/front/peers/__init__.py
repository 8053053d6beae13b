"""Replicas compute for one that has no ranks."""
