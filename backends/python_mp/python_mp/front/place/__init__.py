"""Which cores each rank gets."""
