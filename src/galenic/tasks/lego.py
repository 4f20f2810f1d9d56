"""Several modalities: a block for each, merged without training, fused with little.

Hemker et al., "Multimodal Lego", ICLR 2025, arXiv 2405.19950.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from galenic import tuners
from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError, DataError
from galenic.core.meters import count_parameters
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.data.cohort import Cohort
from galenic.data.tabular import TabularEncoder
from galenic.models.backbone import Backbone
from galenic.models.lego import LegoBlock, LegoFuse, LegoMerge, store
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.config import InputConfig
from galenic.pipeline.inputs import Inputs
from galenic.pipeline.lego import Modality, encodings, open_modalities, split_inputs
from galenic.pipeline.paired import Concatenated, Fed, PairedCollate, PairedRows
from galenic.pipeline.tokens import TableEncoder, TokenEncoder
from galenic.tasks import _lego_arms, _lego_origins, _losses, classify
from galenic.tasks._job import carry_out, reopened
from galenic.tasks._lego_config import ARMS, Config
from galenic.tasks._predict_results import Trained

Array = np.ndarray[Any, np.dtype[Any]]
MERGED, FUSED, HEAD = "lego", "fused", "head.safetensors"


def run(config: Config, run: Run) -> None:
    """Open every input, train its block, merge, fuse where asked, predict and score.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, LegoJob)


def load(run: Run) -> tuple[LegoJob, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data."""
    job = reopened(run, Config, LegoJob)
    job.restore()
    return job, job.objective.eval()


def tunable(modality: Modality) -> bool:
    """Whether its network has any weights."""
    return any(True for _ in modality.backbone.parameters())


def encoder_of(modality: Modality, tuner: BaseConfig) -> TokenEncoder:
    """The encoder of a modality, with the tuner in it where there is anything to tune."""
    if tunable(modality):
        tuners.attach(modality.backbone, tuner)
        return TokenEncoder(modality.backbone)
    encoder = TableEncoder if modality.kind == "table" else TokenEncoder
    return encoder(modality.backbone)


class LegoJob(classify.Job):
    """One run over several inputs, step by step.

    Attributes:
        modalities: What is read.
        origins: By input, the run that trained its block, where that was not this one.
        merged: All blocks, merged.
        fused: All blocks, fused; None before that or where none is asked for.
    """

    modalities: list[Modality]
    config: Config

    def __init__(self, config: Config, run: Run) -> None:
        self.origins: dict[str, Trained] = {}
        self.fused: LegoFuse | None = None
        self.concat: Concatenated | None = None
        super().__init__(config, run, opener=self._open)
        used = np.concatenate([self.splits.train, self.splits.val, self.splits.test])
        for modality in self.modalities:
            if modality.frozen and modality.kind != "table":
                modality.compute(used, self._cache())

    # Building ---------------------------------------------------------------------------

    def _open(
        self,
        cohort: Cohort,
        train: Array,
        run: Run,
        *,
        backbone: str,
        pool: Any,
        config: InputConfig,
    ) -> tuple[Backbone, Inputs]:
        """All networks; the first stands for them where a job has one."""
        settings, splits = self.config, self.splits
        self.modalities = open_modalities(
            cohort,
            train,
            run,
            backbone=backbone,
            backbones=settings.backbones,
            tables=settings.tables,
            pool=pool,
            config=config,
            configs=settings.inputs,
            used=np.concatenate([splits.train, splits.val, splits.test]),
            seed=settings.seed,
            encoders=self._as_trained(cohort),
        )
        if len(self.modalities) == 1:
            tell(f"One input, '{self.modalities[0].name}': there is nothing to merge it with.")
        return self.modalities[0].backbone, self.modalities[0].inputs

    def _as_trained(self, cohort: Cohort) -> dict[str, TabularEncoder]:
        """How the runs that trained blocks of tables encoded them; all of them are checked."""
        for name in split_inputs(cohort, self.config.tables):
            place = self.config.trained_by(name)
            # A run without blocks, or without this one, is refused where the block is read.
            if place is not None and ((other := Run.open(place)).path / MERGED).is_dir():
                self.origins[name] = Trained.open(other)
        held = np.concatenate([self.splits.val, self.splits.test])
        _lego_origins.require_unseen(self.origins, cohort, held)
        _lego_origins.require_alike(self.origins, self.label)
        known = {name: encodings(origin.run) for name, origin in self.origins.items()}
        return {name: tables[name] for name, tables in known.items() if name in tables}

    @property
    def target_unit(self) -> tuple[float, float]:
        """That of the blocks which were trained elsewhere, where there are any."""
        origin = next(iter(self.origins.values()), None)
        return super().target_unit if origin is None else origin.unit

    def _objective(self) -> Classifier:
        self.centre, self.spread = self.target_unit
        self._check_words()
        self._require_complete()
        self.hooks_of: dict[str, tuners.Hooks] = {}
        encoders = {modality.name: self._encoder(modality) for modality in self.modalities}
        if self.config.predict == "concat":
            self.concat = Concatenated(encoders, self.label.outputs)
            return self.classifier(self.concat, self.modalities)
        blocks = {name: self._block_of(name, encoder) for name, encoder in encoders.items()}
        merge = self.config.merge
        self.merged = LegoMerge(blocks, merge.latents, merge.weights, merge.head)
        return self.classifier(self.merged, self.modalities)

    def _check_words(self) -> None:
        names = [modality.name for modality in self.modalities]
        config = self.config
        if taken := set(names) & {"auto", *ARMS}:
            raise ConfigError(
                f"An input cannot be called '{taken.pop()}': a prediction is.",
                next_step="Give the column another name.",
            )
        if config.predict not in ("auto", *ARMS, *names):
            raise ConfigError(
                f"Nothing here is called '{config.predict}'.",
                where="predict",
                expected=", ".join(("auto", *ARMS, *names)),
            )
        for key in config.trained if isinstance(config.trained, dict) else ():
            if key not in names:
                raise ConfigError(
                    f"There is no input '{key}'.", where="trained", expected=", ".join(names)
                )

    def _require_complete(self) -> None:
        """One input alone predicts only where every sample to be scored has it."""
        predicts = self.config.predict
        for modality in self.modalities:
            if predicts not in ("best", modality.name):
                continue
            for part in _lego_arms.PARTS:
                rows = getattr(self.splits, part)
                if missing := len(rows) - len(modality.having(rows)):
                    raise DataError(
                        f"{missing} samples of {part} lack '{modality.name}'.",
                        where=self.cohort.name,
                        next_step="predict=merged, or leave these samples out.",
                    )

    def _encoder(self, modality: Modality) -> TokenEncoder:
        encoder = encoder_of(modality, self.tuner)
        if tunable(modality):
            self.hooks_of[modality.name] = tuners.hooks(modality.backbone, self.tuner)
        return encoder

    def _block_of(self, name: str, encoder: TokenEncoder) -> LegoBlock:
        place = self.config.trained_by(name)
        if place is not None:
            block = store.load_block(place / MERGED, name, encoder)
            if block.outputs != self.label.outputs:
                raise ConfigError(
                    f"The block of '{name}' has {block.outputs} outputs, and the label needs "
                    f"{self.label.outputs}.",
                    where=f"trained.{name}",
                )
            return block
        options = self.config.block.model_dump()
        return LegoBlock(encoder, encoder.width, self.label.outputs, **options)

    def classifier(
        self, model: nn.Module, modalities: list[Modality], penalty: Any = None
    ) -> Classifier:
        return Classifier(
            Fed(model, [modality.name for modality in modalities]),
            nn.Identity(),
            cast("TargetKind", self.label.kind),  # require_seen refuses all others
            centre=self.centre,
            spread=self.spread,
            label_smoothing=self.config.head.label_smoothing,
            pos_weight=self.config.head.pos_weight,
            unlabelled_weight=self.config.head.unlabelled_weight,
            class_loss=_losses.build(self),
            penalty=penalty,
        )

    # Doing ------------------------------------------------------------------------------

    def train(self) -> None:
        """Every block alone on its own modality; then the fusion, if there is one."""
        schedule = self.config.schedule
        if self.concat is not None:
            self._fit(self.objective, self.modalities, self.splits.train, schedule, "concat")
            return
        for place, modality in enumerate(self.modalities):
            if self.config.trained_by(modality.name) is not None:
                continue
            hooks = self.hooks_of.get(modality.name, tuners.Hooks())
            block = self.merged.block(modality.name)
            objective = self.classifier(block, [modality], hooks.penalty)
            rows = modality.having(self.splits.train)
            for stage in hooks.begun(block.head):
                own = schedule.model_copy(update=dict(stage.schedule))
                folder = f"block-{place}-{stage.name}"
                self._fit(objective, [modality], rows, own, folder, hooks.after_step)
        if self.config.fuse.mode != "none":
            self._fuse()

    def _fuse(self) -> None:
        self._make_fused()
        assert self.fused is not None
        fuse = self.config.fuse
        counts = np.sum([m.present for m in self.modalities], axis=0)
        paired = self.splits.train[counts[self.splits.train] > 1]
        if len(self.modalities) == 1:
            paired = self.splits.train
        if not len(paired):
            raise DataError(
                "No training sample has two of the inputs: there is nothing to fuse on.",
                where=self.cohort.name,
                next_step="fuse.mode=none",
            )
        if fuse.paired < 1:
            rng = np.random.default_rng([self.config.seed, 2])
            count = max(1, round(fuse.paired * len(paired)))
            paired = np.sort(rng.choice(paired, count, replace=False))
        self.run.log({"event": "fuse", "paired": len(paired)})
        self._fit(self.objective, self.modalities, paired, fuse.schedule, "fuse")

    def _make_fused(self) -> None:
        """Copies of the blocks as they are now; the job's objective is the fused model."""
        fuse = self.config.fuse
        assert fuse.mode != "none"
        blocks = {name: self.merged.block(name) for name in self.merged.names}
        # A resumed run has drawn less by now, and begins with the same woven latent.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            head = self.config.merge.head
            self.fused = LegoFuse(blocks, fuse.mode, fuse.order, head, fuse.freeze)
        # Between the heads by the weights of the inputs.
        self.fused.head.load_state_dict(self.merged.head_state())
        self.objective = self.classifier(self.fused, self.modalities)

    def _fit(
        self,
        objective: Classifier,
        modalities: list[Modality],
        rows: Array,
        schedule: Schedule,
        folder: str,
        after_step: Any = None,
    ) -> None:
        held = self.rows_of(modalities, self.splits.val)
        self.run.log({"event": "part", "part": folder, "inputs": [m.name for m in modalities]})
        self.fit(
            objective,
            PairedRows(modalities, rows, self.training_targets, training=True),
            PairedRows(modalities, held, self.training_targets),
            schedule=schedule,
            collate=PairedCollate(modalities),
            folder=folder,
            after_step=after_step,
        )

    @staticmethod
    def rows_of(modalities: list[Modality], rows: Array) -> Array:
        """Those of `rows` that have one of the modalities."""
        return rows[np.any([m.present for m in modalities], axis=0)[rows]]

    # Telling ----------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Predict validation and test with every arm, and write every number."""
        arms = _lego_arms.arms(self)
        main = _lego_arms.chosen(self, arms)
        self.tell(main.logits, self.modalities[0].cohort)
        self.run.write_json("lego.json", _lego_arms.report(self, arms, main.name))
        self.run.write_table("arms.parquet", _lego_arms.table(self, arms))
        self.parameters = count_parameters(self.objective)

    def save(self) -> None:
        """Write the blocks and what was fused, each in a folder that can be read alone."""
        if self.concat is not None:
            trained = {n for n, p in self.concat.named_parameters() if p.requires_grad}
            state = {n: t for n, t in self.concat.state_dict().items() if n in trained}
            self.run.write_bytes(HEAD, save(state))
            return
        store.save(self.merged, self.run.path / MERGED, encoders="trained")
        head = self.merged.head_state()
        if self.fused is not None:
            store.save(self.fused, self.run.path / FUSED, encoders="trained")
            head = self.fused.head.state_dict()
        self.run.write_bytes(HEAD, save({n: t.contiguous() for n, t in head.items()}))

    def restore(self) -> None:
        """Take up what a finished run wrote."""
        path = self.run.path
        if self.concat is not None:
            self.concat.load_state_dict(load_file(path / HEAD), strict=False)
            return
        for name in self.merged.names:
            encoder = self.merged.block(name).encoder
            loaded = store.load_block(path / MERGED, name, encoder)
            self.merged.block(name).load_state_dict(loaded.state_dict())
        if self.config.fuse.mode != "none":
            self._make_fused()
            assert self.fused is not None
            encoders = {n: self.fused.block(n).encoder for n in self.fused.names}
            self.fused.load_state_dict(store.load(path / FUSED, encoders).state_dict())
