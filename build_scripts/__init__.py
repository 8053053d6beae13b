"""From a checkpoint to verified engines: `python -m build_scripts.build`."""
