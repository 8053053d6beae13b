"""Which engine, layout and bounds serve a model best: measured here, predicted for elsewhere."""
