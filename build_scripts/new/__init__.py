"""From a checkpoint to the folders of its models: what it is, what serves it, and what to run."""
