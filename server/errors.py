"""What can go wrong, each in one sentence meant for the person at the terminal."""


class ServerError(Exception):
    """The server cannot be started, or ended by itself."""


class PortError(ServerError):
    """A port cannot be listened on."""


class ModelError(ServerError):
    """A model did not load; one line for each such model."""


class ControlError(ServerError):
    """tritonserver refused what it was asked for, or did not answer.

    Attributes:
        status: of HTTP; None without an answer.
    """

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


def is_unheard(error: BaseException | None) -> bool:
    """Whether it is no word on a model: tritonserver was not reached, or there was no thread."""
    if isinstance(error, ControlError):
        return error.status is None
    return error is not None and not isinstance(error, ModelError)
