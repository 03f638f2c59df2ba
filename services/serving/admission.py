"""How much may be in a gateway at once, and which runs have their own name in metrics."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from services.serving.settings import GatewaySettings

MAX_NAMED_RUNS = 256
"""The most runs that a gateway names in metrics. Each name takes memory in every scorer until the scorer ends."""
OTHER_RUNS = "other"
"""The name in metrics that all further runs share."""


class Full(Exception):
    """There is no room for a request now. The message says of what there is too much."""


class Admission:
    """Counts the images and pixels in a gateway. It belongs to one event loop and has no lock."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.images_of_run: Counter[str] = Counter()
        """The number of images in the gateway, by run."""
        self.pixels = 0
        """The number of pixels of all images in the gateway."""
        self.named_runs: set[str] = set()

    @contextmanager
    def admitted(self, images: int, pixels: int, run: str) -> Iterator[None]:
        """Count images and pixels as being in the gateway while the context lasts.

        A request that has more pixels than may wait is admitted if no other request is in the gateway.

        Raises:
            Full: there would be too many.
        """
        settings, counts = self.settings, self.images_of_run
        if counts[run] + images > settings.max_waiting_per_run or counts.total() + images > settings.max_waiting:
            raise Full("the pool has too many images waiting")
        if self.pixels + pixels > max(settings.max_waiting_pixels, pixels):
            raise Full("the pool has too many pixels waiting")
        counts[run] += images
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
            counts[run] -= images
            if not counts[run]:
                del counts[run]

    def name_in_metrics(self, run: str) -> str:
        """The name of a run in metrics. The first MAX_NAMED_RUNS runs have their own names; the others share one."""
        if len(self.named_runs) < MAX_NAMED_RUNS:
            self.named_runs.add(run)
        return run if run in self.named_runs else OTHER_RUNS
