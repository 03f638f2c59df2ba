"""Decodes images in separate processes, each image in bounded time, and shares the processes fairly among requests."""

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
from services.serving.decoder import ANSWER_HEAD, IMAGE_HEAD, READY

log = logging.getLogger(__name__)

PUSHED_BACK = 10
"""Decodings take turns in the order of arrival. For each second of work on its images, a decoding counts as having
arrived this many seconds later."""
INHERITED = ("PATH", "LD_LIBRARY_PATH")
"""The environment variables that a decoder inherits. Tokens are not among them."""


class DecoderLost(Exception):
    """A decoder's process ended before it answered."""


class Decoder:
    """A process that decodes one image at a time. When it ends, another one is started."""

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
            raise RuntimeError(f"a decoder of images cannot start: its process ended with {self.close()}") from error

    def decode(self, data: bytes) -> np.ndarray:
        """Decode like `services.http.images.decode_image`, in at most `decode_s` CPU seconds.

        Raises:
            BadImage: as `decode_image` raises, or the image takes longer or ends the process.
        """
        if self.process.poll() is not None:
            self._start()
        try:
            return self._ask(data)
        except (DecoderLost, BrokenPipeError) as error:
            ended = self.close()
            self._start()  # start now, so that the next image need not wait for it
            if ended == -signal.SIGPROF:
                raise BadImage(f"takes more than {self.decode_s:g} s to decode") from error
            log.warning("an image ended its decoder with %d", ended)
            raise BadImage("cannot be decoded: it ended the process that decodes it") from error

    def _ask(self, data: bytes) -> np.ndarray:
        self.asked.write(IMAGE_HEAD.pack(len(data)))
        self.asked.write(data)
        self.asked.flush()
        height, width, reason = ANSWER_HEAD.unpack(self._read(ANSWER_HEAD.size))
        if reason:
            raise BadImage(self._read(reason).decode())
        return np.frombuffer(self._read(height * width * 3), np.uint8).reshape(height, width, 3)

    def _read(self, count: int) -> bytes:
        found = self.answers.read(count)
        if len(found) < count:
            raise DecoderLost
        return found

    def close(self) -> int:
        """End the process, and return its exit code."""
        self.answers.close()
        with suppress(BrokenPipeError):  # it has not read everything that was sent
            self.asked.close()
        return self.process.wait()


Decoded = tuple[dict[int, np.ndarray], dict[int, str]]
"""The images, uint8 (H, W, 3), by index, and by index the reasons why the others cannot be scored."""


@dataclass(order=True)
class _Decoding:
    """The images of one caller. The decoding with the smallest `turn` has its next image decoded first."""

    turn: float
    number: int
    waiting: deque[tuple[int, bytes]] = field(compare=False)
    images: dict[int, np.ndarray] = field(compare=False, default_factory=dict)
    errors: dict[int, str] = field(compare=False, default_factory=dict)
    done: Future[Decoded] = field(compare=False, default_factory=Future)


class Decoders:
    """Decoder processes, and the queue of the callers' images.

    One image of each caller is decoded at a time. A caller with slow images waits behind callers with quick images who
    came a little later, but not forever.

    Args:
        count: the number of processes.
        decode_s: the CPU seconds that one image may take.
        max_pixels: the most pixels that one image may have.
    """

    def __init__(self, count: int, decode_s: float, max_pixels: int) -> None:
        self.decodings: PriorityQueue[_Decoding] = PriorityQueue()
        self.numbers = itertools.count()
        for number in range(count):
            decoder = Decoder(decode_s, max_pixels)
            threading.Thread(target=self._work, args=[decoder], name=f"decode-{number}", daemon=True).start()

    async def decode(self, encoded: Mapping[int, bytes]) -> Decoded:
        """Decode images by index.

        If the caller is cancelled, the image that is being decoded is finished, and no further one is begun.
        """
        decoding = _Decoding(time.monotonic(), next(self.numbers), deque(encoded.items()))
        self.decodings.put(decoding)
        return await asyncio.wrap_future(decoding.done)

    def _work(self, decoder: Decoder) -> None:
        while True:
            self._advance(decoder, self.decodings.get())

    def _advance(self, decoder: Decoder, decoding: _Decoding) -> None:
        """Decode the next image of a decoding. After the last image, the decoding is done."""
        if decoding.done.cancelled():
            return
        started = time.monotonic()
        try:
            if decoding.waiting:
                self._decode(decoder, decoding)
        except Exception as error:  # the error belongs to this caller; the thread continues with the next
            if decoding.done.set_running_or_notify_cancel():
                decoding.done.set_exception(error)
            return
        decoding.turn += PUSHED_BACK * (time.monotonic() - started)
        if decoding.waiting:
            self.decodings.put(decoding)
        elif decoding.done.set_running_or_notify_cancel():
            decoding.done.set_result((decoding.images, decoding.errors))

    @staticmethod
    def _decode(decoder: Decoder, decoding: _Decoding) -> None:
        i, data = decoding.waiting.popleft()
        try:
            decoding.images[i] = decoder.decode(data)
        except BadImage as error:
            decoding.errors[i] = str(error)
