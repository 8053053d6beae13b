"""What a build says when it cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager


class BuildError(Exception):
    """A build that cannot be done; the message is one sentence for the user."""


class Refused(BuildError):
    """An engine cannot compute the model, as long as what decides the stage stays as it is.

    Attributes:
        stage: the identity of the stage that says so; set by stages.py.
    """

    stage = ""


@contextmanager
def refusing(sentence: str) -> Iterator[None]:
    """Whatever a library raises as `Refused`, in the place of `{why}` in the sentence; but for a
    lack of memory, which tells nothing of the model."""
    try:
        yield
    except BuildError:
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        lacks_memory = isinstance(error, MemoryError) or "allocate memory" in why
        kind = BuildError if lacks_memory else Refused
        raise kind(sentence.format(why=why)) from error
