"""Small client programs to read and copy."""
