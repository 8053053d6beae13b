"""Keeps a group of ranks up, and finds out what ends it."""
