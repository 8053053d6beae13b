"""How agent and exchange prove to each other that they have the same token, which never travels.

    exchange --> agent    nonce
    agent --> exchange    nonce, name, versions, proof of the token over all of these
    exchange --> agent    proof over the same; or REFUSED, and why

Both nonces are new each time, so that what was overheard proves nothing later. The
exchange looks at what the agent is before it proves itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..model.errors import PythonMpError
from ..wire.message import Kind, Message
from .link import CONTROL, Link, LinkError

SECONDS = 5.0
"""For all of it."""
_NONCE_BYTES = 32
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Refused(PythonMpError):
    """The other side is none of ours, or will not have us; the text says why."""


class Greeted(NamedTuple):
    name: str
    """The agent's."""
    lease: float
    """Seconds without a word after which the other side counts as lost."""


async def greet(link: Link, token: bytes, name: str, versions: Mapping[str, str]) -> Greeted:
    """The agent's side.

    Raises:
        Refused: the exchange will not have it, or has not the token.
        LinkError: it does not speak as an exchange does.
    """
    theirs = _nonce(await _hear(link, refuses=True))
    hello = {"nonce": secrets.token_hex(_NONCE_BYTES), "name": name, "versions": dict(versions)}
    said = json.dumps({"exchange": theirs, **hello})
    _say(link, said=said, proof=_proof(token, "agent", said))
    answer = await _hear(link, refuses=True)
    if not _is_proof(_text(answer, "proof"), token, "exchange", said):
        raise Refused("the exchange has another token than this agent (AGENT_TOKEN)")
    return Greeted(name, float(answer["lease"]))


async def welcome(
    link: Link, token: bytes, lease: float, object_to: Callable[[str, Mapping[str, str]], str]
) -> Greeted:
    """The exchange's side.

    Args:
        object_to: given name and versions, says why such an agent is not wanted; empty if it is.

    Raises:
        Refused: it has not the token, or is not wanted; it has been told.
        LinkError: it does not speak as an agent does.
    """
    mine = secrets.token_hex(_NONCE_BYTES)
    _say(link, nonce=mine)
    answer = await _hear(link)
    said = _text(answer, "said")
    if not _is_proof(_text(answer, "proof"), token, "agent", said):
        _refuse(link, "the agent has another token than the exchange (AGENT_TOKEN)")
    hello = _json(said)
    if hello.get("exchange") != mine:
        _refuse(link, "the agent repeats what was said at another time")
    name, versions = _text(hello, "name"), hello.get("versions")
    if not _NAME.fullmatch(name) or not isinstance(versions, dict):
        raise LinkError("an agent without a name")
    if why := object_to(name, versions):
        _refuse(link, why)
    _say(link, proof=_proof(token, "exchange", said), lease=lease)
    return Greeted(name, lease)


def _say(link: Link, **said: Any) -> None:
    link.send(CONTROL, Message(Kind.HELLO, text=json.dumps(said)))


def _refuse(link: Link, why: str) -> None:
    link.send(CONTROL, Message(Kind.REFUSED, text=why))
    raise Refused(why)


async def _hear(link: Link, *, refuses: bool = False) -> dict[str, Any]:
    """Only an exchange refuses: what a stranger says goes into no log."""
    frame = await link.receive()
    if frame is None:
        raise LinkError("it hung up before it had said who it is")
    if refuses and frame.message.kind is Kind.REFUSED:
        raise Refused(frame.message.text)
    if frame.message.kind is not Kind.HELLO or frame.channel != CONTROL:
        raise LinkError("it does not say who it is")
    return _json(frame.message.text)


def _json(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise LinkError("it does not say who it is")
    return said


def _text(said: Mapping[str, Any], key: str) -> str:
    """Ours is ASCII; half a character, which JSON can name, is no text that could be hashed."""
    text = said.get(key)
    if not isinstance(text, str) or not text.isascii():
        raise LinkError(f"it does not say its {key}")
    return text


def _nonce(said: Mapping[str, Any]) -> str:
    nonce = _text(said, "nonce")
    if len(nonce) < 2 * _NONCE_BYTES:
        raise LinkError("a nonce that is too short")
    return nonce


def _proof(token: bytes, role: str, said: str) -> str:
    """The role is in it, so that neither side's proof can be sent back to it as the other's."""
    return hmac.new(token, f"{role}\0{said}".encode(), hashlib.sha256).hexdigest()


def _is_proof(given: str, token: bytes, role: str, said: str) -> bool:
    return hmac.compare_digest(given, _proof(token, role, said))
