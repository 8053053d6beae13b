"""What a build says when it cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager


class BuildError(Exception):
    """A build that cannot be done; the message is one sentence for the user."""


@contextmanager
def refusing(sentence: str) -> Iterator[None]:
    """Whatever a library raises as BuildError, in the place of `{why}` in the sentence."""
    try:
        yield
    except BuildError:
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BuildError(sentence.format(why=why)) from error
