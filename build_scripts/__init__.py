"""Make the artifacts of the model repository: `python -m build_scripts.all`."""
