"""What is looked at before a patch is ported: names, configs, vocabularies, and the base's drift."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from galenic.core.errors import ConfigError, WeightsError, nearest
from galenic.merging.patches.activations import Probe
from galenic.merging.patches.bases import Base, Facts, facts_of, fingerprint_of, open_base
from galenic.merging.patches.fitting import Fitted, Naming, fit
from galenic.merging.patches.gate import Gate, judged
from galenic.merging.patches.portability import Portability, drifts, far, overall
from galenic.merging.sources import Weights

if TYPE_CHECKING:
    from galenic.merging.patches.patch import Patch

# What would be refused: a base that is the old one; a target that the base lacks; configs that
# differ; a patch on the rows of another vocabulary. Such targets and rows are then left out.
Allowed = Literal["same", "missing", "config", "vocabulary"]


def allowed(words: Sequence[str]) -> list[Allowed]:
    """Words of a command line as what is allowed.

    Raises:
        ConfigError: If one is none of them; names the nearest.
    """
    known = get_args(Allowed)
    for word in words:
        if word not in known:
            raise ConfigError(
                f"Nothing is called '{word}'. {nearest(word, known)}".strip(),
                where="--allow",
                expected=", ".join(known),
            )
    return [word for word in known if word in words]


def examine(
    patch: Patch,
    new: Base,
    old: Base | None,
    allow: Collection[Allowed],
    gate: Gate | None = None,
    probe: Probe | None = None,
) -> tuple[Weights, Fitted, Portability]:
    """The base that `patch` goes to, the patch by its names, and what is known of both.

    Raises:
        WeightsError: If the patch does not fit, with the reason and the names.
        ConfigError: If the gate asks for what is not measured.
    """
    _require_measured(gate, old, probe)
    weights = open_base(new, "the new base")
    facts = facts_of(new, weights)
    _require_bare(patch, facts, weights)
    warnings = _configs(patch, facts, "config" in allow)
    unwanted, more = _vocabularies(patch, facts, "vocabulary" in allow)
    fitted = fit(
        patch.delta, weights, patch.unresolved, allow_missing="missing" in allow, unwanted=unwanted
    )
    mark = fingerprint_of(weights)
    earlier = None if old is None else open_base(old, "the old base")
    marks = {patch.delta.base, "" if earlier is None else fingerprint_of(earlier)}
    if mark in marks and "same" not in allow:
        raise WeightsError(
            f"There is nothing to port: {weights.label} is the base that the patch was made on.",
            expected="a later version of it",
            next_step="To merge the patch into its own base: --allow same",
        )
    rows = [] if earlier is None else drifts(fitted.entries, earlier, weights)
    other = earlier is not None and _is_other(patch, earlier)
    if other:
        more.append("The old base that was named is not the one that the patch was made on.")
    if earlier is None:
        more.append("How far the base has moved is unknown: the old one was not named.")
    layers = [name for name, entry in fitted.entries.items() if len(entry.shape) > 1]
    known = Portability(
        patch=patch.fingerprint,
        old=patch.delta.base,
        new=mark,
        added=len(fitted.entries),
        copied=tuple(fitted.copied),
        left_out=fitted.left_out,
        drift=overall(rows),
        tensors=tuple(rows),
        warnings=(*warnings, *more, *far(rows)),
        activations=() if probe is None else probe.drift(layers, new),
        other_base=other,
    )
    return weights, fitted, judged(known, gate)


def _is_other(patch: Patch, old: Weights) -> bool:
    """Whether `old` has other weights in the place of the differences than the patch was made on."""
    if not patch.facts.changed:
        return False
    naming = Naming.between(patch.delta.entries, old.names())
    names = {name: naming(name) for name in patch.delta.entries}
    return fingerprint_of(old, names) != patch.facts.changed


def _require_measured(gate: Gate | None, old: Base | None, probe: Probe | None) -> None:
    """Refuse a gate that asks for what a check cannot know."""
    if gate is None:
        return
    missing = {
        "max_drift": "" if old is not None else "the old base (--from)",
        "min_cosine": "" if probe is not None else "text that both bases read (--text)",
        "min_gain": "scores: a chain with an evaluation, or the task `port`",
    }
    for key, needed in missing.items():
        if getattr(gate, key) is not None and needed:
            raise ConfigError(f"{key} asks for what is not measured.", where=key, expected=needed)


def _require_bare(patch: Patch, facts: Facts, weights: Weights) -> None:
    """Refuse a base that holds the patch already, or that is quantised."""
    if patch.fingerprint in facts.patches:
        raise WeightsError(
            f"{weights.label} holds this patch already: it would be added twice.",
            expected="a base as it was released",
        )
    if facts.config.get("quantization_config"):
        raise WeightsError(
            f"{weights.label} is quantised: what is merged into it is lost to rounding.",
            expected="the base in float32, float16 or bfloat16",
            next_step="Keep the adapter apart: peft.PeftModel.from_pretrained(base, adapter).",
        )


def _configs(patch: Patch, facts: Facts, allowed: bool) -> list[str]:
    odd = [f"{n}: {a!r} then, {b!r} now" for n, (a, b) in patch.facts.differs(facts).items()]
    if odd and not allowed:
        raise WeightsError(
            f"The new base is built otherwise: {'; '.join(odd)}.",
            where="config.json",
            expected="the config of the base that the patch was made on",
            next_step="If these fields change nothing that a weight means: --allow config",
        )
    return [f"The config differs: {line}." for line in odd]


def _vocabularies(patch: Patch, facts: Facts, allowed: bool) -> tuple[dict[str, str], list[str]]:
    """Targets to leave out with the reason, and warnings."""
    before, now = patch.facts.vocabulary, facts.vocabulary
    if not before or not now or before == now:
        return {}, []
    size = patch.facts.config.get("vocab_size")
    rows = [n for n, entry in patch.delta.entries.items() if entry.shape[0] == size]
    if rows and not allowed:
        raise WeightsError(
            f"The new base has another vocabulary, and the patch changes its rows: {rows[0]}.",
            expected="the same token at every row",
            next_step="To leave these rows out: --allow vocabulary",
        )
    told = "The tokenizer differs: the patch may load and be of no use."
    return dict.fromkeys(rows, "rows of another vocabulary"), [told]
