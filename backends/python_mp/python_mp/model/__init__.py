"""The nouns, frozen: no torch, no Triton, standard library and NumPy only."""
