"""The model card of a run: README.md in the run folder."""

from __future__ import annotations

from typing import Any

from galenic.core.errors import RunError
from galenic.core.files import atomic_write
from galenic.core.run import Run


def write_card(run: Run) -> None:
    """Write `README.md`: what it is, on whom it was measured, how well, and its limits."""
    provenance = run.provenance
    data, weights = provenance.get("data") or {}, provenance.get("weights") or {}
    name = provenance.get("recipe", "run")
    try:
        scores = run.read_json("metrics.json")
    except RunError:
        return
    about = provenance.get("about") or {}
    said = [about.get("summary"), f"Method: {about['paper']}." if about.get("paper") else ""]
    lines = [
        "---",
        "library_name: galenic",
        f"base_model: {weights.get('backbone', 'unknown')}",
        f"tags: [galenic, {name}, biomedical]",
        "---",
        "",
        f"# {provenance.get('title') or name} on {data.get('title') or data.get('name', 'a cohort')}",
        "",
        *([" ".join(filter(None, said)), ""] if any(said) else []),
        "## Intended use",
        "",
        "Research. It is no medical device, and nobody has approved it for care.",
        "",
        "## Data",
        "",
        f"{data.get('n', '?')} samples of {data.get('patients', '?')} patients "
        f"(or groups), {_label(scores, data.get('captions'))}.",
        f"Licence of the data: {data.get('license') or 'not stated'}.",
        f"Fingerprint {data.get('fingerprint', 'unknown')}.",
        "",
        "## Results on test patients",
        "",
        "| metric | value | interval |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {metric.replace('_', ' ')} | {_number(entry['value'])} "
        f"| {_number(entry['low'])} to {_number(entry['high'])} |"
        for metric, entry in scores["test"].items()
    ]
    lines += [
        "",
        "Intervals are bootstraps over patients. The test part was looked at once, by this run.",
        "",
        "## Limits",
        "",
        "Measured on one cohort and one split. Another hospital, device or time will differ.",
        "",
        "## How to get it again",
        "",
        "`galenic run " + name + "` with `config.yaml`; versions stand in `provenance.json`.",
        "",
    ]
    atomic_write(run.path / "README.md", "\n".join(lines))


def _label(scores: dict[str, Any], captions: str | None) -> str:
    if scores["kind"] == "pretraining":
        return f"captions from '{captions}'" if captions else "no label was used"
    classes = f" with {len(scores['classes'])} classes" if scores["classes"] else ""
    return f"{scores['kind']} label{classes}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
