"""Ranks on other hosts: an agent on each of them dials the exchange on Triton's own."""
