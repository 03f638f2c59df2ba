"""A run folder as plain data for the page and the terminal. Each look reads only what is new."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from services.base.errors import UserError
from services.base.yaml_text import load_yaml
from system.loop.evaluation import NOT_SCORES
from system.report.data import number, section_of, weights_of
from system.run.files import tables
from system.run.metrics_file import missing_steps, parsed
from system.watch.columns import Columns
from system.watch.experience import Group, describe_groups, groups, prompt_means, tree
from system.watch.panels import panels
from system.watch.prompt_history import PromptHistory
from system.watch.step_tables import KeptTables, changed_ns
from system.watch.tail import Tail
from system.watch.warned import RUN, NewestWarnings, Warned, warned_in

SILENT_S, SILENT_STEPS = 120, 5
"""A run without a new line for so many seconds, and for the time of so many steps, is called silent."""


class Reader:
    """Reads one run.

    Args:
        path: the run folder.

    Raises:
        UserError: the folder is not that of a run.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "config.yaml").is_file() and not (path / "metrics.jsonl").is_file():
            raise UserError(f"`{path}` is not a run: it has neither config.yaml nor metrics.jsonl")
        self.path = path
        self.config: dict[str, Any] = {}
        self.revision = 0
        """Grows with each change that `poll` finds in the metrics or the logs."""
        self.columns = Columns()
        self._metrics = Tail(path / "metrics.jsonl")
        self._logs: dict[str, Tail] = {}
        self._warnings = NewestWarnings()
        self._config_changed: float | None = None
        self._prompts = PromptHistory()
        self._tables = KeptTables()

    def poll(self) -> None:
        """Read what is new.

        Raises:
            OSError: the storage failed.
        """
        self._read_config()
        again, lines = self._metrics.read()
        if again:
            self.columns = Columns()
            self._warnings.forget(RUN)
        for text in lines:
            if (line := parsed(text)) is not None:
                self.columns.add(line)
                said = line.get("warnings")
                for message in said if isinstance(said, list) else []:
                    self._warnings.add(Warned(number(line.get("time")) or 0.0, line["step"], RUN, str(message)))
        changed = again or bool(lines)
        for file in sorted((self.path / "logs").glob("*.log")):
            changed |= self._read_log(file)
        self.revision += changed

    def _read_config(self) -> None:
        file = self.path / "config.yaml"
        try:
            changed = file.stat().st_mtime
            if changed == self._config_changed:
                return
            config = load_yaml(file.read_text(encoding="utf-8", errors="replace"), str(file))
        except (OSError, UserError):
            return
        self._config_changed, self.config = changed, config if isinstance(config, dict) else {}
        self.revision += 1

    def _read_log(self, file: Path) -> bool:
        again, lines = self._logs.setdefault(file.name, Tail(file)).read()
        if again:
            self._warnings.forget(file.name)
        for text in lines:
            if (warned := warned_in(text, file.name)) is not None:
                self._warnings.add(warned)
        return again or bool(lines)

    @property
    def warnings(self) -> list[Warned]:
        """The newest warnings, the newest first."""
        return self._warnings.newest()

    def section(self, key: str) -> dict[str, Any]:
        """A section of the recipe; empty if it is missing."""
        return section_of(self.config, key)

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def trained(self) -> list[str]:
        """The scorers of the training reward."""
        return [name for name, weight in weights_of(self.config).items() if weight]

    def state(self, now: float) -> dict[str, Any]:
        """Whether the run is running, as far as its folder says.

        Args:
            now: the Unix time.
        """
        columns, planned = self.columns, self.config.get("steps")
        done = columns.steps[-1] if columns.steps else None
        last, step_s = columns.last("time"), columns.last("seconds/step")
        age_s = None if last is None else max(0.0, now - last)
        patience_s = max(SILENT_S, SILENT_STEPS * (step_s or 0.0))
        if done is None:
            kind = "waiting"
        elif isinstance(planned, int) and done >= planned:
            kind = "finished"
        else:
            kind = "running" if age_s is not None and age_s < patience_s else "silent"
        left = planned - done if isinstance(planned, int) and done is not None else None
        return {
            "kind": kind,
            "step": done,
            "steps": planned if isinstance(planned, int) else None,
            "age_s": age_s,
            "left_s": left * step_s if left and step_s and kind == "running" else None,
            **{key: columns.last(key) for key in ("nfe", "decodes", "scores", "elapsed_s")},
        }

    def overview(self, now: float) -> dict[str, Any]:
        """All that the page shows of the run as a whole."""
        columns, policy, plan = self.columns, self.section("policy"), self.section("plan")
        return {
            "revision": self.revision,
            "name": self.name,
            "recipe": {
                "method": self.config.get("method"),
                "model": policy.get("model"),
                "plan": plan.get("name"),
                "sampling_steps": policy.get("num_steps"),
                "rewards": self.trained,
            },
            "state": self.state(now),
            "missing": missing_steps([{"step": step} for step in columns.steps], columns.steps[-1])
            if columns.steps
            else None,
            "panels": self.panels(),
            "roles": {key.removeprefix("idle/"): columns.last(key) for key in sorted(columns.keys("idle/"))},
            "seconds": {
                key: columns.last(f"seconds/{key}") for key in ("generate", "score", "update", "export", "eval")
            },
            "steps": {
                "experience": _ends(tables(self.path / "experience")),
                "pictures": list(tables(self.path / "pictures")),
                "samples": self.sample_steps(),
            },
            "warnings": [asdict(warned) for warned in self.warnings],
        }

    def panels(self) -> list[dict[str, Any]]:
        """The figures of curves."""
        return panels(self.columns, self.trained)

    def sample_steps(self) -> list[int]:
        """The steps whose held-out pictures are kept."""
        names = [path.name.removeprefix("step_") for path in (self.path / "samples").glob("step_*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def step(self, step: int) -> dict[str, Any] | None:
        """The groups of a step by spread, and its task whose pictures are kept; None if the step is not there."""
        table = self._experience(step)
        if table is None:
            return None
        pictures = self._pictures(step)
        row = None if pictures is None or not len(pictures) else pictures["prompt_row"][0].as_py()
        found: list[Group] = groups(table, str(self.section("advantage").get("group", "seed")))
        prompts = prompt_means(table)
        return {
            "step": step,
            "row": row if row is not None else next(iter(prompts), None),
            "tasks": [{"row": row, "prompt": text, "mean": number(mean)} for row, (text, mean) in prompts.items()],
            "groups": describe_groups(found),
            "by_step": self._by_sampling_step(),
        }

    def _by_sampling_step(self) -> dict[str, list[float | None]]:
        """Noise level, loss weight and spread by sampling step, of the last step that says them."""
        for line in reversed(self.columns.recent):
            found = {key: line.get(f"branch/{key}") for key in ("noise_level", "weight", "std")}
            if all(isinstance(values, list) for values in found.values()):
                return {key: [number(value) for value in values] for key, values in found.items() if values}
        return {}

    def task(self, step: int, row: int) -> dict[str, Any] | None:
        """The tree of one task, with the leaves whose pictures are kept; None if the step is not there."""
        table = self._experience(step)
        if table is None:
            return None
        pictures = self._pictures(step)
        kept = [] if pictures is None else pictures.filter(pc.equal(pictures["prompt_row"], row))["leaf"].to_pylist()
        num_steps = self.section("policy").get("num_steps")
        return tree(table, row) | {
            "step": step,
            "pictures": kept,
            "num_steps": num_steps if type(num_steps) is int else None,
        }

    def picture(self, step: int, row: int, leaf: int) -> bytes | None:
        """A training image as an encoded file; None if it is not kept."""
        pictures = self._pictures(step)
        if pictures is None:
            return None
        places = zip(pictures["prompt_row"].to_pylist(), pictures["leaf"].to_pylist(), strict=True)
        index = next((i for i, place in enumerate(places) if place == (row, leaf)), None)
        return None if index is None else pictures["image"][index].as_py()

    def sample_file(self, step: int, index: int) -> bytes | None:
        """A held-out picture as PNG; None if it is not there."""
        try:
            return (self.path / "samples" / f"step_{step:06d}" / f"{index:03d}.png").read_bytes()
        except FileNotFoundError:
            return None

    def samples(self, step: int) -> dict[str, Any]:
        """The held-out pictures of an evaluation with their prompts and scores."""
        table = self._tables.read(self.path / "eval" / f"step_{step:06d}.parquet")
        count = len(list((self.path / "samples" / f"step_{step:06d}").glob("*.png")))
        shown: list[dict[str, Any]] = []
        for i in range(count):
            line = {} if table is None or i >= len(table) else table.slice(i, 1).to_pylist()[0]
            scores = {key: number(value) for key, value in line.items() if key not in NOT_SCORES}
            shown.append({"index": i, "prompt": str(line.get("prompt", "")), "scores": scores})
        return {"step": step, "pictures": shown}

    def prompts(self) -> dict[str, Any]:
        """The history of the prompts that were used last. Each call reads some more of the steps."""
        self._prompts.read(tables(self.path / "experience"))
        return self._prompts.describe()

    def _experience(self, step: int) -> pa.Table | None:
        return self._tables.read(self.path / "experience" / f"step_{step:06d}.parquet")

    def _pictures(self, step: int) -> pa.Table | None:
        return self._tables.read(self.path / "pictures" / f"step_{step:06d}.parquet")


def newest_run(folder: Path) -> Path:
    """The run in a folder of runs that wrote last.

    Raises:
        UserError: there is no run.
    """
    written: dict[Path, int] = {}
    for file in (*folder.glob("*/metrics.jsonl"), *folder.glob("*/config.yaml")):
        written[file.parent] = max(written.get(file.parent, 0), changed_ns(file) or 0)
    if not written:
        raise UserError(f"`{folder}` has no run; name a run folder: `tempflow watch FOLDER`")
    return max(written, key=lambda run: written[run])


def _ends(steps: Iterable[int]) -> list[int]:
    """The first and the last step; empty without any."""
    every = list(steps)
    return [every[0], every[-1]] if every else []
