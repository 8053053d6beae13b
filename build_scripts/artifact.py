"""One job's artifact: built and verified, then published."""

from dataclasses import replace
from functools import cached_property

from rich.progress import Progress

from build_scripts import command, publish, stages
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.outcome import Result
from build_scripts.publish import Steps


def build(job: Job, progress: Progress, *, publishing: bool = True) -> Result:
    """Have the job's artifact, verified and, if `publishing`, in the repository.

    Raises:
        BuildError: it cannot be done; the repository is as it was.
    """
    made = Artifact(job, progress, publishing=publishing)
    result = made.verify()
    return made.publish(result) if publishing else result


class Artifact:
    """`publishing`: whether it is to be published in the end."""

    def __init__(self, job: Job, progress: Progress, *, publishing: bool) -> None:
        self.job = job
        self._progress, self._publishing = progress, publishing

    @cached_property
    def _steps(self) -> Steps:
        """Planned once: what is edited meanwhile is for the next build."""
        return stages.plan(self.job)

    def verify(self) -> Result:
        """Have it in the workspace, unless it is published already ("kept")."""
        if self._publishing:
            if wrong := self.job.contradiction:
                raise BuildError(wrong)
            if found := publish.current(self.job, self._steps):
                size = sum(file["size"] for file in found.files.values())
                figures = {"accuracy": found.accuracy, "latency": found.latency}
                return Result.of(self.job, "kept", size=size, **figures)
        with command.locked(self.job):
            stages.clean(self.job)
            return self._judged(self._ensure())

    def publish(self, result: Result) -> Result:
        """Put what was verified into the repository."""
        if result.status != "verified":
            return result
        publish.run(self.job, self._steps, self._progress)
        return replace(result, status="published")

    def _ensure(self) -> float:
        """Have what is asked for at the end; returns the seconds that stages have run."""
        *_, last = self._steps
        seconds = stages.ensure(self.job, self._steps, last, self._progress)
        if self._publishing:  # which reads these again, whatever the last one needed
            artifact = stages.artifact_stage(self._steps)
            for name, content in (("fetch", False), (artifact, True)):
                seconds += stages.ensure(
                    self.job, self._steps, name, self._progress, content=content
                )
        return seconds

    def _judged(self, seconds: float) -> Result:
        found = publish.verdict(self._steps)
        measured = {"accuracy": found["accuracy"], "latency": found["latency"], "seconds": seconds}
        if not found["passed"]:
            error = f"{self.job.name} is not accurate enough: {'; '.join(found['misses'])}"
            return Result.of(self.job, "failed", error=error, worst=found["worst"], **measured)
        files = self._steps[stages.artifact_stage(self._steps)].output().values()
        size = sum(path.stat().st_size for path in files)
        return Result.of(self.job, "verified", size=size, **measured)
