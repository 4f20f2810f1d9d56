"""One `forecast` run, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from scipy.special import expit
from sklearn.metrics import log_loss
from torch import nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.core.meters import count_parameters
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.core.seeding import rng
from galenic.core.trainer import Validation, fit
from galenic.data.events.vocabulary import Vocabulary
from galenic.models.mamba import EventMamba, build
from galenic.objectives.bag_of_codes import BagOfCodes
from galenic.objectives.next_event import NextEvent
from galenic.objectives.prompted_event import PromptedEvent
from galenic.pipeline.histories import HistoryRows, TaskRows, collate, down_sampled
from galenic.tasks._forecast_bag import fit_bag
from galenic.tasks._forecast_config import Config
from galenic.tasks._forecast_records import Array, Records
from galenic.tasks._forecast_results import write_results

VOCABULARY = "vocabulary.json"
PRETRAINED = "pretrained.safetensors"
TUNED = "tuned.safetensors"


class Job:
    """What a run of the task holds; nothing trains before :meth:`train`.

    Args:
        config: Of the run.
        run: Its folder.
        new: Whether the data are others, for the finished run to answer.

    Attributes:
        records: Events, labels and parts.
        vocabulary: Fitted on the patients that are trained on.
        samples: Every question of every task.
        labels: Of the samples, shuffled for the control.
        pretrained: Reads histories, and predicts their next token.
        tuned: What answers: one objective for all tasks, or one a task.
    """

    def __init__(self, config: Config, run: Run, new: bool = False) -> None:
        self.config, self.run = config, run
        if config.network == "bag" and config.start is not None:
            raise ConfigError("A bag of codes has no weights to start from.", where="start")
        self.records = Records(config, new)
        self.vocabulary = self._vocabulary()
        self.samples = self.records.samples(self.vocabulary)
        self.labels = self._labels()
        self.pretrained: NextEvent | None = None
        if config.network != "bag":
            network = build(config.network, config.sizes, len(self.vocabulary), config.start)
            self.pretrained = NextEvent(network, network.decoder)
        self.tuned: dict[str, PromptedEvent | BagOfCodes] = {}
        self.fit_seconds = self.feature_seconds = 0.0
        self.steps = 0

    @property
    def parameters(self) -> tuple[int, int]:
        """(trainable, total) of one network, with its head."""
        return count_parameters(next(iter(self.tuned.values())))

    def _vocabulary(self) -> Vocabulary:
        path = self.run.path / VOCABULARY
        # What is lost from a finished run is not to be fitted anew: no network would know it.
        if path.is_file() or self.run.state == "finished":
            stated = (self.run.provenance.get("data") or {}).get("vocabulary")
            return Vocabulary.load(path, stated)
        events = self.records.of(self.records.trained_on)
        fitted = Vocabulary.fit(events, self.config.tokens, self.records.tasks)
        if self.run.main:
            fitted.save(path)
        return fitted

    def _labels(self) -> Array:
        """Shuffled between patients, but for test, where the config asks for the control."""
        samples, labels = self.samples, self.samples.labels.copy()
        if self.config.shuffle_labels:
            parts = self.records.splits
            known = np.isin(samples.patients, np.concatenate([parts.train, parts.val]))
            for task in range(len(self.records.tasks)):
                rows = np.flatnonzero((samples.tasks == task) & known)
                labels[rows] = labels[rng(self.config.seed, "shuffle", task).permutation(rows)]
        return labels

    # Training -----------------------------------------------------------------------------

    def train(self) -> None:
        """Train on the next token, then on the tasks."""
        if self.pretrained is not None and self.config.pretrain:
            records = self.records
            train, held = map(self.histories, (records.trained_on, records.splits.val))
            self._fit(self.pretrained, train, held, self.config.pretraining, "pretrain", perplexity)
        for name, tasks in self.phases.items():
            self.tuned[name] = self._tuned(name, tasks)

    @property
    def phases(self) -> dict[str, list[int]]:
        """Tasks that are trained together, by the name of what they share."""
        names = self.records.tasks
        if self.config.how == "multitask" and self.config.network != "bag":
            return {"all": list(range(len(names)))}
        return {name: [task] for task, name in enumerate(names)}

    def answering(self, task: str) -> PromptedEvent | BagOfCodes:
        """What answers a task."""
        place = self.records.tasks.index(task)
        return next(self.tuned[name] for name, tasks in self.phases.items() if place in tasks)

    def _tuned(self, name: str, tasks: list[int]) -> PromptedEvent | BagOfCodes:
        train, held = (self.questions(self.rows(part, tasks)) for part in ("train", "val"))
        if self.config.positive_rate is not None:
            rows = self.rows("train", tasks)
            kept = down_sampled(
                self.labels[rows],
                self.samples.tasks[rows],
                self.config.positive_rate,
                rng(self.config.seed, "negatives", name),
            )
            train = self.questions(rows[kept])
        if self.pretrained is None:
            return fit_bag(train, held, len(self.vocabulary))
        objective = self.objective()

        def loss(outputs: dict[str, Array]) -> dict[str, float]:
            return {"loss": log_loss(held.labels, expit(outputs["logits"]), labels=[0, 1])}

        self._fit(objective, train, held, self.config.schedule, f"tune-{name}", loss)
        return objective

    def objective(self) -> PromptedEvent:
        """The pretrained network, which stays as it is, copied and with a head of its own."""
        assert self.pretrained is not None
        network = cast(EventMamba, copy.deepcopy(self.pretrained.network))
        return PromptedEvent(network, network.embedding.embedding_dim)

    def _fit(
        self,
        objective: nn.Module,
        train: HistoryRows,
        held: HistoryRows,
        schedule: Schedule,
        folder: str,
        score: Callable[[dict[str, Array]], dict[str, float]],
    ) -> None:
        result = fit(
            objective,
            train,
            schedule=schedule,
            collate=collate,
            folder=self.run.path / "checkpoints" / folder,
            seed=self.config.seed,
            validation=Validation(held, score, greater_is_better=False),
            log=self.run.log,
            resume=self.run.resumed,
        )
        self.fit_seconds += result.seconds
        self.steps += result.steps

    def evaluate(self) -> None:
        """Answer every question of validation and test, and write every number."""
        write_results(self)

    # Samples ------------------------------------------------------------------------------

    def histories(self, patients: Array) -> HistoryRows:
        """All that is known of some patients."""
        return HistoryRows(self.records.histories(patients, self.vocabulary), self.config.length)

    def rows(self, part: str, tasks: list[int]) -> Array:
        """Numbers of the samples of a part and some tasks."""
        chosen = np.isin(self.samples.patients, getattr(self.records.splits, part))
        return np.flatnonzero(chosen & np.isin(self.samples.tasks, tasks))

    def questions(self, rows: Array, *, answered: bool = True) -> TaskRows:
        """Samples, each with the token of its task and, where they are `answered`, its label."""
        prompts = np.array([self.vocabulary.prompts[name] for name in self.records.tasks])
        return TaskRows(
            [self.samples.histories[row] for row in rows],
            self.config.length,
            prompts[self.samples.tasks[rows]],
            self.labels[rows] if answered else None,
        )

    # Files --------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all weights, in safetensors."""
        if self.pretrained is not None:
            _write(self.run, PRETRAINED, {"network": self.pretrained.network})
        _write(self.run, TUNED, self.tuned)

    def restore(self) -> None:
        """Take up the weights that :meth:`save` wrote."""
        if self.pretrained is not None:
            _take_up(self.run, PRETRAINED, {"network": self.pretrained.network})
        bag = self.pretrained is None
        self.tuned = {
            name: BagOfCodes(len(self.vocabulary)) if bag else self.objective()
            for name in self.phases
        }
        _take_up(self.run, TUNED, self.tuned)


def perplexity(outputs: dict[str, Array]) -> dict[str, float]:
    """Of all tokens, from the sums of each history."""
    return {"perplexity": float(np.exp(outputs["nll"].sum() / outputs["tokens"].sum()))}


def _write(run: Run, name: str, modules: Mapping[str, nn.Module]) -> None:
    # Tied tensors are written under each of their names.
    state = {
        f"{prefix}/{key}": tensor.detach().cpu().contiguous().clone()
        for prefix, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    run.write_bytes(name, save(state))


def _take_up(run: Run, name: str, modules: Mapping[str, nn.Module]) -> None:
    try:
        state = load_file(run.path / name)
        for prefix, module in modules.items():
            start = f"{prefix}/"
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )
    except (OSError, SafetensorError, RuntimeError):
        raise WeightsError(
            f"{name} is not there, is damaged, or holds another network.",
            where=str(run.path),
            expected="the file as the run wrote it",
            next_step="Put it back, or run again.",
        ) from None
