"""Keeps a server and its models up, whatever dies."""
