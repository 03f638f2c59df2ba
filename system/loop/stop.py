"""Stopping a run from outside: Ctrl-C, SIGTERM from a job's stop, or SIGHUP from a terminal that is closed."""

import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType, TracebackType
from typing import TypeVar

STOPPED_EXIT_CODE = 130
POLL_S = 0.2

T = TypeVar("T")


class Stopped(Exception):
    """The run was asked to stop; its state is that of the last whole step."""


class StopFlag:
    """Turns the first signal into a flag that is checked between pieces of work; the second interrupts.

    A SIGHUP that the process ignores, as nohup has it, stays ignored.

    Raises:
        Stopped: at the end of the context, if the second signal ended it.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._starting = False
        self._deferred = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopFlag":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.signal is not None and kind is KeyboardInterrupt:
            raise Stopped(self.signal) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if self._deferred:  # `_tell` answers
            return
        if self._starting:
            print(f"{self.signal}: stopping what has been started", file=sys.stderr)
            raise KeyboardInterrupt
        print(f"{self.signal}: stopping after the current piece of work; once more to interrupt it", file=sys.stderr)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Within this context, the first signal interrupts: while roles start, there is no work to finish.

        Raises:
            Stopped: by the signal.
        """
        self.check()
        self._starting = True
        try:
            yield
        except KeyboardInterrupt:
            if self.signal is None:
                raise
            raise Stopped(self.signal) from None
        finally:
            self._starting = False

    @contextmanager
    def deferred(self, what: str) -> Iterator[None]:
        """Within this context, the first signal interrupts nothing, and the stop comes when the context ends.

        The signal is answered at once, even while the main thread is in a call that lets no handler run.

        Args:
            what: what starts within the context.

        Raises:
            Stopped: by a signal before the context or within it.
        """
        self.check()
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        teller = Thread(target=self._tell, args=[reader, what], name="signals", daemon=True)
        teller.start()
        self._deferred = True
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        except Exception as error:
            if self.signal is None:
                raise
            raise Stopped(self.signal) from error  # whoever asked for the stop need not know what failed meanwhile
        finally:
            signal.set_wakeup_fd(previous)
            self._deferred = False
            writer.close()
            teller.join()
            reader.close()
        self.check()

    def _tell(self, reader: socket.socket, what: str) -> None:
        """Answer the first of our signals. Python sends the number of each signal to the socket as it comes."""
        told = False
        while numbers := reader.recv(64):
            if not told and (ours := [number for number in numbers if number in self._previous]):
                name = signal.Signals(ours[0]).name
                said = f"{what} is starting and cannot be interrupted; stopping as soon as it has started"
                print(f"{name}: {said}", file=sys.stderr, flush=True)
                told = True

    def check(self) -> None:
        """Raises Stopped once a signal has come."""
        if self.signal is not None:
            raise Stopped(self.signal)


def as_done(jobs: Collection[Future[T]], check_stop: Callable[[], None]) -> Iterator[list[Future[T]]]:
    """Yield the resolved jobs, each job once, until all are resolved.

    A list of jobs, which may be empty, comes at least every POLL_S seconds.

    Args:
        check_stop: raises to end the wait.
    """
    resolved: SimpleQueue[Future[T]] = SimpleQueue()
    for job in jobs:
        job.add_done_callback(resolved.put)
    left = len(jobs)
    while left:
        done: list[Future[T]] = []
        with suppress(Empty):
            done.append(resolved.get(timeout=POLL_S))
        done += [resolved.get() for _ in range(resolved.qsize())]
        left -= len(done)
        check_stop()
        yield done
