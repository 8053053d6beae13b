"""What of an error a client gets to see."""

import time

import pytest

from python_mp.model.errors import InvalidInput, PythonMpError, RequestFailed, describe, for_clients


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("FileNotFoundError: [Errno 2] No such file: '/srv/my models/w.bin'", "'w.bin'"),
        ("cannot open /etc/secrets/key.pem: denied", "cannot open key.pem: denied"),
        ("see ./a/b.txt, ~/c/d.txt (/e/f.txt)", "see b.txt, d.txt (f.txt)"),
        ('"/a/b/c" is odd', "'c' is odd"),
    ],
)
def test_paths_become_names(text: str, shown: str) -> None:
    seen = for_clients(RequestFailed(text))
    assert shown in seen
    assert "/" not in seen


def test_a_description_is_one_line_and_short() -> None:
    assert describe(ValueError("a\nb " * 1000)).startswith("ValueError: a b a b")
    assert len(describe(ValueError("x" * 10_000))) < 500


def test_an_error_that_cannot_be_shown_still_has_a_name() -> None:
    class Mute(PythonMpError):
        def __str__(self) -> str:
            raise self

    assert describe(Mute()) == "Mute"


@pytest.mark.parametrize("text", ["'/" + "a" * 100_000, "'//\"" * 30_000, "\ud800" * 10_000])
@pytest.mark.parametrize("kind", [InvalidInput, RequestFailed, ValueError])
def test_whatever_is_said_is_short_and_can_be_sent(text: str, kind: type[Exception]) -> None:
    began = time.monotonic()
    for said in (describe(kind(text)), for_clients(kind(text))):
        assert len(said.encode()) < 20_000
    assert time.monotonic() - began < 2
