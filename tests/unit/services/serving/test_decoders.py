"""Decoders: right pixels, a deadline that the kernel holds, turns between requests, and no process left behind."""

import asyncio
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from services.http.image_structure import MAX_SCANS
from services.http.images import decode_image, encode_image
from services.serving.decoders import Decoder, Decoders
from tests.helpers.images import NOISE, encoded, repeated_scans

PNG = encode_image(np.asarray(NOISE))
SLOW = encoded(NOISE.resize((4096, 4096)), "JPEG", progressive=True, quality=5)
LAST_SCAN = SLOW[SLOW.rindex(b"\xff\xda") : -2]
SLOW = SLOW[:-2] + LAST_SCAN * (MAX_SCANS - 20) + SLOW[-2:]
"""A JPEG whose structure may pass, and which takes seconds to decode."""


def decoded(decoders: Decoders, *images: bytes) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    return asyncio.run(decoders.decode(dict(enumerate(images))))


def test_pixels_are_the_same_and_a_bad_image_fails_alone():
    decoders = Decoders(2, 10, 10_000)
    whole = [PNG, encoded(NOISE, "JPEG"), encoded(NOISE.convert("RGBA"), "WEBP")]
    images, errors = decoded(decoders, whole[0], b"none", *whole[1:], PNG[:-40], repeated_scans(3000))
    for i, data in zip((0, 2, 3), whole, strict=True):
        np.testing.assert_array_equal(images[i], decode_image(data, 10_000))
    assert list(images) == [0, 2, 3]
    assert errors[1] == "is none of PNG, JPEG, WEBP, PPM"
    assert errors[4].startswith("cannot be decoded")
    assert "scans" in errors[5]


def test_an_image_that_takes_too_long_is_ended_and_its_process_replaced():
    decoder = Decoder(0.3, 4096 * 4096)
    before = decoder.process
    with pytest.raises(Exception, match=r"takes more than 0\.3 s to decode"):
        decoder.decode(SLOW)
    assert before.returncode == -signal.SIGPROF
    np.testing.assert_array_equal(decoder.decode(PNG), np.asarray(NOISE))
    assert decoder.process.pid != before.pid
    assert decoder.close() == 0


def test_many_quick_images_have_no_common_deadline():
    decoder = Decoder(0.3, 10**6)
    image = encoded(NOISE.resize((1000, 1000)))
    started = psutil.Process(decoder.process.pid).cpu_times().user
    pid = decoder.process.pid
    while psutil.Process(pid).cpu_times().user - started < 0.6:
        decoder.decode(image)
    assert decoder.process.pid == pid
    decoder.close()


def test_a_decoder_that_was_killed_while_idle_is_replaced():
    decoder = Decoder(10, 10_000)
    decoder.process.kill()
    decoder.process.wait()
    np.testing.assert_array_equal(decoder.decode(PNG), np.asarray(NOISE))
    decoder.close()


def test_who_sends_slow_images_waits_behind_who_sends_quick_ones():
    decoders = Decoders(1, 0.3, 4096 * 4096)

    async def order() -> list[str]:
        ended = []

        async def ask(name: str, *images: bytes) -> None:
            await decoders.decode(dict(enumerate(images)))
            ended.append(name)

        slow = [asyncio.create_task(ask("slow", *[SLOW] * 3)) for _ in range(2)]
        await asyncio.sleep(0.1)
        await asyncio.gather(ask("quick", *[PNG] * 20), *slow)
        return ended

    assert asyncio.run(order())[0] == "quick"


def test_nothing_more_is_decoded_for_a_caller_who_left(monkeypatch):
    decoders, count, asked = Decoders(1, 10, 10_000), 1000, []
    decode = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda self, data: (asked.append(data), decode(self, data))[1])

    async def leave() -> None:
        work = asyncio.create_task(decoders.decode(dict.fromkeys(range(count), PNG)))
        while len(asked) < 3:
            await asyncio.sleep(0.001)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(leave())
    other = encode_image(np.asarray(NOISE) // 2)
    assert len(decoded(decoders, other)[0]) == 1, "the next caller is served"
    assert asked[-1] == other
    assert len(asked) < count


def test_a_decoder_knows_no_secret(monkeypatch):
    monkeypatch.setenv("TEMPFLOW_TOKEN", "a secret")
    decoder = Decoder(10, 10_000)
    assert not psutil.Process(decoder.process.pid).environ().keys() & {"TEMPFLOW_TOKEN", "HOME"}
    decoder.close()


def test_decoders_end_with_the_process_that_asks_them():
    code = "from services.serving.decoders import Decoder; print(Decoder(9, 9).process.pid, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    end = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the decoder outlives its owner"
        time.sleep(0.05)
