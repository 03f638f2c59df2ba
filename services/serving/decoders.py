"""Images decoded in processes of their own, each in bounded time, shared fairly between requests."""

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import PriorityQueue

import numpy as np

from services.http.image_structure import BadImage
from services.serving import decoder as child
from services.serving.decoder import ANSWER, READY, REQUEST

log = logging.getLogger(__name__)

PUSHED_BACK = 10
"""Requests take their turn in the order they came, and each second of decoding moves a request back by so many."""
INHERITED = ("PATH", "LD_LIBRARY_PATH")
"""What a decoder gets of our environment: none of the tokens."""


class DecoderLost(Exception):
    """A decoder's process has ended before it answered."""


class Decoder:
    """A process that decodes one image at a time; another one takes its place when it ends."""

    def __init__(self, decode_s: float, max_pixels: int) -> None:
        self.decode_s, self.max_pixels = decode_s, max_pixels
        self._start()

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", child.__name__, str(self.decode_s), str(self.max_pixels)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.asked, self.answers = self.process.stdin, self.process.stdout
        try:
            self._read(len(READY))
        except DecoderLost as error:
            raise RuntimeError(f"a decoder of images does not start: it ended with {self.close()}") from error

    def decode(self, data: bytes) -> np.ndarray:
        """As `services.http.images.decode_image`, in `decode_s` CPU seconds at most.

        Raises:
            BadImage: as there, or it takes longer, or it ends the process.
        """
        if self.process.poll() is not None:
            self._start()
        try:
            return self._ask(data)
        except (DecoderLost, BrokenPipeError) as error:
            ended = self.close()
            self._start()  # now, so that the next image does not pay for it
            if ended == -signal.SIGPROF:
                raise BadImage(f"takes more than {self.decode_s:g} s to decode") from error
            log.warning("an image ended its decoder with %d", ended)
            raise BadImage("cannot be decoded: it ended the process that decodes it") from error

    def _ask(self, data: bytes) -> np.ndarray:
        self.asked.write(REQUEST.pack(len(data)))
        self.asked.write(data)
        self.asked.flush()
        height, width, reason = ANSWER.unpack(self._read(ANSWER.size))
        if reason:
            raise BadImage(self._read(reason).decode())
        return np.frombuffer(self._read(height * width * 3), np.uint8).reshape(height, width, 3)

    def _read(self, count: int) -> bytes:
        found = self.answers.read(count)
        if len(found) < count:
            raise DecoderLost
        return found

    def close(self) -> int:
        """End the process, and return how it ended."""
        self.answers.close()
        with suppress(BrokenPipeError):  # it has not read all that it was sent
            self.asked.close()
        return self.process.wait()


Decoded = tuple[dict[int, np.ndarray], dict[int, str]]
"""Images uint8 (H, W, 3) by index, and by index why the others cannot be scored."""


@dataclass(order=True)
class _Request:
    """Images of one caller; the request with the least `turn` has its next image decoded first."""

    turn: float
    number: int
    waiting: deque[tuple[int, bytes]] = field(compare=False)
    images: dict[int, np.ndarray] = field(compare=False, default_factory=dict)
    errors: dict[int, str] = field(compare=False, default_factory=dict)
    done: Future[Decoded] = field(compare=False, default_factory=Future)


class Decoders:
    """Decoders and the queue before them.

    Each request has one image decoded at a time. Who sends slow images waits behind those who came a little later with
    quick ones, but not for ever.

    Args:
        count: of processes.
        decode_s: CPU seconds that one image may take.
        max_pixels: of one image.
    """

    def __init__(self, count: int, decode_s: float, max_pixels: int) -> None:
        self.requests: PriorityQueue[_Request] = PriorityQueue()
        self.numbers = itertools.count()
        for number in range(count):
            decoder = Decoder(decode_s, max_pixels)
            threading.Thread(target=self._work, args=[decoder], name=f"decode-{number}", daemon=True).start()

    async def decode(self, encoded: Mapping[int, bytes]) -> Decoded:
        """Decode images by index.

        When the caller is cancelled, the image that is being decoded comes to its end, and none follows.
        """
        request = _Request(time.monotonic(), next(self.numbers), deque(encoded.items()))
        self.requests.put(request)
        return await asyncio.wrap_future(request.done)

    def _work(self, decoder: Decoder) -> None:
        while True:
            self._advance(decoder, self.requests.get())

    def _advance(self, decoder: Decoder, request: _Request) -> None:
        """Decode a request's next image; a request without one is done."""
        if request.done.cancelled():
            return
        started = time.monotonic()
        try:
            if request.waiting:
                self._decode(decoder, request)
        except Exception as error:  # it is the request's; this thread serves the next one
            if request.done.set_running_or_notify_cancel():
                request.done.set_exception(error)
            return
        request.turn += PUSHED_BACK * (time.monotonic() - started)
        if request.waiting:
            self.requests.put(request)
        elif request.done.set_running_or_notify_cancel():
            request.done.set_result((request.images, request.errors))

    @staticmethod
    def _decode(decoder: Decoder, request: _Request) -> None:
        i, data = request.waiting.popleft()
        try:
            request.images[i] = decoder.decode(data)
        except BadImage as error:
            request.errors[i] = str(error)
