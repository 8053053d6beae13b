"""Which request met which fault, and what must not have happened."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from clients.chaos.journal import Outcome, Record

GRACE_SECONDS = 1.0  # /status may be late by as much, and so may be what follows from it
CALM = "calm"
BAD = (Outcome.FAILED, Outcome.WRONG, Outcome.HUNG)


@dataclass(frozen=True)
class Committed:
    """A fault that was committed; moments of time.monotonic, the rest in seconds.

    Attributes:
        answers: until the first right answer to a request sent after it; None if there was none.
        whole: until /status said that everything serves again; None if it never did.
        trouble: why it was not committed or not undone; nothing if all went well.
        broken_off: by the operator, so nobody knows how it would have ended.
    """

    kind: str
    what: str
    began: float
    over: float
    may_refuse: bool = False
    answers: float | None = None
    whole: float | None = None
    trouble: str = ""
    broken_off: bool = False

    def met(self, record: Record) -> bool:
        """Whether the request was under way while the fault lasted."""
        return record.sent <= self.over + GRACE_SECONDS and record.ended >= self.began


@dataclass
class Row:
    """A kind of fault in the table."""

    kind: str
    count: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    answers: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, record: Record) -> None:
        self.outcomes[record.outcome] += 1
        if record.outcome is Outcome.RIGHT:
            self.slowest = max(self.slowest, record.seconds)


@dataclass(frozen=True)
class Verdict:
    rows: list[Row]
    findings: list[str]


def judge(
    records: Sequence[Record], committed: Sequence[Committed], wanted: Sequence[str]
) -> Verdict:
    """
    Args:
        records: what was not answered right, or slowly.
        wanted: the kinds that were to be committed; one that never was is a finding.
    """
    rows = {kind: Row(kind) for kind in [*wanted, CALM]}
    findings = [finding for fault in committed for finding in _of_fault(fault)]
    for fault in committed:
        row = rows[fault.kind]
        row.count += 1
        row.answers += [] if fault.answers is None else [fault.answers]
        row.whole += [] if fault.whole is None else [fault.whole]
    findings += [f"{kind} was never committed" for kind in wanted if not rows[kind].count]
    bad: Counter[str] = Counter()
    for record in records:
        met = cause_of(record, committed)
        rows[met.kind if met else CALM].add(record)
        if record.outcome in BAD or (record.outcome is Outcome.REFUSED and not _excused(met)):
            bad[_sentence(record, met)] += 1
    findings += [f"{count} x {sentence}" for sentence, count in bad.most_common()]
    return Verdict(list(rows.values()), findings)


def cause_of(record: Record, committed: Sequence[Committed]) -> Committed | None:
    """The fault that the request met. Where there are several: for a refusal one that excuses it,
    else one that began while the request was under way, else the last."""
    met = [fault for fault in committed if fault.met(record)]
    if record.outcome is Outcome.REFUSED and (excuses := [f for f in met if f.may_refuse]):
        return excuses[0]
    began = [fault for fault in met if fault.began >= record.sent]
    return next(iter(began or met[-1:]), None)


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50 and max; None of nothing."""
    return {"p50": median(seconds), "max": max(seconds)} if seconds else None


def _excused(fault: Committed | None) -> bool:
    return fault is not None and fault.may_refuse


def _of_fault(fault: Committed) -> list[str]:
    name = f"{fault.kind}, {fault.what}" if fault.what else fault.kind
    if fault.trouble:
        return [f"{name}: {fault.trouble}"]
    if fault.broken_off:
        return []
    missing = {
        "no right answer came": fault.answers,
        "/status never said that all serves": fault.whole,
    }
    return [f"{name}: {text} afterwards" for text, value in missing.items() if value is None]


def _sentence(record: Record, fault: Committed | None) -> str:
    where = f"during {fault.kind}, {fault.what}" if fault else "outside of any fault"
    return f"{record.outcome} at {record.model} over {record.via} {where}: {record.detail}"
