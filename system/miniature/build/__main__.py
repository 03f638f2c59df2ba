"""Build every asset of the miniature from a seed.

    python -m system.miniature.build [--out DIR] [--seed 0] [--threads 2] [--only vae,policy,contrast,…]

Stages run in the order of STAGES, whatever the order in --only. Figures about the training are written to figures.json.
The card is the last stage and measures the finished assets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from system.miniature import ASSETS
from system.miniature.build.card import write_card
from system.miniature.build.figures import record_figures
from system.miniature.build.stages import STAGES, forget_origin

CARD = "card"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that the command line names."""
    every = [*STAGES, CARD]
    parser = argparse.ArgumentParser(prog="python -m system.miniature.build", description="Build the assets.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="the folder of the assets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--only", default=",".join(every), help="comma-separated stages (default: %(default)s)")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(every)):
        parser.error(f"unknown stages {', '.join(unknown)}; the stages are {', '.join(every)}")
    torch.set_num_threads(options.threads)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, build in STAGES.items():
        if name in wanted:
            start = time.monotonic()
            figures = build(options.out, options.seed)
            minutes = round((time.monotonic() - start) / 60, 1)
            figures |= {"seed": options.seed, "threads": options.threads, "minutes": minutes}
            record_figures(options.out, name, figures)
            forget_origin(options.out)
    if CARD in wanted:
        write_card(options.out)


if __name__ == "__main__":
    main()
