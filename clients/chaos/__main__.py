"""python -m clients.chaos --seconds 60: what it does is said in `clients.chaos`."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from tritonclient.utils import InferenceServerException

from clients.chaos.campaign import Plan, Run
from clients.chaos.journal import Journal
from clients.chaos.leaks import Bounds, Usage, repository
from clients.chaos.options import parser
from clients.chaos.processes import ChaosError, ancestors
from clients.chaos.questions import QuestionError
from clients.chaos.results import Report
from clients.chaos.target import Status, Target

NOT_BEGUN, INTERRUPTED = 2, 130
USUAL_MODELS = ("embed", "ranker")


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as `options.STATUS` says."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # undo what is done, and report
    target = Target(options.health_url, options.http_url, os.environ.get("ADMIN_TOKEN", ""))
    console = Console(highlight=False)
    try:
        report, interrupted = _run(_plan(options, target), target, console)
    except KeyboardInterrupt:
        print("chaos: interrupted before there was anything to report", file=sys.stderr)
        return INTERRUPTED
    except (ChaosError, QuestionError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return NOT_BEGUN
    except InferenceServerException as error:
        print(f"chaos: not even in calm is it served: {error.message()}", file=sys.stderr)
        return NOT_BEGUN
    report.show(console)
    if options.json:
        options.json.write_text(json.dumps(report.json(), indent=1) + "\n")
    return INTERRUPTED if interrupted else int(bool(report.verdict.findings))


def _run(plan: Plan, target: Target, console: Console) -> tuple[Report, bool]:
    """The report, and whether the operator broke it off."""
    journal = Journal(plan.deadline)
    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), Tally(journal)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        run = Run(
            plan,
            target,
            journal,
            say=lambda line: progress.console.print(escape(line), soft_wrap=True),
            doing=lambda what: progress.update(task, description=what),
        )
        return run(), run.interrupted


class Tally(ProgressColumn):
    """How many requests were answered, and how."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def render(self, _: Task) -> Text:
        return Text(", ".join(f"{n} {what}" for what, n in self._journal.counts.most_common()))


def _plan(options: argparse.Namespace, target: Target) -> Plan:
    """Raises ChaosError unless the server is whole, and its processes can be harmed from here."""
    if options.json and not options.json.absolute().parent.is_dir():
        raise ChaosError(f"there is no folder for {options.json}")
    status = target.status()
    if status.server is None or status.watcher not in ancestors(status.server):
        raise ChaosError("the server's processes are not here; run this on its host, as its user")
    Usage.of(status)  # or its processes are closed to us
    if not status.is_whole:
        raise ChaosError(f"the server is not whole, before any harm: {status.reason}")
    return Plan(
        models=_models(options.model, status),
        faults=options.faults,
        seconds=options.seconds,
        times=options.times,
        interval=options.interval,
        warm_up=options.warm_up,
        clients=options.clients,
        seed=options.seed,
        deadline=options.deadline,
        patience=options.patience,
        tolerance=options.tolerance,
        tokens=options.tokens,
        freeze_seconds=tuple(options.freeze_seconds),
        bounds=Bounds(options.descriptors, options.threads, options.megabytes),
        urls={"grpc": options.url, "http": options.http_url.removeprefix("http://")},
        repository=repository(status.server),
    )


def _models(named: Sequence[str], status: Status) -> Sequence[str]:
    if missing := [name for name in named if name not in status.models]:
        raise ChaosError(f"no model {missing[0]}; there are {', '.join(sorted(status.models))}")
    found = named or [name for name in USUAL_MODELS if name in status.models]
    if not found:
        raise ChaosError("neither embed nor ranker is served; name a model with --model")
    return found


if __name__ == "__main__":
    sys.exit(main())
