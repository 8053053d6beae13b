"""Talk with a model that generates text, through the ensemble `chat` or another of its task.

python -m clients.chat                                     a conversation, in a terminal
python -m clients.chat "What is a kitten?"                 one answer
python -m clients.chat --temperature 0.7 < question.txt    the same, in a pipe
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from clients.at_once import cell
from clients.connection import positive
from clients.streaming import Parameters, Part, StreamError, stream

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
WHOLE = ("max_tokens", "top_k", "seed")
Messages = list[dict[str, str]]


def answer(
    messages: Messages,
    parameters: Parameters,
    model: str = "chat",
    url: str | None = None,
    ca: Path | None = None,
) -> Generator[Part]:
    """The parts of what the model answers to a conversation, as they come. Raises StreamError."""
    return stream(model, {"MESSAGES": cell(json.dumps(messages))}, parameters, url, ca)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    try:
        if not options.text and sys.stdin.isatty():
            return _talk(messages, options)
        text = " ".join(options.text) or sys.stdin.read().strip()
        _say([*messages, {"role": "user", "content": text}], options)
    except StreamError as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def _talk(messages: Messages, options: argparse.Namespace) -> int:
    """Ctrl-C ends an answer, Ctrl-D the conversation. What is refused is not kept."""
    import readline  # noqa: F401  # input() edits and remembers lines by it.

    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        try:
            said = _say(messages, options)
        except StreamError as error:
            print(f"chat: {error}", file=sys.stderr)
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": said})


def _say(messages: Messages, options: argparse.Namespace) -> str:
    """Shows the answer as it comes, and returns it."""
    parts, last = list[str](), None
    found = answer(messages, _parameters(options), options.model, options.url, options.ca)
    with closing(found):
        try:
            for last in found:
                print(last.text, end="", flush=True)
                parts.append(last.text)
        except KeyboardInterrupt:
            if not sys.stdin.isatty() or options.text:
                raise
    print()
    if last and last.finish_reason == "length":
        print(f"(cut at {last.tokens} tokens)", file=sys.stderr)
    return "".join(parts)


def _parameters(options: argparse.Namespace) -> Parameters:
    given = {name: getattr(options, name) for name in (*WHOLE, *NUMBERS)}
    found: dict[str, str | int | bool] = {
        name: value if name in WHOLE else str(value)
        for name, value in given.items()
        if value is not None
    }
    return found | ({"stop": json.dumps(options.stop)} if options.stop else {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m clients.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what is asked")
    parser.add_argument("--model", default="chat", metavar="NAME", help="the ensemble")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="of an answer")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer")
    for name in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X")
    for name in ("top-k", "seed"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    parser.add_argument("--url", help="host:port (default: HOST, GRPC_PORT); grpcs:// for TLS")
    parser.add_argument("--ca", type=Path, metavar="PEM", help="what signed the certificate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
