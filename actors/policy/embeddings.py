"""Text embeddings, computed once for each distinct prompt, so that the text encoders need not stay on the GPU."""

import hashlib
import json
import logging
import uuid
from collections import OrderedDict
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from actors.policy.arrays import to_arrays, to_tensor
from actors.policy.families.family import Conditioning, Family
from actors.policy.offload import Offloaded
from services.base.errors import first_line
from services.base.fingerprint import fingerprint_of

log = logging.getLogger(__name__)

Key = tuple[bool, str, str]
"""What the embeddings of a model depend on: whether guidance is on, the negative prompt and the prompt."""


class Embeddings:
    """Embeddings of prompts, from memory, from disk or from the family's text encoders, in this order.

    Each prompt is encoded alone, so that its embeddings depend on nothing else.

    Args:
        family: loaded with parts="all".
        memory_bytes: the most bytes kept in this process, on the CPU. The least recently used prompts go first.
        folder: has one Arrow file for each prompt, shared by workers and runs; None keeps nothing on disk.
        offload: keep the text encoders on the CPU, and on the family's device only while they work.
    """

    def __init__(self, family: Family, memory_bytes: int, folder: Path | None = None, offload: bool = False) -> None:
        self.family, self.memory_bytes, self.folder = family, memory_bytes, folder
        self._kept: OrderedDict[Key, Conditioning] = OrderedDict()
        self._bytes = 0
        self._encoders = Offloaded(_text_encoders(family), family.device) if offload else None

    def __call__(self, prompts: list[str], family: Family | None = None) -> Conditioning:
        """Embeddings of P prompts by name, each (P, …), on the family's device.

        Args:
            family: the family as it samples these prompts (`Family.sampled_as`). If not given, as in training.
        """
        family = family or self.family
        key_of = {prompt: (family.guided, family.negative_prompt, prompt) for prompt in prompts}
        found = {prompt: self._kept.get(key) or self._read(key) for prompt, key in key_of.items()}
        rows = self._encode([prompt for prompt, row in found.items() if row is None], family)
        for prompt, row in rows.items():
            self._write(key_of[prompt], row)
        rows |= {prompt: row for prompt, row in found.items() if row is not None}
        for prompt, row in rows.items():
            self._keep(key_of[prompt], row)
        names = rows[prompts[0]]
        return {name: torch.cat([rows[prompt][name] for prompt in prompts]).to(family.device) for name in names}

    def _encode(self, prompts: list[str], family: Family) -> dict[str, Conditioning]:
        if not prompts:
            return {}
        with self._encoders.visiting() if self._encoders else nullcontext():
            return {
                prompt: {name: tensor.cpu() for name, tensor in family.encode([prompt]).items()} for prompt in prompts
            }

    def _keep(self, key: Key, rows: Conditioning) -> None:
        if key not in self._kept:
            self._bytes += _num_bytes(rows)
        self._kept[key] = rows
        self._kept.move_to_end(key)
        while self._bytes > self.memory_bytes:
            self._bytes -= _num_bytes(self._kept.popitem(last=False)[1])

    @cached_property
    def _model(self) -> list[str | None]:
        """The model's name and a fingerprint of its files, because a path may hold another model later."""
        name = self.family.settings.model
        return [name, fingerprint_of(name)]

    def _path(self, key: Key) -> Path:
        """The file of a prompt. Its name is a digest of everything that the embeddings depend on."""
        assert self.folder is not None
        settings = self.family.settings
        whole = json.dumps([self._model, settings.dtype, settings.max_sequence_length, *key])
        return self.folder / f"{hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()}.arrow"

    def _read(self, key: Key) -> Conditioning | None:
        if self.folder is None or not self._path(key).exists():
            return None
        try:
            with pa.memory_map(str(self._path(key))) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid as error:
            log.warning("%s is torn and written again: %s", self._path(key), first_line(error))
            return None
        shapes = json.loads(table.schema.metadata[b"shapes"])
        return {
            name: to_tensor(np.array(table[name].combine_chunks().values).reshape(shape))
            for name, shape in shapes.items()
        }

    def _write(self, key: Key, rows: Conditioning) -> None:
        """Write another file and rename it, so that no worker reads half a file.

        The other file's name is random, because workers on several nodes may write the same prompt at once.
        """
        if self.folder is None:
            return
        arrays = to_arrays(rows)
        table = pa.table({name: [array.ravel()] for name, array in arrays.items()})
        table = table.replace_schema_metadata(
            {"prompt": key[-1], "shapes": json.dumps({name: array.shape for name, array in arrays.items()})}
        )
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{uuid.uuid4().hex}")
        with pa.ipc.new_file(str(aside), table.schema) as sink:
            sink.write_table(table)
        aside.replace(path)


def _text_encoders(family: Family) -> list[nn.Module]:
    parts = family.pipe.components.items()
    return [model for name, model in parts if name.startswith("text_encoder") and isinstance(model, nn.Module)]


def _num_bytes(rows: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in rows.values())
