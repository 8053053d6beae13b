"""TensorRT's builder in rich's progress bars."""

from typing import Any

from rich.progress import Progress, TaskID


def progress_monitor(trt: Any, progress: Progress, name: str) -> Any:
    """An `IProgressMonitor` with a bar for each of the builder's phases, inner ones indented.

    The builder calls it from several threads, and does not keep it alive. Ctrl-C ends the build;
    `cancelled` says so, since no exception may pass through the builder.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._bars: dict[str, tuple[TaskID, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self._bars[parent_phase][1] + 1 if parent_phase in self._bars else 0
            title = f"{'  ' * depth}{name}: {phase_name}"
            self._bars[phase_name] = progress.add_task(title, total=num_steps), depth

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self._bars:
                    progress.update(self._bars[phase_name][0], completed=step + 1)
            except KeyboardInterrupt:
                self.cancelled = True
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            if bar := self._bars.pop(phase_name, None):
                progress.remove_task(bar[0])

    return Monitor()
