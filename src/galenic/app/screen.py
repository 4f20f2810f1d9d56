"""What the command line prints: tables where a person reads, plain lines where a program does."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from galenic.core.errors import GalenicError

if TYPE_CHECKING:
    from galenic.app.keys import Key
    from galenic.core.recipes import Recipe
    from galenic.core.run import Run
    from galenic.data.events.ingest import Summary
    from galenic.merging.patches import Portability

# Into a pipe or a file there is no width to fit; 80 would cut what a person greps for.
PIPE_WIDTH = 160
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
# Findings of one kind that are printed, such as files that are not there.
_ALIKE = 10


def console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False)


def error(fault: GalenicError) -> None:
    """Print a fault to stderr: a panel on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        sys.stderr.write(f"error: {fault.message}\n")
        return
    from rich.panel import Panel

    body = Text(fault.found)
    for name, text in (
        ("where", fault.where),
        ("expected", fault.expected),
        ("next", fault.next_step),
    ):
        if text:
            body.append(f"\n{name}: ", style="bold")
            body.append(text)
    title = Text(type(fault).__name__.removesuffix("Error") or "Galenic", style="bold red")
    console(stderr=True).print(Panel(body, title=title, title_align="left", border_style="red"))


def recipes(found: Sequence[Recipe]) -> None:
    """Print the table of recipes."""
    table = _table("recipe", "family", "works on", "what it does", "paper")
    table.columns[0].style = "bold"
    for column in table.columns[:2]:
        column.no_wrap = True
    for recipe in found:
        about = recipe.about
        table.add_row(
            recipe.recipe,
            about.family,
            " ".join(about.modalities),
            about.summary or recipe.title,
            about.paper,
        )
    console().print(table)


def keys(found: Sequence[Key]) -> None:
    """Print the keys of a config."""
    table = _table("key", "type", "value", "default", "meaning")
    for key in found:
        value = Text(key.value, style="bold" if key.changed else "")
        table.add_row(Text(key.name), Text(key.type), value, Text(key.default), Text(key.doc))
    out = console()
    out.print("\nKeys; override any with KEY=VALUE:")
    out.print(table)


def metrics(made: Run) -> None:
    """Print the test metrics of a run with their intervals."""
    document = made.read_json("metrics.json")
    table = _table("metric", "test", "interval")
    for name, values in document["test"].items():
        style = "bold" if name == document.get("main") else ""
        table.add_row(Text(name, style=style), number(values.get("value")), interval(values))
    console().print(table)


def leaderboard(board: Mapping[str, Any]) -> None:
    """Print the leaderboard of a comparison."""
    metric = str(board["metric"])
    table = _table("", "recipe", metric, "interval", "trainable", "memory", "time")
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    for place, row in enumerate(board["rows"], start=1):
        values, cost = row["metrics"][metric], row["cost"]
        table.add_row(
            str(place),
            Text(row["recipe"], style="bold" if row.get("pareto") else ""),
            number(values.get("value")),
            interval(values),
            share(cost.get("trainable_share")),
            f"{number(cost.get('peak_memory_mb'), '.0f')} MB",
            f"{number(cost.get('seconds'), '.1f')} s",
        )
    out = console()
    out.print(table)
    for difference in board.get("differences", []):
        out.print(
            Text(
                f"{difference['a']} - {difference['b']}: {number(difference.get('value'), '+.3f')}"
                f" {interval(difference, '+.3f')}, p = {number(difference.get('p'))}"
            )
        )
    for name, message in board.get("failed", {}).items():
        out.print(Text(f"{name} failed: {message}", style="red"))


def points(found: Mapping[str, Any], key: str) -> None:
    """Print figures: a row a recipe, a column a number of patients or a site.

    Args:
        found: What `curve.json` or `sites.json` holds.
        key: `shots` or `site`.
    """
    rows: dict[str, dict[str, str]] = {}
    for point in found["points"]:
        plain = key != "shots" or point[key] == "all"
        name = str(point[key]) if plain else f"{point[key]} {found['of']}"
        rows.setdefault(point["recipe"], {})[name] = _figure(point)
    for row in found.get("summary", ()):
        rows[row["recipe"]] |= {name: _figure(row[name]) for name in ("mean", "worst")}
    names = list(next(iter(rows.values())))
    table = _table("recipe", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for recipe, cells in rows.items():
        table.add_row(Text(recipe, style="bold"), *(cells[name] for name in names))
    out = console()
    out.print(f"{found['metric']} on test patients, mean [95 % interval] over seeds")
    out.print(table)


def _figure(point: Mapping[str, Any]) -> str:
    return f"{number(point['value'])} {interval(point)}"


def findings(source: str, report: Any) -> None:
    """Print what `galenic check` found."""
    out = console()
    for name, value in dict(report.facts).items():
        out.print(Text.assemble((f"{name}: ", "bold"), _short(value)))
    shown: Counter[str] = Counter()
    for finding in report.findings:
        shown[finding.code] += 1
        if shown[finding.code] > _ALIKE:
            continue
        rows = list(finding.rows or [])
        where = f"  rows {_some(rows)}" if rows else ""
        level = (f"{finding.level:8}", _STYLES.get(finding.level, ""))
        out.print(Text.assemble(level, (f"{finding.code}  ", "bold"), finding.message, where))
    for code, count in shown.items():
        if count > _ALIKE:
            out.print(Text(f"{count - _ALIKE} more of '{code}'; --json has them all."))
    counts = {level: sum(f.level == level for f in report.findings) for level in _STYLES}
    summary = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())
    out.print(Text(f"{source}: {summary}"))


def merged(document: Mapping[str, Any]) -> None:
    """Print what a merge did."""
    whole = document["whole"]
    table = _table("model", "kept", "norm of its change", "cosine with the base")
    for key in document["models"]:
        table.add_row(
            Text(key, style="bold"),
            share(whole["kept"][key]),
            number(whole["norm"][key], ".4g"),
            number(whole["lineage"][key]),
        )
    out = console()
    out.print(table)
    for pair, cosine in whole["cosine"].items():
        out.print(Text(f"cosine of the changes {pair}: {number(cosine)}"))
    for level in ("warnings", "notes"):
        for line in document[level]:
            out.print(Text(f"{level[:-1]}: {line}", style="yellow" if level == "warnings" else ""))


def swept(document: Mapping[str, Any]) -> None:
    """Print what a merge of runs gave on test rows."""
    table = _table("task", "metric", "its own network", "merged", "normalised")
    for name, row in document["test"]["tasks"].items():
        figures = (number(row[key]) for key in ("own", "value", "normalised"))
        table.add_row(Text(name, style="bold"), row["metric"], *figures)
    out = console()
    out.print(table)
    mean = document["test"]["mean"]
    out.print(Text(f"mean of the normalised: {number(mean['value'])} {interval(mean)}"))
    out.print(Text(f"merged: {', '.join(document['merged'])}"))
    for key, value in document["chosen"].items():
        out.print(Text(f"{key}: {value:g}"))


def ported(known: Portability) -> None:
    """Print what is known of a port: the matrices that moved most, and what needs a look."""
    out = console()
    table = _table("tensor", "drift", "size of the patch", "cosine", "share")
    for row in sorted(known.tensors, key=lambda row: -row.drift)[:8]:
        table.add_row(
            row.name, number(row.drift), number(row.size), number(row.cosine), share(row.share)
        )
    if known.tensors:
        out.print(table)
        out.print(Text(f"drift of all {len(known.tensors)} matrices: {number(known.drift)}"))
    _activations(known)
    out.print(Text(f"tensors with a difference: {known.added}"))
    for name in known.copied:
        out.print(Text(f"copied: {name}"))
    for name, why in known.left_out.items():
        out.print(Text(f"left out: {name} ({why})", style="yellow"))
    for line in known.warnings:
        out.print(Text(f"warning: {line}", style="yellow"))
    for line in known.reasons:
        out.print(Text(f"refused: {line}", style="red"))


def _activations(known: Portability) -> None:
    """Print the layers whose inputs moved most, where a text was read."""
    rows = sorted(known.activations, key=lambda row: -(row.drift or 0.0))
    if not rows:
        return
    table = _table("layer", "drift of its inputs", "cosine")
    for row in rows[:8]:
        table.add_row(row.name, number(row.drift), number(row.cosine))
    console().print(table)


def read_events(made: Summary) -> None:
    """Print what `galenic events read` read, and how often it left something out, by the reason."""
    out = console()
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(made.sources.items()))
    out.print(Text(f"{made.events:,} events of {made.patients:,} patients: {kinds}"))
    reasons: Counter[tuple[str, bool]] = Counter()
    for row in made.rejected.iter_rows(named=True):
        # Details, such as the units of one code, are in the report.
        reasons[row["reason"].partition(":")[0], row["kept"]] += row["count"]
    table = _table("count", "", "reason")
    for (reason, kept), count in reasons.most_common():
        table.add_row(f"{count:,}", "kept" if kept else "left out", Text(reason))
    if reasons:
        out.print(table)


def labelled(task: str, counts: Mapping[str, Any]) -> None:
    """Print how many samples a task has, and why others are none."""
    out = console()
    out.print(Text(task))
    positive = share(counts["positive"] / counts["samples"]) if counts["samples"] else "-"
    out.print(Text(f"{counts['samples']:,} samples, {counts['positive']:,} positive ({positive})"))
    for name, count in counts["excluded"].items():
        out.print(Text(f"excluded, {name}: {count:,}"))


def diagnosis(found: Mapping[str, Any]) -> None:
    """Print what `galenic doctor` found."""
    out = console()
    for section, values in found.items():
        out.print(Text(section, style="bold"))
        for name, value in values.items():
            good = not str(value).startswith("missing")
            out.print(Text(f"  {name:28} {value}", style="" if good else "yellow"))


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or value != value else format(value, form)


def interval(values: Mapping[str, Any], form: str = ".3f") -> str:
    """`[low, high]` of an estimate."""
    return f"[{number(values.get('low'), form)}, {number(values.get('high'), form)}]"


def share(value: float | None) -> str:
    """A share as a percentage, with enough digits for a small one."""
    if value is None:
        return "-"
    return f"{100 * value:.3g} %"


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _some(rows: Sequence[Any], count: int = 8) -> str:
    shown = ", ".join(str(row) for row in rows[:count])
    return shown + (f", ... ({len(rows)} in all)" if len(rows) > count else "")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return _some(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
