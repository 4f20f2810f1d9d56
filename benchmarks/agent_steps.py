"""Steps of agents: wolves, sheep and grass in torch, all runs at once, against Mesa's own model."""

from __future__ import annotations

import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.harness import alternate, write_result
from galenic.simulation.twin import MesaTwin
from galenic.simulation.wolf_sheep import HEADINGS, WolfSheep, WolfSheepRules

RULES = WolfSheepRules(width=40, height=40, sheep=100, wolves=50)
TICKS, RUNS, CHECKED_RUNS, CHECKED_TICKS = 100, 1024, 24, 60
COUNTED = ("grass", "sheep", "wolves")


def mesa_model(seed: int) -> Any:
    """Mesa's own wolf-sheep model, with animals that walk by headings as ours do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mesa.examples.advanced.wolf_sheep import agents
        from mesa.examples.advanced.wolf_sheep.model import WolfSheep as Model
        from mesa.experimental.devs import ABMSimulator

        # Mesa's animals look for food and flee; looking costs it time, walking does not.
        agents.Sheep.move = agents.Wolf.move = _walk
        simulator = ABMSimulator()
        model = Model(
            width=RULES.width,
            height=RULES.height,
            initial_sheep=RULES.sheep,
            initial_wolves=RULES.wolves,
            sheep_reproduce=RULES.sheep_breed,
            wolf_reproduce=RULES.wolf_breed,
            wolf_gain_from_food=RULES.wolf_gain,
            sheep_gain_from_food=RULES.sheep_gain,
            grass_regrowth_time=RULES.regrowth,
            seed=seed,
            simulator=simulator,
        )
    model.kinds = (agents.GrassPatch, agents.Sheep, agents.Wolf)
    return model


def _walk(animal: Any) -> None:
    draw = animal.random
    bits = draw.randrange(8)
    turn = (bits == 0) - (bits == 1)
    heading = (getattr(animal, "heading", draw.randrange(8)) + turn) % 8
    (x, y), (dx, dy) = animal.cell.coordinate, HEADINGS[heading]
    animal.heading = heading
    animal.cell = animal.model.grid[(x + dx) % RULES.width, (y + dy) % RULES.height]


def observe(model: Any) -> list[float]:
    """Counts of grass, sheep and wolves of a Mesa model."""
    grass, sheep, wolves = (model.agents_by_type[kind] for kind in model.kinds)
    return [sum(patch.fully_grown for patch in grass), len(sheep), len(wolves)]


def mesa_seconds_a_step() -> float:
    """Seconds an agent's step takes in Mesa."""
    model = mesa_model(0)
    steps, started = 0, time.perf_counter()
    for _ in range(TICKS):
        steps += sum(len(model.agents_by_type[kind]) for kind in model.kinds[1:])
        model.simulator.run_for(1)
    return (time.perf_counter() - started) / steps


def our_seconds_a_step() -> float:
    """Seconds an agent's step takes here."""
    twin = WolfSheep(RULES)
    nothing = torch.zeros(RUNS, 3)
    twin.reset(range(RUNS))
    started = time.perf_counter()
    for _ in range(TICKS):
        twin.step(nothing)
    return (time.perf_counter() - started) / twin.steps_of_agents


def same() -> str:
    """Mean counts of both over time: their 99 % intervals of the difference hold zero."""
    ours = WolfSheep(RULES)
    peer = MesaTwin(
        mesa_model,
        observe,
        lambda model, u: None,
        name="mesa",
        states=ours.states,
        controls=ours.controls,
        dt=1.0,
        time_unit="tick",
        advance=lambda model: model.simulator.run_for(1),
    )
    seen = []
    for twin, runs in ((ours, 10 * CHECKED_RUNS), (peer, CHECKED_RUNS)):
        twin.reset(range(runs))
        nothing = torch.zeros(runs, 3)
        counts = [twin.step(nothing).numpy() for _ in range(CHECKED_TICKS)]
        seen.append(np.stack(counts[19::20]))  # [moments, runs, states]
    # Bonferroni over moments and states.
    level = 1 - 0.01 / (seen[0].shape[0] * len(COUNTED))
    far = student.ppf((1 + level) / 2, CHECKED_RUNS - 1)
    gap = seen[0].mean(1) - seen[1].mean(1)
    doubt = np.sqrt(sum(part.var(1, ddof=1) / part.shape[1] for part in seen))
    worst = float(np.abs(gap / doubt).max())
    assert worst < far, f"means differ by {worst:.1f} standard errors: {gap}"
    return (
        f"means of {', '.join(COUNTED)} after 20, 40 and 60 ticks over {CHECKED_RUNS} Mesa runs and "
        f"{10 * CHECKED_RUNS} of ours: at most {worst:.1f} standard errors apart ({far:.1f} allowed)"
    )


def main() -> None:
    """Measure, check that both sides follow the same rules, write the result."""
    torch.set_num_threads(1)  # as Mesa
    write_result(
        name="agent_steps",
        unit="s/agent-step",
        times=alternate(our_seconds_a_step, mesa_seconds_a_step, rounds=5, warmup=1),
        peer={"name": "mesa wolf-sheep", "version": version("mesa")},
        reach="at most 1/100",
        met=lambda ratio: ratio <= 1 / 100,
        same_result=same(),
    )


if __name__ == "__main__":
    main()
