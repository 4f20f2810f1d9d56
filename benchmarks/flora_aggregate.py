"""Stacking the adapters of up to 1,000 clients, against peft's own way of adding adapters up."""

from __future__ import annotations

import time
import warnings
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.harness import alternate, write_result
from galenic.core.meters import Meter
from galenic.federation.aggregate import aggregate, shares
from galenic.federation.update import Update

WIDTH, RANK, LAYERS = 768, 8, 4
FEW, MANY = 250, 1000
PEERS = 100
PEER = {"name": "peft add_weighted_adapter(combination_type='cat')", "version": version("peft")}


def updates(clients: int) -> list[Update]:
    """One a client: random factors of a few layers."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for client in range(clients):
        state = {}
        for layer in range(LAYERS):
            name = f"base_model.model.{layer}.lora_"
            state[f"{name}A.weight"] = torch.randn(RANK, WIDTH, generator=draw)
            state[f"{name}B.weight"] = torch.randn(WIDTH, RANK, generator=draw)
        made.append(Update(f"{client:04d}", 1 + client % 7, state, RANK, 2.0, "base"))
    return made


def peer_model(given: list[Update]) -> Any:
    """A network that holds all of them as adapters of peft."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=[str(layer) for layer in range(LAYERS)]
    )
    layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    model = get_peft_model(torch.nn.Sequential(*layers), config, given[0].client)
    for update in given[1:]:
        model.add_adapter(update.client, config)
    for update in given:
        set_peft_model_state_dict(model, dict(update.state), adapter_name=update.client)
    return model


def largest_gap(model: Any, given: list[Update]) -> float:
    """Between both products, over all layers."""
    stack, worst = aggregate(given), 0.0
    for layer in range(LAYERS):
        a, b = (stack.state[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
        theirs = model.base_model.model[layer].get_delta_weight("all")
        worst = max(worst, float((b @ a - theirs).abs().max()))
    return worst


def seconds(given: list[Update]) -> float:
    """Of one aggregation."""
    started = time.perf_counter()
    aggregate(given)
    return time.perf_counter() - started


def grown_mb(given: list[Update]) -> float:
    """Growth of the resident memory while they are put together."""
    with Meter(interval=0.002) as meter:
        kept = aggregate(given)
    assert kept.rank == RANK * len(given)
    return meter.host_mb


def against_peft() -> None:
    """Time of the same stack, ours and theirs."""
    given = updates(PEERS)
    model, weights = peer_model(given), shares(given)
    names = [update.client for update in given]

    def peer() -> float:
        if "all" in model.peft_config:
            model.delete_adapter("all")
        started = time.perf_counter()
        model.add_weighted_adapter(names, weights, "all", combination_type="cat")
        return time.perf_counter() - started

    times = alternate(lambda: seconds(given), peer)
    gap = largest_gap(model, given)
    assert gap < 1e-4, f"the products differ by {gap}"
    write_result(
        name="flora_aggregate", unit="s", times=times, peer=PEER,
        reach="at most 1.0", met=lambda ratio: ratio <= 1.0,
        same_result=f"products of {PEERS} clients, largest difference {gap:.1e}",
    )  # fmt: skip


def with_more_clients() -> None:
    """Time and memory of four times as many clients."""
    few, many = updates(FEW), updates(MANY)
    bound = 1.25 * MANY / FEW
    for name, unit, times in (
        ("flora_linear_time", "s", alternate(lambda: seconds(many), lambda: seconds(few))),
        ("flora_linear_memory", "MiB", alternate(lambda: grown_mb(many), lambda: grown_mb(few))),
    ):
        write_result(
            name=name, unit=unit, times=times,
            peer={"name": f"ours with {FEW} clients", "version": "this"},
            reach=f"at most {bound:g}, linear and a quarter", met=lambda ratio: ratio <= bound,
            same_result=f"{MANY} clients of rank {RANK}: {MANY / FEW:g} times the sum of ranks",
            module="flora_aggregate",
        )  # fmt: skip


def main() -> None:
    """Time against peft; time and memory against fewer clients."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    against_peft()
    with_more_clients()


if __name__ == "__main__":
    main()
