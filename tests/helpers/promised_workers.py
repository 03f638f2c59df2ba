"""Handles of rollout workers whose answers the test gives. No Ray."""

from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace


class Reference:
    def __init__(self) -> None:
        self.promise: Future = Future()

    def future(self) -> Future:
        return self.promise


class Worker:
    """A handle whose answers the test gives: `asked` has a promise for each task that it was asked for."""

    def __init__(self) -> None:
        self.node = Reference()
        self.asked: SimpleQueue[Future] = SimpleQueue()
        self.ready = SimpleNamespace(remote=lambda: self.node)
        self.load = SimpleNamespace(remote=self._load)
        self.generate = SimpleNamespace(remote=self._generate)

    def _load(self, label, *buckets):
        confirmation = Reference()
        confirmation.promise.set_result((label.version, label.checksum))
        return confirmation

    def _generate(self, task, plan):
        answer = Reference()
        self.asked.put(answer.promise)
        return [None, None, answer]
