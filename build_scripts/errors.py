"""What a build says when it cannot go on."""


class BuildError(Exception):
    """A build that cannot be done; the message is one sentence for the user."""
