"""Triton's entry to python_mp, in the stub of every instance, active or passive.

Nothing here may crash, since Triton never restarts a stub.
"""

from python_mp.triton import instance, log_handler


class TritonPythonModel:
    """What the Python backend calls."""

    def initialize(self, args):
        """Returns when the ranks serve. Raises TritonModelException, which says why they do not."""
        log_handler.install()
        self._instance = instance.load(args)

    def execute(self, requests):
        """Responses to the requests that were answered at once; None for those that are later."""
        return self._instance.execute(requests)

    def is_ready(self):
        """Triton 26.03 and later ask; older ones believe in a model for ever."""
        return self._instance.serves

    def finalize(self):
        """Called when no request is left."""
        self._instance.stop()
