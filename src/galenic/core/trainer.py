"""The one engine: an objective, data and a schedule, on `transformers.Trainer`.

The engine sees an objective, a plain module around the network, never the network itself: a
Trainer that resumes a bare pretrained model may restore nothing and say nothing.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from galenic.core import hardware
from galenic.core.checkpoint import load_trained, trained
from galenic.core.errors import GalenicError, WeightsError
from galenic.core.files import atomic_folder, verify_folder
from galenic.core.optim import cosine_factor, parameter_groups
from galenic.core.progress import bar
from galenic.core.sampling import EpochSampler
from galenic.core.schedule import Schedule

Array = np.ndarray[Any, np.dtype[Any]]
Log = Callable[[dict[str, Any]], None]
WEIGHTS, BEST = "model.safetensors", "best.safetensors"
KEPT_CHECKPOINTS = 2
LOG_STEPS = 10


@dataclass(frozen=True)
class Validation:
    """How an epoch is judged.

    Attributes:
        data: Samples that training never sees.
        score: From all outputs of :func:`predict` to figures; the first one decides.
        greater_is_better: Of the first figure.
    """

    data: Dataset[Any]
    score: Callable[[dict[str, Array]], dict[str, float]]
    greater_is_better: bool = True


@dataclass(frozen=True)
class FitResult:
    """What a training came to.

    Attributes:
        steps: Optimiser steps in all, those before a resume included.
        seconds: Of this call.
        best: Best validation figure, None without validation.
        history: Every event that was logged.
    """

    steps: int
    seconds: float
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    objective: nn.Module,
    train: Dataset[Any],
    *,
    schedule: Schedule,
    collate: Callable[[list[Any]], dict[str, Tensor]],
    folder: Path,
    seed: int,
    validation: Validation | None = None,
    sample_weights: Array | None = None,
    depths: Mapping[str, int] | None = None,
    log: Log | None = None,
    resume: bool = False,
) -> FitResult:
    """Train the parameters of `objective` that require gradients, in place.

    Args:
        objective: `forward(**batch)` returns a dict with the scalar `loss`.
        train: Indexable samples; `set_epoch` is called where there is one, and an array
            `lengths`, where there is one, puts samples of like size into a batch.
        schedule: Rates, lengths, precision.
        collate: Samples to a batch of tensors.
        folder: Checkpoints go here.
        seed: Of order and dropout.
        validation: With it, training ends on the best epoch (`schedule.keep_best`) and may
            stop early (`schedule.patience`).
        sample_weights: Relative chance of each sample, for balanced drawing.
        depths: Depth of each parameter by name, for `schedule.layer_decay`.
        log: Receives every event.
        resume: Go on from the last whole checkpoint in `folder`, to the same end, bit for bit.

    Raises:
        GalenicError: If the loss is no longer finite; says at which step and where.
        ConfigError: If nothing trains.
    """
    started = time.perf_counter()
    if schedule.gradient_checkpointing:
        enable: Any = objective.gradient_checkpointing_enable
        enable()
    history: list[dict[str, Any]] = []

    def record(event: dict[str, Any]) -> None:
        history.append(event)
        if log is not None:
            log(event)

    with _quiet(), bar("training") as update:
        engine = _Engine(
            objective,
            _arguments(schedule, folder, seed, validation is not None),
            train,
            collate,
            schedule=schedule,
            depths=depths,
            validation=validation,
            sampler=EpochSampler(
                len(train),  # type: ignore[arg-type]
                seed,
                sample_weights,
                getattr(train, "lengths", None),
                schedule.batch_size,
            ),
            record=record,
        )
        engine.add_callback(_Watcher(engine, record, update))
        last = engine.last_checkpoint() if resume else None
        engine.train(resume_from_checkpoint=str(last) if last else None)
    if engine.best is not None and schedule.keep_best:
        load_trained(objective, engine.best)
    engine.accelerator.free_memory()
    seconds = time.perf_counter() - started
    return FitResult(engine.state.global_step, seconds, engine.best_figure, history)


def predict(
    objective: nn.Module,
    data: Dataset[Any],
    *,
    collate: Callable[[list[Any]], dict[str, Tensor]],
    batch_size: int = 64,
) -> dict[str, Array]:
    """Every output of `objective` but the loss, over all samples, in their order.

    Returns:
        Arrays [n, ...] by output name; the objective's training mode is left as it was.
    """
    device = next(objective.parameters(), torch.zeros(0)).device
    training = objective.training
    objective.eval()
    parts: dict[str, list[Array]] = {}
    lengths = getattr(data, "lengths", None)
    count = len(data)  # type: ignore[arg-type]
    order = np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")
    loader = DataLoader(data, batch_size=batch_size, collate_fn=collate, sampler=order.tolist())
    try:
        with torch.inference_mode():
            for batch in loader:
                outputs = objective(**{key: value.to(device) for key, value in batch.items()})
                for name, value in outputs.items():
                    if name != "loss":
                        parts.setdefault(name, []).append(value.float().cpu().numpy())
    finally:
        objective.train(training)
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def _arguments(schedule: Schedule, folder: Path, seed: int, validates: bool) -> TrainingArguments:
    device = hardware.device()
    precision = hardware.precision(schedule.precision, device)
    steps = schedule.checkpoint_steps
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulate,
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
        max_grad_norm=schedule.clip_norm or 0.0,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        seed=seed,
        eval_strategy="epoch" if validates else "no",
        save_strategy="steps" if steps else "epoch",
        save_steps=steps or 500,
        logging_strategy="steps",
        logging_steps=LOG_STEPS,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=schedule.workers,
        dataloader_pin_memory=device.type == "cuda",
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
    )


class _Engine(Trainer):
    """`Trainer` with our optimiser, order, validation and checkpoints."""

    def __init__(
        self,
        objective: nn.Module,
        arguments: TrainingArguments,
        train: Dataset[Any],
        collate: Callable[[list[Any]], dict[str, Tensor]],
        *,
        schedule: Schedule,
        depths: Mapping[str, int] | None,
        validation: Validation | None,
        sampler: EpochSampler,
        record: Log,
    ) -> None:
        self.schedule, self.depths, self.validation = schedule, depths, validation
        self.epoch_sampler, self.record = sampler, record
        self.best: dict[str, Tensor] | None = None
        self.best_figure: float | None = None
        self.worse_epochs = 0
        super().__init__(
            objective,
            arguments,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=None if validation is None else validation.data,
        )
        self.remove_callback(PrinterCallback)

    optimizer: Any
    lr_scheduler: Any

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.schedule, self.depths)
            self.optimizer = torch.optim.AdamW(groups, lr=self.schedule.lr)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, cosine_factor(self.schedule, num_training_steps)
            )
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        return self.epoch_sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise self._not_finite(inputs)
        return (loss, outputs) if return_outputs else loss

    def _not_finite(self, inputs: Mapping[str, Any]) -> GalenicError:
        step = self.state.global_step
        bad = [
            f"input '{name}'"
            for name, value in inputs.items()
            if value.is_floating_point() and name != "labels" and not torch.isfinite(value).all()
        ] or [
            f"parameter '{name}'"
            for name, value in self.model.named_parameters()
            if not torch.isfinite(value).all()
        ]
        last = self.last_checkpoint()
        return GalenicError(
            f"The loss is no longer finite at step {step}.",
            where=f"first bad tensor: {bad[0]}"
            if bad
            else "the loss itself: all weights are finite",
            next_step="Lower schedule.lr; "
            + (f"the last good checkpoint is {last.name}." if last else "no checkpoint was kept."),
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Judge the epoch, and keep its weights if they are the best so far."""
        assert self.validation is not None
        outputs = predict(
            self.model,
            self.validation.data,
            collate=self.data_collator,
            batch_size=self.schedule.eval_batch_size,
        )
        figures = self.validation.score(outputs)
        figure = next(iter(figures.values()))
        sign = 1 if self.validation.greater_is_better else -1
        self.worse_epochs += 1
        if self.best_figure is None or sign * figure > sign * self.best_figure:
            self.best_figure, self.worse_epochs = figure, 0
            self.best = trained(self.model)
        self.record(
            {"event": "validation", "step": self.state.global_step, "epoch": self.state.epoch}
            | figures
        )
        if self.schedule.patience and self.worse_epochs >= self.schedule.patience:
            self.control.should_training_stop = True
        return {f"eval_{name}": value for name, value in figures.items()}

    # Checkpoints ------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / ".staging")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # What is frozen is in the backbone's own file; only what moves is written.
        save_file(trained(self.model), folder / WEIGHTS)
        if self.best is not None:
            metadata = {"figure": repr(self.best_figure), "worse": str(self.worse_epochs)}
            save_file(self.best, folder / BEST, metadata=metadata)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            staging = Path(self._get_output_dir(trial))
            with atomic_folder(Path(self.args.output_dir) / name) as folder:
                for file in (staging / name).iterdir():
                    shutil.move(file, folder / file.name)
            shutil.rmtree(staging)
            for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _checkpoints(self) -> list[Path]:
        found = Path(self.args.output_dir).glob("checkpoint-*")
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are reported and passed over."""
        for path in reversed(self._checkpoints()):
            try:
                verify_folder(path)
            except WeightsError as error:
                self.record({"event": "damaged checkpoint", "name": path.name, "why": error.found})
            else:
                return path
        return None

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        load_trained(self.model, load_file(folder / WEIGHTS))
        if (folder / BEST).is_file():
            from safetensors import safe_open

            with safe_open(folder / BEST, "pt") as file:
                metadata = file.metadata()
                self.best = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.best_figure = float(metadata["figure"])
            self.worse_epochs = int(metadata["worse"])


class _Watcher(TrainerCallback):
    """Log and progress of a training."""

    def __init__(self, engine: _Engine, record: Log, update: Callable[..., None]) -> None:
        self.engine, self.record, self.update = engine, record, update

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.update(100 * state.global_step / max(state.max_steps, 1))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            kept = {
                new: logs[old]
                for new, old in {
                    "loss": "loss",
                    "lr": "learning_rate",
                    "grad_norm": "grad_norm",
                }.items()
                if old in logs
            }
            self.record({"event": "train", "step": state.global_step, "epoch": state.epoch} | kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the engine's advice to itself; what matters goes to the log."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
