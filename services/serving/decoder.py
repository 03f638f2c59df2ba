"""The process that decodes what strangers send: `python -m services.serving.decoder CPU_SECONDS MAX_PIXELS`.

It says READY, then reads images and answers each one, in the frames below, until its input ends. It does nothing else
and holds no secret. The kernel ends it when an image takes more than its CPU seconds, wherever Pillow is then; who
waits for the answer sees the end of the output.
"""

import signal
import struct
import sys
from typing import BinaryIO

from services.http.image_structure import BadImage
from services.http.images import decode_image

READY = b"R"
IMAGE_HEAD = struct.Struct("<Q")
"""The number of bytes of the image, which follow."""
ANSWER_HEAD = struct.Struct("<III")
"""Height, width, and the number of bytes of the reason. The pixels (height, width, 3) follow, or the reason why there
are none."""


def main(cpu_s: float, max_pixels: int, asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    answers.write(READY)
    answers.flush()
    while len(head := asked.read(IMAGE_HEAD.size)) == IMAGE_HEAD.size:
        data = asked.read(*IMAGE_HEAD.unpack(head))
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            image_HWC = decode_image(data, max_pixels)
        except BadImage as error:
            reason = str(error).encode()
            answers.write(ANSWER_HEAD.pack(0, 0, len(reason)) + reason)
        else:
            answers.write(ANSWER_HEAD.pack(*image_HWC.shape[:2], 0))
            answers.write(image_HWC.tobytes())
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
