"""What the watcher waits for: the end of processes, and calls of `wake`. The kernel tells both."""

import os
import select

from python_mp.machine.vital import vital


class Events:
    """Used by the watcher's thread; `wake` by any thread and by signal handlers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._woken, select.EPOLLIN)
        self._pidfds: dict[int, int] = {}
        self._ended: set[int] = set()

    def close(self) -> None:
        """Watch nothing any more."""
        for pid in [*self._pidfds]:
            self.forget(pid)
        self._epoll.close()
        os.close(self._woken)

    def wake(self) -> None:
        """End the present wait, or the next one."""
        os.eventfd_write(self._woken, 1)

    def wait(self, seconds: float) -> None:
        """Until something happens, but no longer than `seconds`."""
        pids = {descriptor: pid for pid, descriptor in self._pidfds.items()}
        for descriptor, _ in self._epoll.poll(seconds):
            if descriptor == self._woken:
                os.eventfd_read(self._woken)
            else:
                self.forget(pids[descriptor])
                self._ended.add(pids[descriptor])

    def watch(self, pid: int) -> None:
        """Let the end of a process, of whomever it is the child, end a wait."""
        self.forget(pid)
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:  # it ended, there are too many files, or the kernel does not let us
            return
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            os.close(descriptor)
            return
        self._pidfds[pid] = descriptor

    def has_ended(self, pid: int) -> bool:
        """Whether a process that was to be watched is over, be it a zombie."""
        if pid in self._ended:
            return True
        return pid not in self._pidfds and vital(pid).state in "ZX"

    def forget(self, pid: int) -> None:
        """Watch it no more."""
        self._ended.discard(pid)
        if (descriptor := self._pidfds.pop(pid, None)) is not None:
            self._epoll.unregister(descriptor)
            os.close(descriptor)
