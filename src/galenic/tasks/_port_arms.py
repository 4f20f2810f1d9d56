"""The arms of a port: which base, which patch, whose head; what several need is made once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from galenic import tuners
from galenic.core.errors import ConfigError
from galenic.core.files import atomic_write
from galenic.core.fingerprint import fingerprint_bytes
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.data.cohort import Cohort
from galenic.evaluation.metrics import greater_is_better
from galenic.language.masked import open_head
from galenic.merging.patches import Patch, Probe, judged, recovery
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.models.delta import Delta, Dense, Entry, LowRank, Sparse
from galenic.models.trained import TENSORS
from galenic.pipeline.config import DEFAULT_BACKBONES, Columns, InputConfig
from galenic.pipeline.inputs import Array, Inputs
from galenic.pipeline.opening import open_inputs
from galenic.tasks import classify
from galenic.tasks._side import side_run
from galenic.tasks._words import require_text, train_words

if TYPE_CHECKING:
    from galenic.tasks.port import Config

Base = Literal["old", "new"]
Arm = Literal[
    "old", "old_patched", "new", "ported", "retrained", "new_head", "random_patch", "other_patch"
]
# The patch of another task, trained like an arm; not one itself.
OTHER = "other"
# Arms that are trained: on which base, and whether more than the head trains.
TRAINED: dict[str, tuple[Base, bool]] = {
    "old": ("old", False),
    "old_patched": ("old", True),
    "new_head": ("new", False),
    "retrained": ("new", True),
    OTHER: ("old", True),
}
# Arms on the new base that are not: whose head they carry.
CARRIED = {
    "new": "old",
    "ported": "old_patched",
    "random_patch": "old_patched",
    "other_patch": "old_patched",
}
FIVE = ("old", "old_patched", "new", "ported", "retrained")


class Arms:
    """Jobs by name of arm.

    Args:
        config: Of the task.
        run: Whose folder holds the arms.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self._done: dict[str, classify.Job] = {}
        self._evolved: Path | None = None

    def job(self, arm: str, run: Run, kind: type[classify.Job] = classify.Job) -> classify.Job:
        """One arm, not trained yet; what it carries is trained before."""
        config, carried = self._settings(arm), arm in CARRIED
        base, tuned = TRAINED.get(arm, ("new", False))
        patch = self._patch(arm) if carried else None
        head = self._head(CARRIED[arm]) if carried else None
        if not tuned:
            config = config.model_copy(update={"tuner": {"method": "none"}})
        # Every arm begins with the same draws, whatever was trained before it.
        seed_everything(config.seed)
        opener = partial(self._open, base=base, patch=patch)
        return kind(config, run, opener=opener, head=None if head is None else lambda _: head)

    def done(self, arm: str) -> classify.Job:
        """One arm, carried out in a folder of its own; it is taken up where it was before."""
        if arm not in self._done:
            side = self._side(arm)
            job = self._done[arm] = self.job(arm, side)
            if side.state == "finished":
                classify.restored(job)
            else:
                job.train()
                job.evaluate()
                job.save()
                side.finish()
        return self._done[arm]

    def report(self, job: classify.Job) -> None:
        """Write `recovery.json` and `portability.json` beside what `job`, the run's own arm, wrote."""
        config = self.config
        self._done[config.predict] = job
        wanted = [config.predict, *config.also]
        if config.gate.min_gain is not None:
            wanted += ["new", "ported"]
        scores: dict[str, Any] = {
            arm: self.done(arm).run.read_json("metrics.json") for arm in dict.fromkeys(wanted)
        }
        metric = scores[config.predict]["main"]
        values = {arm: found["test"][metric]["value"] for arm, found in scores.items()}
        document: dict[str, Any] = {"metric": metric, "arms": values}
        five = {arm: values[arm] for arm in FIVE if values.get(arm) is not None}
        if len(five) == len(FIVE):
            document["recovery"] = recovery(**five, greater_is_better=greater_is_better(metric))
        self.run.write_json("recovery.json", document)
        if "old_patched" in self._done and self._evolved is not None:
            gain = gain_of(scores, metric)
            self._tell_portability(self._done["old_patched"], self._evolved, gain)

    def _tell_portability(self, donor: classify.Job, evolved: Path, gain: float | None) -> None:
        """Write `portability.json`, with the word of the gate."""
        gate = self.config.gate
        # A base with random weights is drawn again, as it was for the arms.
        seed_everything(self.config.seed)
        old = open_backbone(donor.backbone.spec).network
        new = copy.deepcopy(old)
        new.load_state_dict(load_file(evolved))
        batches = _texts(donor, self.config.probe)
        known = _patch_of(donor).check(
            new, old, gate=gate.before, probe=Probe(old, batches) if batches else None
        )
        self.run.write_json("portability.json", judged(replace(known, gain=gain), gate))

    # Parts ------------------------------------------------------------------------------

    def _settings(self, arm: str) -> Config:
        change: dict[str, Any] = {"predict": arm, "also": []}
        if arm == OTHER:
            other = self.config.other
            if other is None:
                raise ConfigError(
                    "There is no other task whose patch could be ported.",
                    where="predict=other_patch",
                    next_step="other.data=MANIFEST other.columns.label=COLUMN",
                )
            change = {
                "predict": "old_patched",
                "also": [],
                "data": other.data,
                "columns": other.columns,
            }
        return self.config.model_copy(update=change)

    def _side(self, arm: str) -> Run:
        made = self.run.provenance
        return side_run(
            self.run.path / "arms" / arm,
            self._settings(arm),
            recipe=made["recipe"],
            task=made["task"],
            seed=self.config.seed,
        )

    def _head(self, donor: str) -> nn.Module:
        return copy.deepcopy(self.done(donor).objective.head).cpu().requires_grad_(False)

    def _patch(self, arm: str) -> Patch | None:
        if arm == "new":
            return None
        patch = _patch_of(self.done(OTHER if arm == "other_patch" else "old_patched"))
        return random_like(patch, self.config.seed) if arm == "random_patch" else patch

    def _open(
        self,
        cohort: Cohort,
        train: Array,
        run: Run,
        *,
        backbone: str,
        pool: Any,
        config: InputConfig,
        base: Base,
        patch: Patch | None,
    ) -> tuple[Backbone, Inputs]:
        """As :func:`galenic.pipeline.opening.open_inputs`, on the old base or the new one."""
        column = require_text(cohort, "A base that goes on reading")
        spec = DEFAULT_BACKBONES["text"] if backbone == "auto" else backbone

        def open_network(spec: str, **options: Any) -> Backbone:
            found = open_backbone(spec, **options)
            if base == "old":
                return found
            self._evolve(found, cohort, train, column)
            if patch is not None:
                patch.apply(found.network)
            # Opened anew: what is kept of a frozen network goes by its fingerprint.
            opened = Opened(found.network, found.inputs, found.tokenizer, found.pool)
            return Backbone(opened, spec, "auto")

        return open_inputs(
            cohort, train, run, backbone=spec, pool=pool, config=config, open_network=open_network
        )

    def _evolve(self, opened: Backbone, cohort: Cohort, train: Array, column: str) -> None:
        """Make the new base of the old one, or take up the one that was made of the same."""
        evolve, seed = self.config.evolve, self.config.seed
        rows = train.tolist()
        if evolve.data is not None:
            inputs = None if evolve.column is None else [evolve.column]
            cohort = Cohort.open(evolve.data, **Columns(inputs=inputs).model_dump())
            column, rows = require_text(cohort, "A base that goes on reading"), range(len(cohort))
        texts = [str(cohort.read(row)[column]) for row in rows]
        settings = evolve.model_dump_json(exclude={"data", "column"})
        key = fingerprint_bytes(
            opened.fingerprint, settings, f"{seed} {opened.inputs.max_length}", *texts
        )
        folder = Path(self.config.cache) if self.config.cache else self.run.path / "work"
        self._evolved = folder / f"evolved-{key[:16]}.safetensors"
        if self._evolved.is_file():
            opened.network.load_state_dict(load_file(self._evolved))
            return
        tell(f"The base goes on reading: {len(texts)} texts.")
        words = partial(train_words, texts=texts, config=evolve, run=self.run, folder="evolve")
        if evolve.tuner is None:
            words(opened, open_head(opened), seed=seed)
        else:
            tuner = tuners.parse_tuner(evolve.tuner)
            reading = copy.deepcopy(opened)
            words(reading, open_head(reading), seed=seed, tuner=tuner)
            with TemporaryDirectory() as place:
                tuners.save(reading, tuner, Path(place) / "adapter")
                patch = learnt(Path(place), reading, lambda: opened.network)
            patch.apply(opened.network)
        state = {n: t.detach().cpu().clone() for n, t in opened.network.state_dict().items()}
        atomic_write(self._evolved, save(state))


def _texts(donor: classify.Job, count: int) -> list[dict[str, Tensor]]:
    """Batches of the first `count` texts of the validation rows; of the training rows without any."""
    rows = (donor.splits.val if len(donor.splits.val) else donor.splits.train)[:count]
    size = donor.config.schedule.eval_batch_size
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [donor.collate([donor.inputs[int(row)] for row in part]) for part in parts]


def _patch_of(donor: classify.Job) -> Patch:
    if not (donor.run.path / "adapter").exists():
        # The run's own arm is scored before it is saved.
        donor.save()

    def base() -> nn.Module:
        # One with random weights is drawn again, as it was for the arms.
        seed_everything(donor.config.seed)
        return open_backbone(donor.backbone.spec).network

    return learnt(donor.run.path, donor.backbone, base)


def learnt(folder: Path, tuned: Backbone, base: Callable[[], nn.Module]) -> Patch:
    """What a training added to a network.

    Args:
        folder: In its `adapter/`, what `tuners.save` wrote of it.
        tuned: The trained network.
        base: Opens it as it was before; asked where that is no difference.

    Raises:
        WeightsError: If it is no additive difference, with the reason.
    """
    if (folder / TENSORS).is_file():
        return Patch.from_checkpoints(base(), tuned.network)
    return Patch.open(folder / "adapter")


def gain_of(scores: Mapping[str, Any], metric: str) -> float | None:
    """What the ported patch adds to the bare new base on validation rows; positive is better.

    Args:
        scores: `metrics.json` by arm.
        metric: Its name there.

    Returns:
        None where one of the two arms was not scored, or the metric is not defined on its rows.
    """
    if not {"new", "ported"} <= scores.keys():
        return None
    ported, new = (scores[arm]["validation"][metric]["value"] for arm in ("ported", "new"))
    if ported is None or new is None:
        return None
    gain: float = ported - new if greater_is_better(metric) else new - ported
    return gain


def random_like(patch: Patch, seed: int) -> Patch:
    """A patch of random values with the rank, the places and the norm of each difference."""
    draw = torch.Generator().manual_seed(seed)

    def like(values: Tensor) -> Tensor:
        drawn = torch.randn(values.shape, generator=draw)
        return (drawn * (values.float().norm() / drawn.norm())).to(values.dtype)

    def noise(entry: Entry) -> Entry:
        if isinstance(entry, Dense):
            return Dense(like(entry.values))
        if isinstance(entry, Sparse):
            return replace(entry, values=like(entry.values))
        b, a = (torch.randn(part.shape, generator=draw) for part in (entry.b, entry.a))
        drawn = LowRank(b, a, 1.0, entry.shape)
        scale = (entry.dense().norm() / drawn.dense().norm()).item()
        return LowRank(b, a, scale, entry.shape)

    delta = patch.delta
    return Patch(Delta({n: noise(e) for n, e in delta.entries.items()}, delta.absolute, delta.base))
