"""The process that decodes untrusted images: `python -m services.serving.decoder CPU_SECONDS MAX_PIXELS`.

It writes READY, then reads images and answers each one, in the frames below, until its input ends. It does nothing else
and has no secrets. If an image takes more than its CPU seconds, the kernel ends the process, even inside Pillow. The
reader of the answers then sees the end of the output.
"""

import signal
import struct
import sys
from typing import BinaryIO

from services.http.image_structure import BadImage
from services.http.images import decode_image

READY = b"R"
IMAGE_HEAD = struct.Struct("<Q")
"""The number of bytes of the image. The image follows."""
ANSWER_HEAD = struct.Struct("<III")
"""Height, width, and the number of bytes of the reason. Then follow the pixels (height, width, 3), or the reason if the
image cannot be decoded."""


def main(cpu_s: float, max_pixels: int, asked: BinaryIO, answers: BinaryIO) -> None:
    """Decode images until the input ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    answers.write(READY)
    answers.flush()
    while len(head := asked.read(IMAGE_HEAD.size)) == IMAGE_HEAD.size:
        data = asked.read(*IMAGE_HEAD.unpack(head))
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            image_HWC = decode_image(data, max_pixels)
            answer = [ANSWER_HEAD.pack(*image_HWC.shape[:2], 0), image_HWC.tobytes()]
        except BadImage as error:
            reason = str(error).encode()
            answer = [ANSWER_HEAD.pack(0, 0, len(reason)), reason]
        finally:  # before the answer: after it, the end of this process would count against the next image
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.writelines(answer)
        answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
