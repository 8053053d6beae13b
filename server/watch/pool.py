"""A few threads for work that takes long."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from python_mp.machine.thread import Thread

Work = Callable[[], None]


class Pool:
    """Runs work in threads, at most `size` at once; what is more waits in order.

    `submit` always comes to an end, unlike that of concurrent.futures, which waits for a new thread
    that has found no memory. And no thread keeps the program from ending. For one caller.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._threads: list[Thread] = []
        self._queue: SimpleQueue[tuple[Future[None], Work] | None] = SimpleQueue()
        self._is_closed = False

    def submit(self, work: Work) -> Future[None]:
        """Its end, and its error; if there is no thread for it, the error says that."""
        future: Future[None] = Future()
        self._queue.put((future, work))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) < self._size:
            try:
                self._add_thread()
            except (RuntimeError, MemoryError) as error:
                if not self._threads:  # else one of those takes it
                    self._queue.get()
                    future.set_exception(error)
        return future

    def close(self) -> None:
        """Begin nothing any more; what runs goes on."""
        self._is_closed = True
        for _ in self._threads:
            self._queue.put(None)

    def _add_thread(self) -> None:
        thread = Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None and not self._is_closed:
            future, work = job
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
