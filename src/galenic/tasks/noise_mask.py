"""A classifier heated under a policy's noise, then trained plainly; the policy is dropped.

Yavuz and Yang, "Policy Gradient-Driven Noise Mask", 2024, arXiv 2406.14568.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image as Pillow
from safetensors.torch import save
from torch import nn

from galenic import tuners
from galenic.core.averaging import LastEpochs
from galenic.core.errors import BackboneError, ConfigError
from galenic.core.plan import processes
from galenic.core.prediction import evaluating
from galenic.core.run import Run
from galenic.core.seeding import generator
from galenic.models.backbone import Backbone, open_backbone
from galenic.models.beta_policy import BetaPolicy, UniformPolicy
from galenic.objectives.classification import Classifier
from galenic.objectives.noise_mask import NoiseMasked, draw
from galenic.pipeline.pictures import png
from galenic.tasks import classify
from galenic.tasks._job import carry_out, layer_depths, reopened
from galenic.tasks._noise_mask_config import Config

SHOWN = 8
# White pixels between two pictures.
GAP = 2


def run(config: Config, run: Run) -> None:
    """Open, split, heat, fine-tune, predict and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, NoiseMaskJob)


class NoiseMaskJob(classify.Job):
    """One run, step by step.

    Attributes:
        heated: The classifier under noise; the classifier itself where there is none.
    """

    config: Config

    def _objective(self) -> Classifier:
        objective = super()._objective()
        if self.frozen:
            raise ConfigError(
                "Nothing of the backbone trains: noise on its pictures teaches nobody.",
                where=f"tuner.method={self.config.tuner['method']}",
                next_step="tuner.method=full",
            )
        if len(self.hooks.stages) > 1:
            raise ConfigError(
                "A tuner that trains in stages of its own cannot be heated.",
                where=f"tuner.method={self.config.tuner['method']}",
                next_step="tuner.method=full",
            )
        self.heated = self._heated(objective)
        return objective

    def _block(self) -> int:
        """None: nothing can be computed ahead of a mask that changes with every draw."""
        return 0

    def _heated(self, objective: Classifier) -> nn.Module:
        noise, spec = self.config.noise, self.backbone.inputs
        if spec.form != "image" or self.inputs.modality == "volume" or spec.size is None:
            raise BackboneError(
                f"'{self.backbone.spec}' is fed {spec.form}s of {self.inputs.modality}; a noise "
                "mask lies on a picture.",
                expected="pictures of one size, and a network of pictures",
            )
        if noise.policy == "none":
            return objective
        least = min(spec.size)
        if noise.kernel // 2 >= least:
            raise ConfigError(
                f"A blur of {noise.kernel} pixels is too wide for pictures of {least}.",
                where="noise.kernel",
                expected=f"under {2 * least}",
            )
        return NoiseMasked(
            objective,
            self._policy(),
            key=spec.key,
            kernel=noise.kernel,
            sigma=noise.sigma,
            estimator=noise.objective,
            baseline=noise.baseline,
            entropy=noise.entropy,
            seed=self.config.seed,
        )

    def _policy(self) -> BetaPolicy | UniformPolicy:
        noise, spec = self.config.noise, self.backbone.inputs
        if noise.policy == "uniform":
            return UniformPolicy(noise.grid)
        name = noise.policy_backbone.removesuffix("#random")
        encoder: Backbone = open_backbone(
            f"{name}#random", modality="image", channels=spec.channels, size=spec.size
        )
        policy = BetaPolicy(
            encoder,
            grid=noise.grid,
            decay=noise.decay,
            momentum=noise.base_momentum,
            generator=generator(self.config.seed, "noise base"),
        )
        return policy.requires_grad_(noise.policy == "learned")

    def train(self) -> None:
        """Heat under noise, keep that, and fine-tune without."""
        stage = next(iter(self.hooks.begun(self.objective.head)))
        rows, held = self.rows("train", training=True), self.rows("val")
        schedule = self.config.schedule.model_copy(update=dict(stage.schedule))
        ratio = self.config.noise.policy_lr_ratio
        names = [name for name, _ in self.heated.named_parameters()]
        rates = {name: ratio for name in names if name.startswith("policy.")}
        self.fit(
            self.heated, rows, held, schedule=schedule, folder="heated", rates=rates,
            collate=self.collate, after_step=self.hooks.after_step,
            depths=layer_depths(self.heated, self.backbone.network, schedule),
        )  # fmt: skip
        self._keep()
        if self.config.finetune is not None:
            self._finetune(rows, held)

    def _finetune(self, rows: classify.Rows, held: classify.Rows) -> None:
        finetune, last = self.config.finetune, self.config.average_last
        assert finetune is not None
        epoch = finetune.epoch(len(rows), processes())
        kept = LastEpochs(self.objective, self.run.path / "work" / "last", last, epoch)

        def after_step(done: int, total: int) -> None:
            if self.hooks.after_step is not None:
                self.hooks.after_step(done, total)
            if last:
                kept.after_step(done, total)

        self.fit(
            self.objective, rows, held, schedule=finetune, folder="finetune",
            collate=self.collate, after_step=after_step,
            depths=layer_depths(self.objective, self.backbone.network, finetune),
        )  # fmt: skip
        if last:
            kept.put()

    def _keep(self) -> None:
        """Write the heated network, the policy, and masks on some pictures of validation."""
        tuners.save(self.backbone, self.tuner, self.run.path / "heated" / "adapter")
        head = save(self.objective.head.state_dict())
        self.run.write_bytes("heated/head.safetensors", head)
        if isinstance(self.heated, NoiseMasked):
            policy = save(self.heated.policy.state_dict())
            self.run.write_bytes("heated/policy.safetensors", policy)
            self.run.write_bytes("heated/masks.png", self._pictures(self.heated))

    def _pictures(self, heated: NoiseMasked) -> bytes:
        """Pictures above, and below each a mask that was drawn for it."""
        part = self.splits.val if len(self.splits.val) else self.splits.train
        key = self.backbone.inputs.key
        pixels = np.stack([self.inputs[int(row)][key] for row in part[:SHOWN]])
        pictures = torch.from_numpy(pixels)
        with evaluating(heated), torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(self.config.seed)
            device = heated.taps.device
            cells = draw(heated.policy(pictures.to(device)))
            masks = heated.mask(cells, (pixels.shape[-2], pixels.shape[-1]))[:, 0].cpu().numpy()
        grey = pixels.mean(axis=1)
        low, high = grey.min(), grey.max()
        grey = (grey - low) / max(high - low, 1e-6)
        gaps = [(0, 0), (0, GAP), (0, GAP)]
        grey, masks = (np.pad(one, gaps, constant_values=1) for one in (grey, masks))
        rows = np.concatenate([np.hstack(list(grey)), np.hstack(list(masks))])
        return png(Pillow.fromarray((255 * rows).round().astype(np.uint8)))


def load(run: Run) -> tuple[NoiseMaskJob, Classifier]:
    """The fitted objective of a finished run, without its policy, and the job."""
    return classify.restored(reopened(run, Config, NoiseMaskJob))
