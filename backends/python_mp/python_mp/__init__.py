"""Serve one model from several processes or devices behind one Triton instance."""
