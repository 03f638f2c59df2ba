"""The page of a run that the training process serves itself while it trains."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.base.errors import UserError, first_line
from system.watch.reader import Reader
from system.watch.server import PageServer

log = logging.getLogger(__name__)

ANY_PORT = 0
POLL_S = 0.1
"""Seconds between two looks at whether the page is to close."""


@contextmanager
def live_page(run: Path) -> Iterator[str | None]:
    """Serve the page of a run on loopback, on a free port, from a thread of this process.

    A page that cannot be served is a warning: the run continues without it.

    Yields:
        the address of the page, which answers already; None if there is no page.
    """
    try:
        server = PageServer(Reader(run), ANY_PORT)
    except (UserError, OSError) as error:
        log.warning(
            "there is no live page (%s); tempflow watch %s shows the run", first_line(error.__cause__ or error), run
        )
        yield None
        return
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), name="live page", daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()
