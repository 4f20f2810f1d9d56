"""Federated fine-tuning: patients stay with their clients, adapters are put together.

FLoRA, "Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
NeurIPS 2024, arXiv 2409.05976; with its baselines.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save

from galenic import tuners
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.files import atomic_write
from galenic.core.fingerprint import fingerprint_bytes
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.core.seeding import rng, stream
from galenic.evaluation.metrics import MAIN, point
from galenic.evaluation.protocol import to_scores
from galenic.federation import require_flower
from galenic.federation.aggregate import Aggregate
from galenic.federation.partition import by_patient, by_site
from galenic.federation.update import Update, signature
from galenic.objectives.classification import Classifier
from galenic.pipeline.frozen import Rows
from galenic.tasks import classify
from galenic.tasks._federate_config import Config
from galenic.tasks._federate_models import (
    backbone_of,
    head_of,
    held,
    require_one,
    require_still,
    saved,
    sent,
    started,
)
from galenic.tasks._job import carry_out, layer_depths, reopened

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from galenic.federation.messages import Order
    from galenic.federation.strategy import Round

Array = np.ndarray[Any, np.dtype[Any]]


class FederateJob(classify.Job):
    """The server's job: it holds the network, the validation and the test patients.

    In a simulation it knows the clients' patients too.

    Args:
        config: What to do.
        run: Where it goes.
        grid: Of Flower, where the clients are elsewhere.
        parted: Whether the training patients are shared out among simulated clients.

    Raises:
        ConfigError: If clients elsewhere are to share nothing.
    """

    config: Config

    def __init__(
        self, config: Config, run: Run, grid: Grid | None = None, *, parted: bool = True
    ) -> None:
        if not parted and config.method in ("local", "pooled"):
            raise ConfigError(
                f"method={config.method} has no rounds: clients on machines of their own would not "
                "be asked for anything.",
                where="method",
                expected="flora, fedit, zeropad or full",
                next_step=f"method={config.method} in a simulation, on one manifest",
            )
        untuned = {"tuner": {"method": "none"}, "cache": None}
        super().__init__(config.model_copy(update=untuned), run)
        self.config, self.grid = config, grid
        self.pristine = self.objective
        # A file that is not there is found now, and not by the first client.
        self.inputs[int(self.splits.train[0])]
        self.parts = self._parts() if parted else {}
        self.rounds: dict[int, dict[str, Any]] = {}
        # Of each client, where nobody shares anything.
        self.alone: list[Aggregate] = []

    @property
    def mark(self) -> str:
        """Fingerprint of what all clients must have in common: the weights, and the classes."""
        return fingerprint_bytes(backbone_of(self.pristine).fingerprint, *self.label.classes)

    @property
    def frozen(self) -> bool:
        """Never: every client trains something."""
        return False

    def _parts(self) -> dict[str, Array]:
        asked, rows = self.config.clients, self.splits.train
        if asked.by == "site":
            parts = by_site(self.cohort, rows)
        else:
            found = by_patient(
                self.cohort, rows, asked.count, self.config.seed, asked.concentration
            )
            parts = {f"client {number}": part for number, part in enumerate(found)}
        described = [
            {
                "client": number,
                "name": name,
                "samples": len(part),
                "patients": len(np.unique(self.cohort.patient_ids[part])),
                "rank": self.config.rank_of(number),
            }
            for number, (name, part) in enumerate(parts.items())
        ]
        self.run.write_json("clients.json", described)
        return parts

    # Training ---------------------------------------------------------------------------

    def train(self) -> None:
        """All rounds; or, where nothing is shared, one long training of each or of all."""
        if self.config.method == "pooled":
            rows = np.concatenate(list(self.parts.values()))
            self._settle(_alone(self._fit("pooled", rows, self.config.highest_rank)))
        elif self.config.method == "local":
            for number, rows in enumerate(self.parts.values()):
                rank = self.config.rank_of(number)
                self.alone.append(_alone(self._fit(f"{number:03d}", rows, rank)))
        else:
            self._federate()

    def client(self, number: int, order: Order) -> Update:
        """What the client with this number sends for `order`."""
        rows = list(self.parts.values())[number]
        return self._fit(f"{number:03d}", rows, self.config.rank_of(number), order)

    def whole(self, number: int, order: Order) -> Update:
        """What a client sends whose cohort is its own.

        Raises:
            ConfigError: If the label is a measurement, whose unit clients would have to share.
        """
        if self.label.kind == "continuous":
            raise ConfigError("A federation over several machines predicts classes, no measure.")
        rank = self.config.rank_of(number)
        return self._fit(f"{number:03d}", self.splits.train, rank, order)

    def _fit(self, name: str, rows: Array, rank: int, order: Order | None = None) -> Update:
        """Train on `rows` for one round; for all of them, from the beginning, without an order."""
        config = self.config
        number, start = (order.round, order.start) if order is not None else (0, self._bare())
        seed = stream(config.seed, "client", name, number) % 2**31
        objective = started(self.pristine, start, config, rank, seed)
        shape = self.rows("train", training=True)
        schedule = config.schedule
        if order is None:
            schedule = schedule.model_copy(update={"epochs": config.rounds * schedule.epochs})
        folder = f"{number}-{name}"
        checkpoints = self.run.path / "checkpoints" / folder
        if config.privacy is not None:
            # Noise is drawn afresh when a run is taken up: these began with other weights.
            shutil.rmtree(checkpoints, ignore_errors=True)
        self.fit(
            objective,
            Rows(rows.tolist(), shape.labels, inputs=shape.inputs),
            Rows([], shape.labels),
            schedule=schedule,
            collate=self.collate,
            folder=folder,
            depths=layer_depths(objective, backbone_of(objective).network, schedule),
            seed=seed,
        )
        # What is needed of it is sent; a hundred clients would leave a hundred optimisers behind.
        shutil.rmtree(checkpoints, ignore_errors=True)
        factors = 0 if config.method == "full" else rank
        return Update(
            client=name,
            samples=len(rows),
            state=sent(objective),
            rank=factors,
            scale=config.alpha_over_r if factors else 1.0,
            base=self.mark,
        )

    def _bare(self) -> Aggregate:
        """The network as it was opened, and a fresh head."""
        return Aggregate(head_of(self.pristine), 0, 1.0)

    # Rounds -----------------------------------------------------------------------------

    def _federate(self) -> None:
        require_flower()
        from flwr.serverapp import ServerApp

        from galenic.federation.client import client_app, number_of
        from galenic.federation.driver import drive, simulate
        from galenic.tasks._federate_nodes import train_apart

        if self.grid is not None:
            self.serve(self.grid)
            return
        app = ServerApp()
        app.main()(lambda grid, _: self.serve(grid))
        if self.config.driver == "ray":
            simulate(app, client_app(train_apart(self.config)), len(self.parts))
            return

        def train(order: Order, context: Any) -> Update:
            return self.client(number_of(context), order)

        drive(app, client_app(train), len(self.parts))

    def serve(self, grid: Grid) -> None:
        """All rounds with the clients behind `grid`.

        Raises:
            DataError: If no round came to anything; with the reason of the last refusal.
        """
        from galenic.federation.privacy import Privacy
        from galenic.federation.server import Server
        from galenic.federation.strategy import FLoRAStrategy, Terms

        config, asked = self.config, len(self.parts) or self.config.clients.count
        start = first = self._begin()
        if config.method == "flora":
            start = self._bare()
        terms = Terms(
            method=config.method,  # type: ignore[arg-type]
            base=self.mark,
            expected=signature(first.state),
            clients=asked,
            weighting=config.weighting,
            fraction=config.client_fraction,
            compress_rank=config.compress_rank,
            private=config.privacy is not None,
            seed=config.seed,
            timeout=config.timeout,
        )
        privacy = None
        if config.privacy is not None:
            privacy = Privacy(config.privacy.noise, config.privacy.clip, terms.asked)
        strategy = FLoRAStrategy(terms, start, self._heard)
        Server(strategy, start, config.rounds, self._seen, privacy).run(grid)
        if not any(told.get("counted") for told in self.rounds.values()):
            reasons = [
                r["reason"] for told in self.rounds.values() for r in told.get("refused", ())
            ]
            raise DataError(
                f"No client could be counted in any of {config.rounds} rounds. "
                f"{reasons[-1] if reasons else ''}".strip(),
                where="rounds.json",
            )

    def _begin(self) -> Aggregate:
        """What clients would begin with if nothing were merged: drawn once, the same for all."""
        config, rank = self.config, self.config.highest_rank
        seed = stream(config.seed, "begin") % 2**31
        objective = started(self.pristine, self._bare(), config, rank, seed)
        if config.method == "full":
            if config.privacy is not None:
                require_still(objective)
            return Aggregate(sent(objective), 0, 1.0)
        return Aggregate(sent(objective), rank, config.alpha_over_r)

    def _heard(self, told: Round, _: Aggregate | None) -> None:
        self.rounds[told.number] = {k: v for k, v in asdict(told).items() if v is not None}

    def _seen(self, number: int, start: Aggregate) -> None:
        """Evaluate what all begin the next round with, and keep it."""
        self._settle(start)
        kind, entry = self.label.kind, self.rounds.setdefault(number, {"number": number})
        for part in ("val", "test"):
            scores = to_scores(kind, self._logits(self.objective, part), self._unit())
            targets = self.targets[getattr(self.splits, part)]
            names = {MAIN[kind], *(("accuracy",) if kind == "multiclass" else ())}
            entry[part] = {name: point(kind, name, targets, scores) for name in sorted(names)}
        self.run.log({"event": "round", **entry})
        self.run.write_json("rounds.json", {"rounds": list(self.rounds.values()), **self._spent()})
        if start.rank:
            place = self.run.path / "rounds" / f"{number:03d}"
            shutil.rmtree(place, ignore_errors=True)
            tuners.save(self.backbone, self.tuner, place)

    def _spent(self) -> dict[str, Any]:
        privacy = self.config.privacy
        releases = sum(bool(told.get("counted")) for told in self.rounds.values())
        if privacy is None or not releases:
            return {}
        from galenic.federation.privacy import epsilon_of

        epsilon = epsilon_of(privacy.delta, privacy.noise, releases)
        return {"privacy": {"epsilon": epsilon, "delta": privacy.delta, "releases": releases}}

    # Results ----------------------------------------------------------------------------

    def _settle(self, start: Aggregate) -> None:
        """Take `start` for the network of this run."""
        self.objective, tuner = held(self.pristine, start, self.config)
        self.backbone = backbone_of(self.objective)
        self.tuner = self.tuner if tuner is None else tuner
        self.parameters = (
            sum(value.numel() for value in start.state.values()),
            count_parameters(self.objective)[1],
        )

    def _logits(self, objective: Classifier, part: str) -> Array:
        return predict(
            objective,
            self.rows(part),
            collate=self.collate,
            batch_size=self.config.schedule.eval_batch_size,
        )["logits"]

    def evaluate(self) -> None:
        """Predict and score; without sharing, each patient is seen by one client's network."""
        if self.config.method != "local":
            super().evaluate()
            return
        found: dict[str, Array] = {}
        for number, start in enumerate(self.alone):
            self._settle(start)
            for part in ("val", "test"):
                logits = self._logits(self.objective, part)
                whole = found.setdefault(part, np.zeros_like(logits))
                own = self._seers(part) == number
                whole[own] = logits[own]
        self.tell(found, self.cohort)

    def _seers(self, part: str) -> Array:
        """The client that sees each patient of a part: of his own site, else drawn by its size."""
        rows, names = getattr(self.splits, part), list(self.parts)
        sizes = np.array([len(part) for part in self.parts.values()], dtype=float)
        patients, place = np.unique(self.cohort.patient_ids[rows], return_inverse=True)
        draw = rng(self.config.seed, "seen by", part)
        seers = draw.choice(len(names), size=len(patients), p=sizes / sizes.sum())[place]
        if self.config.clients.by == "site":
            sites = self.cohort.sites.to_numpy()[rows]
            for number, name in enumerate(names):
                seers[sites == name] = number
        return seers

    def save(self) -> None:
        """Write what was learned; without sharing there are as many networks as clients."""
        if self.config.method != "local":
            super().save()
            return
        for number, start in enumerate(self.alone):
            self._settle(start)
            folder = self.run.path / "clients" / f"{number:03d}"
            tuners.save(self.backbone, self.tuner, folder)
            atomic_write(folder / "head.safetensors", save(self.objective.head.state_dict()))


def run(config: Config, run: Run) -> None:
    """Part the patients, train in rounds, predict and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, make)


def load(run: Run) -> tuple[classify.Job, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data.

    Raises:
        ConfigError: If nothing was shared: then there is no one network.
    """
    require_one(parse(Config, run.config), run)
    job = reopened(run, Config, make)
    learned = saved(run)
    whole = {**learned.state, **head_of(job.pristine)}
    job._settle(Aggregate(whole, learned.rank, learned.scale))
    return classify.restored(job)


def make(config: Config, run: Run, grid: Grid | None = None) -> FederateJob:
    """The job; a quick one has two rounds of three clients."""
    if config.quick:
        few = config.clients.model_copy(update={"count": min(config.clients.count, 3)})
        config = config.model_copy(update={"rounds": min(config.rounds, 2), "clients": few})
    return FederateJob(config, run, grid, parted=grid is None)


def _alone(update: Update) -> Aggregate:
    return Aggregate(update.state, update.rank, update.scale)
