"""The states of a server that is watched."""

from enum import Enum, auto


class State(Enum):
    """Of the server, as its watcher sees it."""

    STARTING = auto()
    SERVING = auto()
    WAITING = auto()
    """It died, and is started again in a moment."""
    DRAINING = auto()
    """All is served as before, but load balancers are told to look elsewhere."""
    STOPPING = auto()
    """What is in flight is finished, and nothing else taken."""
    ENDED = auto()
