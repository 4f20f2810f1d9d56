"""LT-SFT against its card: budget, masks, rewind, one global threshold, composition."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from galenic import launch, tuners
from galenic.core.errors import BackboneError, ConfigError, WeightsError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened
from galenic.models.delta import Delta, Sparse
from galenic.tuners._sparse import sparse_values
from galenic.tuners.composable_sft import Config, LotteryTicket
from galenic.tuners.composable_sft.placement import maskable_names
from galenic.tuners.composable_sft.ticket import require_ticket

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 50,
}  # fmt: skip
IDS = torch.arange(12).reshape(2, 6) + 5


class Task(nn.Module):
    """A small encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = BertModel(BertConfig(**SMALL), add_pooling_layer=False).eval()
        self.head = nn.Linear(32, 3)

    def loss(self, goal: int = 0) -> Tensor:
        logits = self.head(self.encoder(input_ids=IDS).last_hidden_state[:, 0])
        return nn.functional.cross_entropy(logits, torch.tensor([goal, 2]))


def train(task: Task, steps: int = 4, goal: int = 0, pull: Any = None) -> torch.optim.Optimizer:
    free = [p for p in task.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(free, lr=1e-2, weight_decay=0.1)
    for step in range(2 * steps):
        loss = task.loss(goal) if pull is None else task.loss(goal) + pull()
        (loss / 2).backward()
        if step % 2:
            adam.step()
            adam.zero_grad()
    return adam


def weights(network: nn.Module) -> dict[str, Tensor]:
    for module in sparse_values(network):
        module.flush()
    inner = [f"{n}." for n, m in network.named_modules() if m in sparse_values(network)]
    return {
        name: p.detach().clone()
        for name, p in network.named_parameters()
        if not any(name.startswith(prefix) for prefix in inner)
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {n: (after[n] != t).reshape(-1).nonzero().squeeze(1) for n, t in before.items()}
    return {name: index for name, index in found.items() if len(index)}


@pytest.mark.parametrize("k", [1, 100])
def test_only_k_entries_move_and_the_rest_is_the_start_bit_for_bit(k: int) -> None:
    task = Task()
    start = weights(task.encoder)
    ticket = LotteryTicket(task.encoder, k=k)
    train(task)
    assert sum(map(len, changed(start, weights(task.encoder)).values())) > 1000
    ticket.sparsify()
    assert not changed(start, weights(task.encoder)), "the sparse phase starts at the start"
    optimiser = train(task)
    moved = changed(start, weights(task.encoder))
    assert {n: i.tolist() for n, i in moved.items()} == {
        n: i.tolist() for n, i in ticket.chosen.items()
    }
    assert sum(map(len, moved.values())) == k
    states = [t for s in optimiser.state.values() for t in s.values() if t.ndim]
    head = sum(p.numel() for p in task.head.parameters())
    assert sum(t.numel() for t in states) == 2 * (k + head)
    assert ticket.delta().count() == k


def test_the_choice_is_the_largest_change_of_all_tensors_together() -> None:
    task = Task()
    ticket = LotteryTicket(task.encoder, k=50)
    start = weights(task.encoder)
    # Whatever a tensor changes by, one changes by a thousand times more than all others.
    draw = torch.Generator().manual_seed(3)
    loud = "encoder.layer.0.intermediate.dense.weight"
    with torch.no_grad():
        for name in ticket.names:
            size = 1.0 if name == loud else 1e-3
            weight = task.encoder.get_parameter(name)
            weight += size * torch.rand(weight.shape, generator=draw).add(0.1)
    gaps = (weights(task.encoder)[loud] - start[loud]).abs().reshape(-1)
    ticket.sparsify()
    assert set(ticket.chosen) == {loud}, "a choice a layer would take some of each"
    assert ticket.chosen[loud].tolist() == sorted(gaps.argsort(descending=True)[:50].tolist())


def test_norms_heads_and_tied_outputs_stay_frozen() -> None:
    network = BertForMaskedLM(BertConfig(**SMALL))
    names = maskable_names(network, "encoder", ["norm", "lm_head"])
    assert names
    assert not any("LayerNorm" in name or name.startswith("cls.") for name in names)
    # The table of words is the output embedding too.
    assert not any("word_embeddings" in name for name in names)
    assert any("position_embeddings" in name for name in names)
    only = maskable_names(network, r".*layer\.1\..*weight", ["norm", "attention"])
    assert set(only) == {
        "bert.encoder.layer.1.intermediate.dense.weight",
        "bert.encoder.layer.1.output.dense.weight",
    }
    with pytest.raises(BackboneError, match="matches no parameter"):
        maskable_names(network, "nothing", [])


def test_all_entries_are_plain_fine_tuning() -> None:
    plain, sparse = Task(), Task()
    names = maskable_names(plain.encoder, "encoder", [])
    plain.encoder.requires_grad_(False)
    for name in names:
        plain.encoder.get_parameter(name).requires_grad_(True)
    ticket = LotteryTicket(sparse.encoder, proportion=1.0, freeze=[], mask="magnitude")
    size = ticket.size
    # Entries of value zero count too, for a mask that is everything.
    ticket.mask = "random"
    ticket.sparsify()
    assert sum(map(len, ticket.chosen.values())) == size
    torch.testing.assert_close(plain.loss(), sparse.loss(), rtol=0, atol=0)
    for task in (plain, sparse):
        free = [p for p in task.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(free, lr=1e-3, weight_decay=0.1)
        for _ in range(4):
            adam.zero_grad()
            task.loss().backward()
            adam.step()
    ours = weights(sparse.encoder)
    for name, value in weights(plain.encoder).items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rounds", [2, 3])
def test_rounds_are_nested_and_end_with_k(rounds: int) -> None:
    task = Task()
    start = weights(task.encoder)
    config = Config(k=100, iterations=rounds)
    ticket = LotteryTicket(task.encoder, k=100)
    stages = ticket.hooks(config).stages
    assert [stage.rewind_head for stage in stages] == [False, True] * rounds
    assert len({stage.name for stage in stages}) == 2 * rounds
    known: set[tuple[str, int]] = set()
    for number, stage in enumerate(stages):
        before = weights(task.encoder)
        stage.begin()
        if number % 2 == 0:
            assert not changed(before, weights(task.encoder)), "a dense phase goes on"
            at_start = before
        else:
            assert not changed(at_start, weights(task.encoder)), "a sparse phase goes back"
            now = {(name, int(i)) for name, index in ticket.chosen.items() for i in index}
            assert known < now
            assert len(now) == (
                100 if number == 2 * rounds - 1 else 100 // rounds * (number // 2 + 1)
            )
            known = now
        train(task, 2, goal=number % 2)
    moved = changed(start, weights(task.encoder))
    assert {(n, int(i)) for n, index in moved.items() for i in index} == known
    delta = ticket.delta()
    assert delta.count() == 100
    fresh = Task().encoder
    for name, value in delta.applied(weights(fresh), check=False).items():
        assert torch.equal(value, weights(task.encoder)[name])


def test_every_round_has_something_to_choose() -> None:
    ticket = LotteryTicket(Task().encoder, k=3)
    with pytest.raises(ConfigError, match="5 rounds chooses one entry at least, and k is 3"):
        ticket.hooks(Config(k=3, iterations=5))
    assert len(ticket.hooks(Config(k=3, iterations=3)).stages) == 6


def test_the_pull_is_the_mean_distance_from_the_start() -> None:
    task = Task()
    start = weights(task.encoder)
    ticket = LotteryTicket(task.encoder, k=80)
    train(task)
    total = sum(
        float((value - start[name]).abs().sum().double())
        for name, value in weights(task.encoder).items()
        if name in ticket.names
    )
    assert ticket.pull(0.1, 9.0).item() == pytest.approx(0.1 * total / ticket.size, rel=1e-4)
    ticket.sparsify()
    train(task)
    total = sum(
        float((value - start[name]).abs().sum().double())
        for name, value in weights(task.encoder).items()
    )
    assert ticket.pull(9.0, 0.1).item() == pytest.approx(0.1 * total / ticket.size, rel=1e-4)
    ticket.pull(0.0, 1.0).backward()
    module = sparse_values(task.encoder)[0]
    first = start[module.swap.name].reshape(-1)[module.index]
    sign = (module.values.detach().reshape(-1) - first).sign()
    grad = module.values.grad
    assert grad is not None
    torch.testing.assert_close(grad.reshape(-1), sign / ticket.size)


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_other_masks_need_no_dense_phase(mask: str) -> None:
    task = Task()
    config = Config(k=60, mask=mask)
    ticket = LotteryTicket(task.encoder, k=60, mask=mask)
    (stage,) = ticket.hooks(config).stages
    stage.begin()
    assert sum(map(len, ticket.chosen.values())) == 60
    if mask == "magnitude":
        chosen = [
            value for n, i in ticket.chosen.items()
            for value in weights(task.encoder)[n].reshape(-1)[i].abs().tolist()
        ]  # fmt: skip
        every = torch.cat([weights(task.encoder)[n].abs().reshape(-1) for n in ticket.names])
        assert min(chosen) == float(every.topk(60).values.min())
    else:
        again = Task()
        other = LotteryTicket(again.encoder, k=60, mask=mask)
        other.sparsify()
        for name, index in ticket.chosen.items():
            assert torch.equal(other.chosen[name], index)


def test_too_large_a_budget_and_nothing_to_choose_are_errors() -> None:
    task = Task()
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in task.encoder.named_parameters()}
    with pytest.raises(ConfigError, match="k is"):
        LotteryTicket(task.encoder, k=10**7)
    for name, (value, trains) in before.items():
        parameter = task.encoder.get_parameter(name)
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == trains
    ticket = LotteryTicket(task.encoder, k=10)
    with pytest.raises(BackboneError, match="No weight changed"):
        ticket.sparsify()


def backbone() -> Backbone:
    torch.manual_seed(0)
    network = BertModel(BertConfig(**SMALL), add_pooling_layer=False)
    return Backbone(Opened(network, InputSpec("input_ids", "tokens", max_length=16)), "x", "auto")


def skill(path: Path, goal: float, on_top_of: Path | None = None) -> Backbone:
    """Train one skill through the hooks, and keep its delta."""
    model = backbone().eval()
    values = {"method": "composable_sft", "k": 200}
    if on_top_of is not None:
        values["on_top_of"] = str(on_top_of)
    config = tuners.parse_tuner(values)
    tuners.attach(model, config)
    for stage in tuners.hooks(model, config).stages:
        stage.begin()
        free = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(free, lr=1e-2)
        for _ in range(3):
            adam.zero_grad()
            (model(input_ids=IDS).pooled - torch.linspace(goal, 1, 32)).square().mean().backward()
            adam.step()
    tuners.save(model, config, path)
    return model


def test_two_skills_compose(tmp_path: Path) -> None:
    first, second = skill(tmp_path / "a", 1.0), skill(tmp_path / "b", -1.0)
    deltas = [Delta.load(tmp_path / name / "delta.safetensors") for name in ("a", "b")]
    assert all(isinstance(e, Sparse) for d in deltas for e in d.entries.values())
    plain = backbone()
    start = weights(plain.network)
    deltas[0].apply(plain.network)
    for name, value in weights(first.network).items():
        assert torch.equal(weights(plain.network)[name], value)
    deltas[1].apply(plain.network)
    deltas[0].revert(plain.network)
    for name, value in weights(second.network).items():
        assert torch.equal(weights(plain.network)[name], value)
    deltas[1].revert(plain.network)
    assert not changed(start, weights(plain.network))
    assert deltas[0].overlap(deltas[1]).both < 200


def test_a_task_is_trained_on_top_of_another_skill_and_moved_to_a_third(tmp_path: Path) -> None:
    skill(tmp_path / "source", 1.0)
    skill(tmp_path / "target", -1.0)
    files = {n: tmp_path / n / "delta.safetensors" for n in ("source", "target", "task")}
    tuned = skill(tmp_path / "task", 0.5, on_top_of=files["source"])
    deltas = {name: Delta.load(path) for name, path in files.items()}
    live = backbone()
    deltas["source"].apply(live.network)
    deltas["task"].apply(live.network)
    for name, value in weights(tuned.network).items():
        torch.testing.assert_close(weights(live.network)[name], value, atol=1e-6, rtol=0)
    deltas["source"].revert(live.network)
    deltas["target"].apply(live.network)
    both = (deltas["task"] + deltas["target"]).applied(weights(backbone().network), check=False)
    for name, value in weights(live.network).items():
        torch.testing.assert_close(both[name], value, atol=1e-6, rtol=0)
    again = backbone()
    config = tuners.parse_tuner(
        {"method": "composable_sft", "k": 200, "on_top_of": str(files["source"])}
    )
    tuners.load(again, config, tmp_path / "task")
    for name, value in weights(tuned.network).items():
        assert torch.equal(weights(again.network)[name], value)


def test_a_delta_of_another_base_is_not_built_upon(tmp_path: Path) -> None:
    skill(tmp_path / "source", 1.0)
    other = backbone()
    other.network.get_parameter("embeddings.word_embeddings.weight").data += 1
    with pytest.raises(WeightsError, match="another base"):
        LotteryTicket(other.network, k=5, on_top_of=tmp_path / "source" / "delta.safetensors")


def test_classify_rewinds_the_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The head of the sparse phase starts where that of the dense phase did."""
    from galenic.tasks import classify

    heads: list[dict[str, Tensor]] = []
    known = classify.fit

    def watched(objective: Any, *args: Any, **options: Any) -> Any:
        heads.append(copy.deepcopy(objective.head.state_dict()))
        ticket = require_ticket(objective.encoder.backbone.network)
        assert ticket.sparse == (len(heads) == 2)
        return known(objective, *args, **options)

    monkeypatch.setattr(classify, "fit", watched)
    run = launch.run("composable-sft", "sample:icd10", out=tmp_path, quick=True, seed=3)
    assert len(heads) == 2
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
    assert (run.path / "adapter" / "delta.safetensors").is_file()
    job, _ = classify.load(run)
    delta = Delta.load(run.path / "adapter" / "delta.safetensors")
    size = require_ticket(job.backbone.network).k
    assert 0 < delta.count() <= size


class Objective(nn.Module):
    """What the engine trains; falls over in a stage if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.task = Task()
        self.ticket = LotteryTicket(self.task.encoder, k=100)

    def forward(self, goal: Tensor) -> dict[str, Tensor]:
        return {"loss": self.task.loss(int(goal[0])) + self.ticket.pull(0.1, 0.1)}


@pytest.mark.parametrize("cut", ["dense", "sparse"])
def test_a_training_that_is_cut_off_goes_on_to_the_same_end(cut: str, tmp_path: Path) -> None:
    from galenic.core.schedule import Schedule
    from galenic.core.trainer import fit

    schedule = Schedule(epochs=1, batch_size=1, checkpoint_steps=2, lr=1e-3, weight_decay=0.1)

    def train(objective: Objective, folder: Path, stop: str = "", resume: bool = False) -> None:
        def after_step(done: int, _: int) -> None:
            if done == 3 and stage.name == stop:
                raise KeyboardInterrupt

        head: dict[str, Tensor] = {}
        for stage in objective.ticket.hooks(Config(k=100)).stages:
            if stage.rewind_head:
                objective.task.head.load_state_dict(head)
            head = copy.deepcopy(objective.task.head.state_dict())
            stage.begin()
            fit(
                objective, [{"goal": torch.tensor(n % 2)} for n in range(4)], schedule=schedule,
                collate=lambda rows: {"goal": torch.stack([row["goal"] for row in rows])},
                folder=folder / stage.name, seed=0, after_step=after_step, resume=resume,
            )  # fmt: skip

    whole, first, again = Objective(), Objective(), Objective()
    train(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(first, tmp_path / "cut", stop=cut)
    train(again, tmp_path / "cut", resume=True)
    expected, found = weights(whole.task), weights(again.task)
    assert whole.ticket.delta().count() == 100
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
