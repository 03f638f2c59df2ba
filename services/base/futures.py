"""Futures that are resolved by hand."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def cancel(future: Future[Any]) -> None:
    """Resolve a future as cancelled, also for threads that already wait for it. A resolved future does not change."""
    if future.cancel():
        future.set_running_or_notify_cancel()


def cancelled() -> Future[Any]:
    """A cancelled future."""
    future: Future[Any] = Future()
    cancel(future)
    return future


def resolved(run: Callable[[], T]) -> Future[T]:
    """The result of a function, or its error, as a future."""
    future: Future[T] = Future()
    try:
        future.set_result(run())
    except Exception as error:
        future.set_exception(error)
    return future
