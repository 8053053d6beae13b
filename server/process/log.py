"""tritonserver's log, line by line: what a person wants to read of it, and why a model failed."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.errors import ModelError, ServerError

_RECORD = re.compile(
    r"(?P<level>[IWEF])\d{4} (?P<time>[\d:]{8})\.\d+ \d+ (?P<source>[\w.+-]+):\d+\] (?P<text>.*)"
)
# What Triton says on a machine without a GPU. On one that has a GPU it would matter.
_WITHOUT_GPU = re.compile(
    r"(?i:unable|failed) to allocate pinned system memory|CudaDriverHelper has not been initialized"
    r"|unable to create stream|Failed to initialize NVML|DCGM unable to start"
)
_READY = re.compile(r"successfully loaded '(.+)'")
_FAILED = re.compile(
    r"(?:failed to load '(?P<name>.+?)' version \d+"
    r"|failed to load model '(?P<unversioned>.+?)'"
    r"|Poll failed for model directory '(?P<folder>.+?)'): (?P<reason>.*)",
    re.DOTALL,
)
_DEPENDS = re.compile(r"ensemble '(.+?)' depends on '(.+?)' which has no loaded version")
_ECHO_OF_FAILURE = re.compile(
    r"\s*(?:ERROR: Failed to create instance|Failed to initialize Python stub)"
)
_BAD_CONFIG = re.compile(r"\[libprotobuf ERROR .*?\] Error parsing text-format \S+ (.*)")
_BAD_OPTION = re.compile(r".*(unrecognized option|requires an argument|is ambiguous).*")
_END = re.compile(r"error: creating server: \w[\w ]* - (.*)")
_STATUS = re.compile(
    r"^(?:Internal|Invalid argument|Not found|Unavailable|Unsupported|Unknown|Already exists): "
)
_LIVE = re.compile(r"Timeout \d+: Found (\d+) live models")
_COLOURS = {"I": "", "W": "\033[33m", "E": "\033[31m", "F": "\033[31m"}


@dataclass(frozen=True)
class Record:
    """One record of the log; `text` without quotes and escapes."""

    level: str
    time: str
    source: str
    text: str


def parse(line: str) -> Record | None:
    """The record in `line`, or None for a table, a model's print or a line that goes on."""
    match = _RECORD.match(line)
    if match is None:
        return None
    return Record(match["level"], match["time"], match["source"], _unquote(match["text"]))


def _unquote(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text, strict=False))
        except ValueError:
            return text[1:-1].replace("\\n", "\n").replace('\\"', '"')
    return text


def reason(text: str) -> str:
    """One line out of Triton's error: without status, with the place in the model's file."""
    message, _, trace = text.partition("\n\nAt:\n")
    message = _STATUS.sub("", message.strip())
    message = " ".join(message.split())
    place = re.match(r"\s*(\S+/\d+/[\w.]+\.py)\((\d+)\)", trace)
    if place is None:
        return message
    file = Path(place[1])
    return f"{message} ({file.parent.name}/{file.name}, line {place[2]})"


class Log:
    """Takes lines, shows what matters through `show`, and remembers why things failed.

    Attributes:
        failures: model name to the reason that it did not load.
        ready: the models that loaded.
        complaint: what tritonserver said about its options or itself, if it ended by that.
        tail: the last lines, whatever they were.
        live: while Triton drains, the number of models that still live; None before.
    """

    def __init__(
        self,
        show: Callable[[str], None],
        *,
        raw: bool = False,
        colour: bool = False,
        gpu: bool | None = None,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.ready: set[str] = set()
        self.complaint = ""
        self.tail: list[str] = []
        self.live: int | None = None
        self._show = show
        self._raw = raw
        self._colour = colour
        self._gpu = Path("/dev/nvidiactl").exists() if gpu is None else gpu
        self._bad_config = ""
        self._skip: Callable[[str], bool] | None = None

    def feed(self, line: str) -> None:
        """Take the next line, without its line end."""
        self.tail = [*self.tail[-19:], line]
        record = parse(line)
        shown = self._plain(line) if record is None else self._record(record)
        if self._raw:
            self._show(line)
        elif shown is not None:
            self._show(shown)

    def why_it_ended(self, code: int, *, served: bool = False) -> ServerError:
        """The error to raise about a tritonserver that ended by itself with this exit status.

        Once it has `served`, models that do not load are no reason to end.
        """
        if self.failures and not served:
            width = max(map(len, self.failures))
            lines = [f"{name:{width}}  {why}" for name, why in sorted(self.failures.items())]
            return ModelError("\n".join(lines))
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        why = self.complaint or ("" if code < 0 else "\n".join(self.tail[-5:]).strip())
        return ServerError(f"tritonserver {ended}: {why}" if why else f"tritonserver {ended}")

    def _record(self, record: Record) -> str | None:
        self._skip = None
        if self._note_failure(record.text):
            return None
        if _ECHO_OF_FAILURE.match(record.text):
            self._skip = lambda _: True  # its traceback; comes again with the failure itself
            return None
        if not self._gpu and _WITHOUT_GPU.search(record.text):
            return None
        if record.level == "I" and not record.source.endswith(".py"):
            return self._note_ready(record)
        return self._format(record, record.text)

    def _note_ready(self, record: Record) -> str | None:
        if match := _LIVE.match(record.text):
            self.live = int(match[1])
        if match := _READY.match(record.text):
            self.ready.add(match[1])
            return self._format(record, f"{match[1]} is ready")
        return None

    def _note_failure(self, text: str) -> bool:
        if match := _FAILED.match(text):
            name = match["name"] or match["unversioned"] or match["folder"]
            why = reason(match["reason"])
            self.failures[name] = f"{why}: {self._bad_config}" if "text proto" in why else why
            return True
        if match := _DEPENDS.search(text):
            self.failures[match[1]] = f"it needs {match[2]}, which did not load"
            return True
        return False

    def _plain(self, line: str) -> str | None:
        if _BAD_OPTION.match(line):
            self.complaint = line.rpartition("tritonserver: ")[2]
            return None
        if line.startswith("Usage: tritonserver"):
            self._skip = lambda line: not line.startswith("Bad option")
        if self._skip is not None and self._skip(line):
            return None
        if line.startswith("Bad option"):
            self.complaint = line
            self._skip = self._add_to_complaint
            return None
        if match := _BAD_CONFIG.match(line):
            self._bad_config = match[1]
            return None
        if match := _END.match(line):
            self.complaint = self.complaint or match[1]
            return None
        if not line.strip() or line[0] in "+|" or line.startswith("Signal ("):
            return None
        return None if not self._gpu and _WITHOUT_GPU.search(line) else line

    def _add_to_complaint(self, line: str) -> bool:
        self.complaint = f"{self.complaint} {line}".strip()
        return True

    def _format(self, record: Record, text: str) -> str:
        colour, end = (_COLOURS[record.level], "\033[0m") if self._colour else ("", "")
        label = {"I": "", "W": "warning: ", "E": "error: ", "F": "fatal: "}[record.level]
        indented = text.strip().replace("\n", "\n         ")
        return f"{colour}{record.time} {label}{indented}{end if colour else ''}"
