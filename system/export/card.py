"""The model card of an export: how to load it, scores with intervals, pictures, curves, recipe and licence."""

import html
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from services.base.yaml_text import dump_yaml
from system.export.choices import Layout
from system.export.weights import Trained
from system.report.build import decimals, difference, facts, interval, score, summary
from system.report.canvas import draw_png
from system.report.data import Run, paired_scores, until
from system.report.figures.scores import score_names, score_plot
from system.report.pictures import before_after

MOST_PICTURES = 8
CARD_FILE, RECIPE_FILE = "README.md", "recipe.yaml"


@dataclass(frozen=True)
class ModelCard:
    """What a card says besides what the run's folder records."""

    layout: Layout
    is_adapter: bool
    """Whether the folder has an adapter, not a whole transformer."""
    file: str
    """The file or folder with the weights."""
    base: str | None
    """The base model's hub id; None if it is not known."""
    license: dict[str, Any]
    """Fields of the card's head: `license`, and for other licences than the usual ones their name and link."""


def write_model_card(folder: Path, card: ModelCard, trained: Trained, run: Run) -> list[str]:
    """Write the card, its pictures and the recipe. Returns a sentence for each part that is left out."""
    config, then = trained.config, _published(until(run, trained.step), card)
    pairs = paired_scores(then) if trained.evaluated else []
    pictures, left_out = _pictures(folder, then) if pairs else ([], [])
    environment = Environment(
        loader=PackageLoader("system.export", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {f.__name__: f for f in (md, score, decimals, difference, interval)}
    why = _why_no_scores(trained)
    text = environment.get_template("card.md.j2").render(
        head=dump_yaml(_head(card, pictures)),
        title=f"{config.name}, step {trained.step}",
        summary=summary(then),
        what=_what(card),
        step=trained.step,
        set_note="the moving average of its weights" if trained.weight_set != "trained" else "",
        layout=card.layout,
        adapter=card.is_adapter,
        file=card.file,
        base_literal=json.dumps(card.base or "THE_BASE_MODEL"),
        sampling=config.eval_sampling,
        pairs=pairs,
        first=min(then.evals, default=0),
        roles=run.roles,
        no_scores=why,
        pictures=pictures,
        no_pictures=why if not pairs else "The run has kept no pictures of this step.",
        curves=_curves(folder, then),
        facts=facts(then),
        license=card.license.get("license_name") or card.license.get("license", ""),
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    recipe = dump_yaml(config.model_dump(mode="json"))
    (folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    return left_out if pairs else [why, *left_out]


def md(text: object) -> str:
    """Text from outside for a line or a cell of Markdown: no markup, no HTML, no line break."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(str(text).split()))
    return html.escape(escaped, quote=False)


def _head(card: ModelCard, pictures: list[dict[str, str]]) -> dict[str, Any]:
    """The fields that a hub reads."""
    kind = "lora" if card.is_adapter else "finetuned"
    head: dict[str, Any] = dict(card.license)
    if card.base:
        head |= {"base_model": card.base, "base_model_relation": "adapter" if card.is_adapter else "finetune"}
    head |= {
        "library_name": "peft" if card.layout is Layout.PEFT else "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", kind, "reinforcement-learning", "flow-matching", "tempflow"],
    }
    if pictures:
        head["widget"] = [{"text": one["prompt"], "output": {"url": one["after"]}} for one in pictures]
    return head


def _published(run: Run, card: ModelCard) -> Run:
    """The run as a card shows it: its base model by the hub's name, not by a folder of this machine."""
    policy = run.section("policy")
    model = card.base or Path(str(policy.get("model", "model"))).name
    return replace(run, config=run.config | {"policy": policy | {"model": model}})


def _what(card: ModelCard) -> str:
    base = f" of [{card.base}](https://huggingface.co/{card.base})" if card.base else " of the base model"
    if card.is_adapter:
        return f"a LoRA adapter{base.replace(' of ', ' for ', 1)}"
    return f"the transformer{base}{' with its trained adapter added' if card.layout is Layout.MERGED else ''}"


def _why_no_scores(trained: Trained) -> str:
    if not trained.evaluated:
        return "These weights were not evaluated: the run evaluates their moving average."
    return f"The run has no evaluation of step {trained.step} that can be compared with one before training."


def _pictures(folder: Path, run: Run) -> tuple[list[dict[str, str]], list[str]]:
    """Write the pictures before and after. Returns prompts and paths in the folder, and what is left out."""
    shown, torn = before_after(run)
    written = []
    for i, one in enumerate(shown[:MOST_PICTURES]):
        before, after = (
            _write(folder, f"images/{i:03d}-{when}.{picture.kind}", picture.content)
            for when, picture in zip(("before", "after"), one.pictures, strict=True)
        )
        written.append({"prompt": one.prompt, "before": before, "after": after})
    return written, torn


def _write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return name


def _curves(folder: Path, run: Run) -> list[dict[str, str]]:
    """Draw each score over training steps. Returns names and paths in the folder."""
    curves = []
    for i, name in enumerate(score_names(run)):
        file = f"images/curve-{i}.png"
        (folder / file).parent.mkdir(exist_ok=True)
        draw_png(folder / file, score_plot(run, name))
        curves.append({"name": name, "file": file})
    return curves
