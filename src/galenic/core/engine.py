"""`transformers.Trainer` with galenic's optimiser, order, validation and checkpoints.

The engine sees an objective, a plain module around the network, never the network itself: a
Trainer that resumes a bare pretrained model may restore nothing and say nothing.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from galenic.core import checkpoint
from galenic.core.errors import ConfigError, GalenicError
from galenic.core.files import atomic_folder, atomic_json
from galenic.core.optim import optimiser, parameter_groups, rate_factor
from galenic.core.plan import Plan, arguments
from galenic.core.prediction import predict, to_device
from galenic.core.sampling import EpochBatches, EpochSampler
from galenic.core.seeding import stream

Log = Callable[[dict[str, Any]], None]
LOG_STEPS = 10
STATE = "engine.json"


class Engine(Trainer):
    """One training.

    Args:
        objective: Changed in place.
        plan: What to do.
        folder: Where checkpoints go.
        record: Receives every event.
        update: Receives the number of steps done.

    Attributes:
        best: Weights of the best epoch so far.
        best_figure: Its validation figure.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        objective: nn.Module,
        plan: Plan,
        folder: Path,
        record: Log,
        update: Callable[..., None],
    ) -> None:
        self.plan, self.schedule, self.folder, self.record = plan, plan.schedule, folder, record
        self.best: dict[str, Tensor] | None = None
        self.best_figure: float | None = None
        self.best_step, self.worse_epochs, self.stopped = 0, 0, False
        self._window: tuple[float, int] | None = None
        super().__init__(
            objective,
            arguments(plan, folder),
            data_collator=plan.collate,
            train_dataset=plan.train,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "Sharded training (FSDP, DeepSpeed) is not supported.",
                expected="one copy of the objective on each device (DDP)",
                next_step="Launch with torchrun, or `accelerate launch --multi_gpu`.",
            )
        # Nobody but the objective scales its loss, whatever keywords its forward takes.
        self.model_accepts_loss_kwargs = False
        self.moving = checkpoint.Moving(objective)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Flow(self, update))

    # Training ---------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process; not accelerate's loader, which would reorder by its own."""
        rank, world = self.args.process_index, self.args.world_size
        size = self.schedule.batch_size
        order = EpochSampler(
            len(self.plan.train),  # type: ignore[arg-type]
            self.plan.seed,
            self.plan.sample_weights,
            getattr(self.plan.train, "lengths", None),
            size * world,
            self.plan.sample_groups,
        )
        self.batches = EpochBatches(order, size, rank, world)
        self.draws = torch.Generator()
        return DataLoader(
            self.plan.train,
            batch_sampler=self.batches,
            collate_fn=self.plan.collate,
            num_workers=self.schedule.workers,
            pin_memory=self.args.device.type == "cuda",
            generator=self.draws,
        )

    def start_epoch(self, epoch: int) -> None:
        """Tell all that draws which epoch it is."""
        self.batches.set_epoch(epoch)
        # Seeds the workers; one generator each epoch, so that a resume draws the same.
        self.draws.manual_seed(stream(self.plan.seed, "workers", epoch))
        if hasattr(self.plan.train, "set_epoch"):
            self.plan.train.set_epoch(epoch)
        self.model_wrapped.train()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, decayed and paced by :mod:`galenic.core.optim`."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.schedule, self.plan.depths, self.plan.rates)
            self.optimizer = optimiser(groups, self.schedule)
        # Only these have gradients; the frozen ones need not be walked at every step.
        self._train_these = [p for p in self.model.parameters() if p.requires_grad]
        self.model.__dict__["zero_grad"] = self._zero_grad
        return self.optimizer

    def _zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Warm-up and cosine."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, rate_factor(self.schedule, num_training_steps)
            )
        return self.lr_scheduler

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Forward and backward of one batch.

        Raises:
            GalenicError: If the loss is not finite; names step and tensor.
        """
        batch = to_device(inputs, self.args.device)
        loss: Tensor = model(**batch)["loss"]
        finite = _Finite(loss)
        if loss.device.type != "cuda" and not finite:
            raise self._not_finite(batch)
        # Each micro-batch has its part in the mean; the last group of an epoch may be short.
        loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        # On a GPU the answer is asked for only now, while the backward pass still runs there.
        if not finite:
            raise self._not_finite(batch)
        return loss.detach()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.accelerator.unscale_gradients(self.optimizer)
        return nn.utils.clip_grad_norm_(self._train_these, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Without clipping nobody asked for the norm.
        return grad_norm

    def _not_finite(self, batch: Mapping[str, Any]) -> GalenicError:
        def first(kind: str, values: Mapping[str, Any]) -> str | None:
            for name, value in values.items():
                # An unknown label is NaN, and rightly so.
                odd = isinstance(value, Tensor) and value.is_floating_point() and name != "labels"
                if odd and not torch.isfinite(value).all():
                    return f"{kind} '{name}'"
            return None

        bad = (
            first("input", batch)
            or first("parameter", dict(self.model.named_parameters()))
            or first("buffer", dict(self.model.named_buffers()))
        )
        # Only whole ones count, and a damaged one must not hide the first error.
        whole = [p.name for p in checkpoint.checkpoints(self.folder) if _is_whole(p)]
        last = (
            f"the last good checkpoint is '{whole[-1]}'" if whole else "no checkpoint was written"
        )
        return GalenicError(
            f"The loss is no longer finite at step {self.state.global_step + 1}.",
            where=f"first bad tensor: {bad}"
            if bad
            else "the loss itself: all inputs and weights are finite",
            next_step=f"Check that input, or lower schedule.lr; {last} in {self.folder}."
            if whole
            else f"Check that input, or lower schedule.lr; {last}.",
        )

    # Judging ----------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Judge the epoch, and keep its weights if they are the best so far."""
        validation = self.plan.validation
        assert validation is not None
        outputs = predict(
            self.model,
            validation.data,
            collate=self.plan.collate,
            batch_size=self.schedule.eval_batch_size,
            workers=self.schedule.workers,
        )
        # One word for all processes: they must not disagree on when to stop.
        figures: dict[str, float] = broadcast_object_list([validation.score(outputs)])[0]
        figure = next(iter(figures.values()))
        sign = 1 if validation.greater_is_better else -1
        before = -math.inf if self.best_figure is None else sign * self.best_figure
        self.worse_epochs += 1
        if sign * figure > before:
            self.best_figure, self.best_step = float(figure), self.state.global_step
            self.worse_epochs, self.best = 0, self.moving.take()
        step, epoch = self.state.global_step, self.state.epoch
        self.record({"event": "validation", "step": step, "epoch": epoch, **figures})
        if self.schedule.patience and self.worse_epochs >= self.schedule.patience:
            self.stopped = self.control.should_training_stop = True
            self.control.should_save = True
        return {f"eval_{name}": value for name, value in figures.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Record loss, rate and norm; the engine's own summary at the end is left out."""
        if "loss" in logs:
            names = {"loss": "loss", "lr": "learning_rate", "grad_norm": "grad_norm"}
            kept = {new: logs[old] for new, old in names.items() if old in logs}
            step, epoch = self.state.global_step, self.state.epoch
            self.record({"event": "train", "step": step, "epoch": epoch, **kept})

    # Checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint that counts only when it is whole."""
        random = gather_object([self._random_state()])
        step = self.state.global_step
        name = f"{checkpoint.PREFIX}{step}"
        if self.args.should_save:
            with atomic_folder(self.folder / name) as folder:
                # What is frozen is in the backbone's own file; only what moves is written.
                best = None if self.best_step == step else self.best
                checkpoint.write_weights(folder, self.moving.take(), best)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                for rank, content in enumerate(random):
                    (folder / _random_name(rank, len(random))).write_bytes(content)
                self.state.save_to_json(str(folder / "trainer_state.json"))
                atomic_json(folder / STATE, self._own_state())
            checkpoint.rotate(self.folder)
            self.record({"event": "checkpoint", "step": step, "name": name})
        self.accelerator.wait_for_everyone()

    def _own_state(self) -> dict[str, Any]:
        return {
            "plan": self.plan.meaning(self.args.world_size),
            "best_figure": self.best_figure,
            "best_step": self.best_step,
            "worse_epochs": self.worse_epochs,
            "stopped": self.stopped,
            # The loss that waits for its line in the log.
            "loss": float(self._tr_loss),
            "last_logged": self._globalstep_last_logged,
        }

    def _random_state(self) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            self._save_rng_state(place)
            return next(Path(place).iterdir()).read_bytes()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        state = json.loads((folder / STATE).read_text())
        self._same_plan(state["plan"], folder)
        weights, best = checkpoint.read_weights(folder)
        self.moving.put(weights)
        self.best_figure, self.best_step = state["best_figure"], state["best_step"]
        self.worse_epochs, self.stopped = state["worse_epochs"], state["stopped"]
        self._window = (state["loss"], state["last_logged"])
        if self.best_figure is not None:
            self.best = weights if best is None else best

    def _same_plan(self, before: Mapping[str, Any], folder: Path) -> None:
        now = self.plan.meaning(self.args.world_size)
        odd = [f"{k} was {before.get(k)!r}, is {v!r}" for k, v in now.items() if before.get(k) != v]
        if odd:
            raise ConfigError(
                f"This is not the training that wrote '{folder.name}': {'; '.join(odd)}.",
                where=str(folder),
                expected="the same schedule, data and number of processes",
                next_step="Resume with what the run was started with, or start a new run.",
            )

    def take_up(self, folder: Path) -> bool:
        """Load a finished training; false if there is something left to do."""
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        stopped = json.loads((folder / STATE).read_text())["stopped"]
        if not stopped and state.global_step < self.args.max_steps:
            return False
        self._load_from_checkpoint(str(folder))
        self.state = state
        return True

    def take_window(self) -> None:
        """Go on with the loss that was waiting to be logged."""
        if self._window is not None:
            loss, last = self._window
            self._tr_loss += torch.tensor(loss, device=self._tr_loss.device)
            self._globalstep_last_logged, self._window = last, None


class _Flow(TrainerCallback):
    """When to log, to judge, to save."""

    def __init__(self, engine: Engine, update: Callable[..., None]) -> None:
        self.engine, self.update = engine, update

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.engine.take_window()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.engine.start_epoch(int(state.epoch or 0))

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.update(state.global_step)
        if self.engine.plan.after_step is not None:
            self.engine.plan.after_step(state.global_step, state.max_steps)
        control.should_log = state.global_step % LOG_STEPS == 0 or state.global_step == 1
        # At the end of an epoch the judgement comes first: a checkpoint knows about it.
        ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        control.should_save = self._due(state) and not ends
        return control

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_log = True
        control.should_evaluate = self.engine.plan.validation is not None
        last = state.global_step >= state.max_steps
        every = self.engine.schedule.checkpoint_steps is None
        control.should_save = every or last or self._due(state)
        return control

    def _due(self, state: TrainerState) -> bool:
        steps = self.engine.schedule.checkpoint_steps
        return steps is not None and state.global_step % steps == 0


class _Finite:
    """Whether a loss is finite; on a GPU the answer travels while other work is queued."""

    def __init__(self, loss: Tensor) -> None:
        self.answer = torch.isfinite(loss.detach())
        self.event: torch.cuda.Event | None = None
        if self.answer.is_cuda:
            here = torch.empty((), dtype=torch.bool, pin_memory=True)
            self.answer = here.copy_(self.answer, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def __bool__(self) -> bool:
        if self.event is not None:
            self.event.synchronize()
        return bool(self.answer)


def _is_whole(folder: Path) -> bool:
    try:
        checkpoint.verify(folder)
    except GalenicError:
        return False
    return True


def _random_name(rank: int, world: int) -> str:
    return "rng_state.pth" if world == 1 else f"rng_state_{rank}.pth"
