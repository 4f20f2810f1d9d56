"""How the parents of a merge differ: names, shapes, types, tied tensors, tokenizers, adapters."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from galenic.core.errors import WeightsError
from galenic.merging.jobs import Job
from galenic.merging.recipe import Recipe
from galenic.merging.sources import Source, Weights, size_of, spans

_ADAPTER = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern",
            "alpha_pattern", "fan_in_fan_out")  # fmt: skip
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_SHOWN = 5


@dataclass
class Alignment:
    """What becomes of each tensor of the base.

    Attributes:
        jobs: Those that are merged.
        copied: Those that stay as the base has them, with the reason.
        heads: Of each model, the names that are kept apart.
        notes: What differs and how it was handled, in words.
    """

    jobs: list[Job] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    heads: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def align(base: Weights, parents: Mapping[str, Weights], recipe: Recipe) -> Alignment:
    """Match the tensors of all parents with those of the base.

    Args:
        base: Whose tensors are written.
        parents: What is merged, by key.
        recipe: Says what is refused and what is handled.

    Raises:
        WeightsError: Naming what differs, if the recipe refuses it.
    """
    result = Alignment()
    views = {key: _View(weights, recipe.tied) for key, weights in parents.items()}
    for key, view in views.items():
        heads = sorted(n for n in view.names if excluded(n, recipe.exclude))
        if heads:
            result.heads[key] = heads
    names = [n for n in base.names() if not excluded(n, recipe.exclude)]
    for name in base.names():
        if name not in names:
            result.copied[name] = "excluded"
    _missing(base, names, views, recipe, result)
    # Sums of the same numbers in the same order are equal to the bit.
    keys = tuple(sorted(views))
    types: dict[str, list[str]] = {}
    shapes: list[str] = []
    for name in names:
        if name in result.copied:
            continue
        source = base.source(name)
        if not source.dtype.is_floating_point:
            _integer(name, source, views, result)
            continue
        found: list[Source] = []
        for key in keys:
            other = views[key].source(name) or source
            if other.shape != source.shape:
                shapes.append(f"'{name}' has {other.shape} in {key}, not {source.shape}")
                if recipe.shapes == "skip":
                    result.copied[name] = "another shape"
                other = source
            elif not other.dtype.is_floating_point:
                raise WeightsError(
                    f"The tensor '{name}' is {_type(other)} in {key}, and {_type(source)} in the "
                    "base.",
                    next_step=f"Leave it out: exclude: ['{name}']",
                )
            elif other.dtype != source.dtype:
                types.setdefault(f"{_type(other)} in {key}, {_type(source)} in the base", [])
                types[f"{_type(other)} in {key}, {_type(source)} in the base"].append(name)
            found.append(other)
        if name not in result.copied:
            result.jobs.append(Job(name, source, tuple(found), keys, recipe.tied.get(name, name)))
    _handle(shapes, recipe.shapes, "shapes", result, "tensors have other shapes")
    differ = [f"{what}: {_some(names)}" for what, names in types.items()]
    policy = "error" if recipe.dtypes == "error" else "convert"
    _handle(differ, policy, "dtypes", result, "types differ")
    return result


class _View:
    """The tensors of one parent, tied ones under each of their names."""

    def __init__(self, weights: Weights, tied: Mapping[str, str]) -> None:
        self.weights = weights
        self.names = set(weights.names())
        self.tied = {**getattr(weights, "aliases", {}), **tied}
        self.tied |= {b: a for a, b in tied.items()}

    def source(self, name: str) -> Source | None:
        place = name if name in self.names else self.tied.get(name)
        return self.weights.source(place) if place in self.names else None


def excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of the patterns (`*` and `?`)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _missing(
    base: Weights,
    names: Sequence[str],
    views: Mapping[str, _View],
    recipe: Recipe,
    result: Alignment,
) -> None:
    lacks: list[str] = []
    beyond: list[str] = []
    known, tied = set(base.names()), _View(base, recipe.tied).tied
    for key, view in views.items():
        for name in names:
            if view.source(name) is None:
                lacks.append(f"'{name}' is missing in {key}")
                if recipe.missing == "skip":
                    result.copied[name] = f"missing in {key}"
        for name in sorted(n for n in view.names - known if not excluded(n, recipe.exclude)):
            place = tied.get(name)
            if place is None:
                beyond.append(f"'{name}' of {key} is not in the base")
            elif place in view.names and not _equal(view.source(name), view.source(place)):
                beyond.append(f"'{name}' of {key} is not '{place}', and in the base it is")
    _handle(lacks, recipe.missing, "missing", result, "tensors are missing")
    # One more name for a tied tensor is the commonest cause, and has a way out of its own.
    hint = " A tied tensor may have two names: see `tied:`." if beyond else ""
    _handle(beyond, recipe.missing, "missing", result, "tensors are left out", hint)


def _handle(
    faults: Sequence[str],
    policy: str,
    key: str,
    result: Alignment,
    what: str,
    hint: str = "",
) -> None:
    if not faults:
        return
    if policy == "error":
        choices = "convert" if key == "dtypes" else "base, or skip"
        raise WeightsError(
            f"The models do not fit: {'; '.join(faults[:_SHOWN])}"
            + (f" and {len(faults) - _SHOWN} more." if len(faults) > _SHOWN else "."),
            expected="the same tensors in the base and every model",
            next_step=f"Leave them out with `exclude:`, or say `{key}: {choices}`.{hint}",
        )
    result.notes.append(f"{what} ({key}: {policy}): " + "; ".join(faults))


def _integer(name: str, source: Source, views: Mapping[str, _View], result: Alignment) -> None:
    result.copied[name] = f"{_type(source)}: no arithmetic"
    for key, view in views.items():
        other = view.source(name)
        if other is not None and other.shape == source.shape and not _equal(other, source):
            result.notes.append(f"'{name}' ({_type(source)}) differs in {key}; the base's stays")


def _equal(first: Source | None, second: Source | None) -> bool:
    """Whether both hold the same numbers."""
    if first is None or second is None or first.shape != second.shape:
        return False
    return all(
        bool((first.flat(*span) == second.flat(*span)).all()) for span in spans(size_of(first))
    )


def _type(source: Source) -> str:
    return str(source.dtype).removeprefix("torch.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# Folders ----------------------------------------------------------------------------------


def check_folders(base: Path, parents: Mapping[str, Path], recipe: Recipe) -> list[str]:
    """Compare tokenizers and the settings of adapters.

    Returns:
        What differs and was handled.

    Raises:
        WeightsError: Naming the model, if the recipe refuses it.
    """
    notes = []
    mine, adapter = vocabulary(base), _adapter(base)
    for key, folder in parents.items():
        theirs = vocabulary(folder)
        if mine is not None and theirs is not None and mine != theirs:
            if recipe.tokenizers == "error":
                raise WeightsError(
                    f"The tokenizer of {key} has another vocabulary than the base's.",
                    where=str(folder),
                    expected="the same token at every row of the embedding",
                    next_step="Bring them to one vocabulary, or say `tokenizers: base`.",
                )
            notes.append(f"the tokenizer of {key} differs; the base's is taken")
        found = _adapter(folder)
        odd = [
            f for f in _ADAPTER if adapter is not None and adapter.get(f) != (found or {}).get(f)
        ]
        if odd:
            values = (found or {}).get(odd[0])
            raise WeightsError(
                f"The adapter of {key} has {odd[0]} {values!r}, the base's {(adapter or {}).get(odd[0])!r}: "
                "the same tensors do not mean the same.",
                where=str(folder / "adapter_config.json"),
                next_step="Merge each adapter into its network, and merge those.",
            )
    if adapter is not None:
        notes.append(
            "these are adapters: a mean of B and of A is not the mean of their products BA"
        )
    return notes


def _adapter(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {**_defaults(found.get("peft_type")), **found} if isinstance(found, dict) else None


def _defaults(kind: Any) -> dict[str, Any]:
    """What PEFT takes where a config, of an older version perhaps, says nothing."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind) if isinstance(kind, str) else None
    found = fields(known) if known is not None else ()
    made = {f.name: f.default_factory() for f in found if f.default_factory is not MISSING}
    return {f.name: f.default for f in found} | made


def vocabulary(folder: Path) -> str | None:
    """A digest of which token has which number; None without a tokenizer."""
    for name in _TOKENIZERS:
        path = folder / name
        if not path.is_file():
            continue
        data = path.read_bytes()
        if name == "tokenizer.json":
            try:
                found = json.loads(data)
                added = [(t["id"], t["content"]) for t in found.get("added_tokens", ())]
                model = found["model"]
                # A merge is 'h e' in older files, and ["h", "e"] in later ones.
                merges = model.get("merges")
                pairs = merges and [m.split(" ") if isinstance(m, str) else m for m in merges]
                kept = [model["vocab"], pairs, sorted(added)]
                data = json.dumps(kept, sort_keys=True).encode()
            except (ValueError, KeyError, TypeError):
                pass
        return hashlib.sha256(name.encode() + data).hexdigest()
    return None
