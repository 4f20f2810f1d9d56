"""One control run, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from galenic.core.errors import ConfigError
from galenic.core.run import Run
from galenic.core.seeding import generator
from galenic.simulation import search, train
from galenic.simulation.builtin import open_twin
from galenic.simulation.controllers import PID, Fraction, Neural, NoControl, OpenLoop, Policy
from galenic.simulation.fitting import fit, personalise
from galenic.simulation.metamodel import Metamodel, metamodel_of
from galenic.simulation.objective import objective_of
from galenic.simulation.rollout import means, patterns
from galenic.simulation.series import read_series
from galenic.simulation.twin import index_of, scales

if TYPE_CHECKING:
    from galenic.tasks.control import Config

_TRAINED = ("neural", "fraction", "open_loop")
# Fitting and held-out seeds of a run lie in blocks of their own.
_BLOCK = 1_000_000
# Of the rate through the metamodel: gradients on the twin are noisy.
_ON_TWIN = 0.25


class Job:
    """What a run of the task holds; nothing is fitted before :meth:`fit`.

    Attributes:
        twin: That is steered.
        policy: What steers it.
        objective: J.
        model: The fitted metamodel, of the patient where there is one; None where none was needed.
        calls: Runs of the twin that fitting took.
        history: J of every step of training.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.twin = open_twin(config.data, config.rules)
        self.series = None
        if config.patient is not None:
            self.series = read_series(Path(config.patient), self.twin)
        self.policy = self._policy()
        self.objective = objective_of(
            self.twin,
            config.targets,
            alive=tuple(config.alive),
            high=self.policy.high,
            late=config.late,
            control_weight=config.control_weight,
            penalty=config.penalty,
        )
        self.model: Metamodel | None = None
        self.calls = 0
        self.history: list[float] = []

    @property
    def held(self) -> list[int]:
        """Seeds that nothing is fitted on."""
        first = (2 * self.config.seed + 1) * _BLOCK
        return list(range(first, first + self.config.held))

    @property
    def seen(self) -> list[int]:
        """Seeds that something was fitted on."""
        return self._seeds(0, self.calls)

    def _seeds(self, first: int, count: int) -> list[int]:
        start = 2 * self.config.seed * _BLOCK + first
        return list(range(start, start + count))

    def fit(self) -> None:
        """Train or search the controller within the budget."""
        if self.config.controller in _TRAINED:
            self._train()
        elif self.config.controller in ("constant", "pid", "cma_es"):
            self._search()
        self.run.log({"event": "fitted", "model_calls": self.calls})

    # Gradients ----------------------------------------------------------------------------

    def _train(self) -> None:
        config, refine = self.config, self.config.route == "straight_through"
        self.model = self._metamodel(config.budget // 2 if refine else config.budget)
        start = self.twin.reset(self.seen).mean(0, keepdim=True)
        self.history = train.through_metamodel(
            self.model,
            self.policy,
            self.objective,
            start,
            steps=config.steps,
            epochs=config.epochs,
            lr=config.lr,
        )
        epochs = (config.budget - self.calls) // config.runs
        if refine and epochs:
            seeds = self._seeds(self.calls, epochs * config.runs)
            self.history += train.through_hard_model(
                self.twin,
                self.model,
                self.policy,
                self.objective,
                seeds,
                steps=config.steps,
                epochs=epochs,
                lr=_ON_TWIN * config.lr,
            )
            self.calls += len(seeds)

    def _metamodel(self, budget: int) -> Metamodel:
        config = self.config
        each = budget // config.patterns
        if each < 1:
            raise ConfigError(
                f"{budget} runs of the twin do not cover {config.patterns} patterns.",
                where="budget",
                expected=f"at least {config.patterns}, and twice that with route=straight_through",
            )
        draws = generator(config.seed, "patterns")
        u = patterns(self.policy, config.patterns, config.steps, draws)
        self.calls = each * config.patterns
        model = fit(metamodel_of(self.twin, config.family), means(self.twin, u, self.seen))
        model.save(self.run.path / "metamodel.json")
        if self.series is None:
            return model
        own = personalise(model, self.series)
        own.save(self.run.path / "personal.json")
        return own

    # Search -------------------------------------------------------------------------------

    def _search(self) -> None:
        config = self.config
        trials = config.budget // config.runs
        seeds = self._seeds(0, config.runs)

        def cost() -> float:
            return search.cost_on_twin(self.twin, self.policy, self.objective, seeds, config.steps)

        if isinstance(self.policy, Fraction):
            tried = search.best_constant(self.policy, cost, trials)
        else:
            tried = search.evolve(self.policy, cost, trials, seed=config.seed)
        # Every trial runs the same seeds again: what is compared is the control alone.
        self.calls = tried * config.runs

    def _policy(self) -> Policy:
        config, controls, limits = self.config, self.twin.controls, self.config.limits
        names = [control.name for control in controls]
        for name, limit in limits.items():
            index_of(name, names, "limits")
            most = controls[names.index(name)].high
            if not 0 < limit <= most:
                raise ConfigError(
                    f"The limit of '{name}' is {limit:g}.",
                    where="limits",
                    expected=f"above 0, up to {most:g} {controls[names.index(name)].unit}",
                )
        if config.controller == "none":
            return NoControl(controls, limits)
        if config.controller in ("fraction", "constant"):
            return Fraction(controls, limits)
        if config.controller == "open_loop":
            return OpenLoop(controls, limits, config.steps)
        if config.controller == "pid":
            return self._pid()
        return Neural(
            controls,
            limits,
            scale=scales(self.twin),
            steps=config.steps,
            hidden=config.hidden,
            draws=generator(config.seed, "network"),
        )

    def _pid(self) -> PID:
        watched, target = next(iter(self.config.targets.items()))
        place = index_of(watched, [s.name for s in self.twin.states], "targets")
        scale = self.twin.states[place].scale
        return PID(self.twin.controls, self.config.limits, state=place, target=target, scale=scale)
