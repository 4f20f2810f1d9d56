"""Merge checkpoints, tensor by tensor: read a piece of each parent, combine, write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from galenic.core.errors import ConfigError, WeightsError
from galenic.core.files import atomic_json
from galenic.merging import methods, writing
from galenic.merging.checkpoints import Checkpoint
from galenic.merging.compare import Alignment, align, check_folders
from galenic.merging.folders import MERGED, locate, new_checkpoint, one_thread, require_apart
from galenic.merging.jobs import Job
from galenic.merging.methods import MergerConfig, Resolved
from galenic.merging.recipe import Recipe, check, check_values, read
from galenic.merging.report import Report, measure
from galenic.merging.settings import Depths, at
from galenic.merging.sources import Source, State, Weights, close, size_of, spans
from galenic.merging.writing import Progress, Slot, narrowed

RECIPE, HEADS = "merge_recipe.json", "heads"


def merge(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge checkpoints into the new folder `out`, which appears whole or not at all.

    Memory stays within a few pieces of a tensor, however large the checkpoints are.

    Args:
        recipe: A recipe, its file, or its mapping; mergekit's are read too.
        out: The folder; what stands there is replaced.
        progress: Called after every tensor.

    Returns:
        What was written to `merge_report.json`.

    Raises:
        ConfigError: If the recipe is wrong.
        WeightsError: If a checkpoint is missing or damaged, or parents do not fit; names them.
        RunError: If the disk is full.
    """
    started = time.perf_counter()
    named = [Path(recipe)] if isinstance(recipe, str | Path) else []
    beside = named[0].parent if named else Path.cwd()
    if isinstance(recipe, Recipe):
        check(recipe)
    else:
        recipe = read(recipe)
    keys = recipe.keys()
    places = [locate(model.model, beside) for model in recipe.models]
    first = locate(recipe.base_model, beside) if recipe.base_model is not None else places[0]
    out = Path(out).resolve()
    require_apart(out, [first, *places, *named])
    # A checkpoint that stands in the recipe twice is opened, and checked, once.
    opened = {p: Checkpoint.open(p, verify=recipe.verify) for p in dict.fromkeys([first, *places])}
    base = opened[first]
    parents = {key: opened[place] for key, place in zip(keys, places, strict=True)}
    folders = {key: checkpoint.folder for key, checkpoint in parents.items()}
    notes = [*recipe.notes, *check_folders(base.folder, folders, recipe)]
    with new_checkpoint(out, base.folder, recipe.dtype) as (aside, made):
        work = _Merge(recipe, base, parents)
        work.report.notes[:0] = notes
        made |= writing.write(
            aside,
            work.slots(),
            work.stream,
            stem=base.stem,
            shard_bytes=int(recipe.shard_gb * 1e9),
            metadata=base.metadata or None,
            progress=progress,
        )
        work.write_heads(aside / HEADS)
        document = {
            "method": recipe.method,
            "base": recipe.base_model,
            **work.report.finish(),
            "copied": work.aligned.copied,
            "seconds": time.perf_counter() - started,
        }
        atomic_json(aside / MERGED, document)
        atomic_json(aside / RECIPE, recipe.model_dump(mode="json", exclude={"notes"}))
    return document


def merge_states(
    method: str,
    base: Mapping[str, Tensor] | None,
    models: Mapping[str, Mapping[str, Tensor]],
    parameters: Mapping[str, Any] | None = None,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    **keys: Any,
) -> dict[str, Tensor]:
    """Merge state dicts in memory.

    Args:
        method: A name of `galenic.merging.methods`.
        base: The common ancestor; may be None for `linear`.
        models: State dicts, by name of the model.
        parameters: Of the method.
        each: Of each model, by its name.
        keys: Other keys of a recipe: `exclude`, `missing`, `dtype`, `seed`, ...

    Returns:
        New tensors, by name; none shares memory with a parent.

    Raises:
        ConfigError: If a coefficient is wrong.
        WeightsError: If the state dicts do not fit; names the tensors.
    """
    values = {
        **keys,
        "method": method,
        "base_model": None if base is None else "base",
        "models": [
            {"model": name, "name": name, "parameters": dict((each or {}).get(name, {}))}
            for name in models
        ],
        "parameters": dict(parameters or {}),
    }
    recipe = read(values)
    parents = {name: State(state, name) for name, state in models.items()}
    root = State(base, "base") if base is not None else next(iter(parents.values()))
    found = {}
    with one_thread():
        work = _Merge(recipe, root, parents)
        for slot in work.slots():
            pieces = list(work.stream(slot))
            flat = torch.cat(pieces) if pieces else torch.empty(0, dtype=slot.dtype)
            found[slot.name] = flat.reshape(slot.shape)
    return found


class _Merge:
    """One merge: what is written, and where each entry comes from."""

    def __init__(self, recipe: Recipe, base: Weights, parents: Mapping[str, Weights]) -> None:
        self.recipe, self.base, self.parents = recipe, base, parents
        self.aligned: Alignment = align(base, parents, recipe)
        self._jobs = {job.name: job for job in self.aligned.jobs}
        self._keys = tuple(sorted(parents))
        self._configs = dict(zip(recipe.keys(), recipe.each(), strict=True))
        self.report = Report(self._keys, notes=list(self.aligned.notes))
        self._depths = Depths(base.names(), recipe.outside)
        self._check_layers()
        # Before anything is written: a rule that fits no tensor, a band that does not fit in.
        self._each = {name: self._resolve(name) for name in self._jobs}
        prepare = getattr(methods.method(recipe.method), "prepare", None)
        self._found = prepare(self.aligned.jobs, self._configs) if prepare else None

    def slots(self) -> list[Slot]:
        """Everything that is written, in the order of the base."""
        return [Slot(n, self._type(self.base.source(n)), self.base.source(n).shape)
                for n in self.base.names()]  # fmt: skip

    def stream(self, slot: Slot) -> Iterator[Tensor]:
        """The entries of one tensor, as flat pieces of its type."""
        job = self._jobs.get(slot.name)
        if job is None:
            source = self.base.source(slot.name)
            for start, stop in spans(size_of(source)):
                # A view of the file would be read again, after its pages were given back.
                yield narrowed(source.flat(start, stop), slot)
            close(source)
        else:
            for piece in self._combine(job):
                yield narrowed(piece, slot)
            self.report.add(job, measure(job))
            close(job.base, *job.parents)

    def write_heads(self, folder: Path) -> None:
        """Each model's excluded tensors, in a file of its own."""
        for key, names in self.aligned.heads.items():
            source = self.parents[key]
            tensors = {n: _whole(source.source(n)) for n in names}
            folder.mkdir(exist_ok=True)
            save_file(tensors, folder / f"{key.replace('/', '_')}.safetensors")

    def _combine(self, job: Job) -> Iterator[Tensor]:
        each = [
            Resolved(self._configs[key], values, self.recipe.seed, self._found)
            for key, values in zip(self._keys, self._each[job.name], strict=True)
        ]
        try:
            for piece in methods.combine(self.recipe.method, job, each):
                # One sum tells of any entry that is not finite.
                if not bool(piece.sum().isfinite()) and not bool(piece.isfinite().all()):
                    _not_finite(job)
                yield piece
        except ValueError as error:
            raise ConfigError(f"At the tensor '{job.name}': {error}.", where="parameters") from None

    def _resolve(self, name: str) -> list[dict[str, float]]:
        depth = self._depths.of(name)
        made = []
        for key in self._keys:
            config: MergerConfig = self._configs[key]
            values = at(config, name, depth)
            check_values(config, values, name)
            made.append(values)
        return made

    def _type(self, source: Source) -> torch.dtype:
        if self.recipe.dtype is None or not source.dtype.is_floating_point:
            return source.dtype
        found: torch.dtype = getattr(torch, self.recipe.dtype)
        return found

    def _check_layers(self) -> None:
        wanted, found = self.recipe.layers, self._depths.layers
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"The recipe's layer_range ends at {wanted}, and the base has {found} layers.",
                where="slices",
                expected=f"[0, {found}]",
            )


def _whole(source: Source) -> Tensor:
    return source.flat(0, size_of(source)).clone().reshape(source.shape)


def _not_finite(job: Job) -> None:
    for label, source in [("the base", job.base), *zip(job.keys, job.parents, strict=True)]:
        for start, stop in spans(job.size):
            if not bool(source.flat(start, stop).float().isfinite().all()):
                raise WeightsError(
                    f"The tensor '{job.name}' of {label} is not finite.",
                    expected="numbers, without NaN or infinity",
                    next_step=f"Keep the base's: exclude: ['{job.name}']",
                )
    raise WeightsError(
        f"The merged tensor '{job.name}' is not finite, though its parents are.",
        next_step="Use smaller weights.",
    )
