"""The kernel of sparse tuners: selection, gathered gradients, exact masks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from galenic.tuners import _rebuild, _selection
from galenic.tuners._selection import select
from galenic.tuners._sparse import SparseValues, sparse_values, vector


def reference(
    scores: dict[str, Tensor], k: int, largest: bool, drop_zeros: bool
) -> dict[str, list[int]]:
    """Sort everything; ties go to the first."""
    every = [
        (-float(value) if largest else float(value), order, place, name)
        for order, (name, tensor) in enumerate(scores.items())
        for place, value in enumerate(tensor.reshape(-1).double())
        if not (drop_zeros and value == 0)
    ]
    found: dict[str, list[int]] = {}
    for _, _, place, name in sorted(every)[:k]:
        found.setdefault(name, []).append(place)
    return {name: sorted(places) for name, places in found.items()}


TENSORS = st.lists(
    st.lists(st.sampled_from([0.0, 1e-30, 0.5, 0.5000001, 1.0, 3.0, 1e20]), max_size=12),
    min_size=1,
    max_size=4,
)


@given(TENSORS, st.integers(0, 20), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_selection_is_a_sort(
    lists: list[list[float]], k: int, largest: bool, drop_zeros: bool, double: bool
) -> None:
    kind = torch.float64 if double else torch.float32
    scores = {str(i): torch.tensor(values, dtype=kind) for i, values in enumerate(lists)}
    found = select(
        {n: (lambda t=t: t) for n, t in scores.items()}, k, largest=largest, drop_zeros=drop_zeros
    )
    expected = reference(scores, k, largest, drop_zeros)
    assert {n: i.tolist() for n, i in found.index.items()} == expected
    if found.count:
        taken = torch.cat([scores[n][i] for n, i in found.index.items()])
        assert found.threshold == float(taken.min() if largest else taken.max())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_selection_in_blocks_of_many_values(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_selection, "_BLOCK", 100)
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 17, 11, generator=draw).abs().to(kind)
    allowed = torch.rand(values.shape, generator=draw) < 0.5
    found = select({"a": lambda: values}, 50, allowed={"a": allowed})
    flat = np.where(allowed.numpy(), values.double().numpy(), -1.0).reshape(-1)
    expected = np.sort(np.argsort(-flat, kind="stable")[:50])
    assert found.index["a"].tolist() == expected.tolist()


def test_fewer_changed_than_were_asked_for() -> None:
    # `>= threshold` with a threshold of zero would take all hundred.
    scores = torch.zeros(100)
    scores[[3, 50]] = 1.0
    assert select({"a": lambda: scores}, 20).index["a"].tolist() == [3, 50]


def test_a_score_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="'bad'"):
        select({"good": lambda: torch.ones(2), "bad": lambda: torch.tensor([1.0, torch.nan])}, 1)


# Gradients --------------------------------------------------------------------------------


class Holder(nn.Module):
    """Reads a list of parameters that no module of its own is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(6), torch.randn(6)])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[0] + self.scales[1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Tied(nn.Module):
    """A table that is read on the way in and on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.abs() * 10).long().sum(-1) % 7
        return self.out(self.words(ids).tanh())


class Map(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.unsqueeze(1)))


NETWORKS: dict[str, Any] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6)),
    "twice": lambda: (lambda layer: nn.Sequential(layer, nn.Tanh(), layer))(nn.Linear(6, 6)),
    "list": Holder,
    "attention": Attention,
    "lstm": Recurrent,
    "tied": Tied,
    "conv": Map,
    "encoder": lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = NETWORKS[request.param]()
    return built


def places(network: nn.Module, share: float = 0.4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    found = {}
    for name, parameter in network.named_parameters():
        chosen = (torch.rand(parameter.numel(), generator=draw) < share).nonzero().squeeze(1)
        if len(chosen):
            found[name] = chosen
    return found


def sparsified(network: nn.Module, share: float = 0.4) -> dict[str, SparseValues]:
    network.requires_grad_(False)
    return {n: SparseValues(network, n, i) for n, i in places(network, share).items()}


def loss(network: nn.Module, seed: int = 2) -> Tensor:
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return (network(x) - 0.3).square().mean()


def test_gathered_gradients_are_those_of_the_whole(network: nn.Module) -> None:
    plain = copy.deepcopy(network)
    loss(plain).backward()
    modules = sparsified(network)
    kept = dict(network.named_parameters())
    loss(network).backward()
    for name, module in modules.items():
        whole = plain.get_parameter(name).grad
        assert whole is not None
        assert module.values.grad is not None, name
        torch.testing.assert_close(
            module.values.grad.reshape(-1), whole.reshape(-1)[module.index], atol=1e-7, rtol=1e-5
        )
        assert network.get_parameter(name).grad is None
    assert all(value is kept[name] for name, value in network.named_parameters())


def test_only_chosen_entries_move_and_the_state_is_of_their_size(network: nn.Module) -> None:
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    modules = sparsified(network)
    free = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(free, lr=1e-2, weight_decay=0.1, amsgrad=True)
    sgd = torch.optim.SGD(free, lr=1e-3, momentum=0.9, weight_decay=0.1)
    for step in range(8):
        loss(network, step).backward()
        if step % 2:  # two batches a step
            for optimiser in (adam, sgd):
                optimiser.step()
            adam.zero_grad()
    count = sum(len(module.index) for module in modules.values())
    states = [t.numel() for s in adam.state.values() for t in s.values() if t.ndim]
    assert sum(states) == 3 * count
    for module in modules.values():
        module.flush()
    for name, before in start.items():
        after = network.get_parameter(name).detach()
        outside = torch.ones(before.numel(), dtype=torch.bool)
        if name in modules:
            outside[modules[name].index] = False
            inside = modules[name].index
            assert not torch.equal(after.reshape(-1)[inside], before.reshape(-1)[inside])
        assert torch.equal(after.reshape(-1)[outside], before.reshape(-1)[outside]), name


def test_all_entries_are_plain_fine_tuning() -> None:
    torch.manual_seed(0)
    plain = NETWORKS["mlp"]()
    network = copy.deepcopy(plain)
    modules = sparsified(network, share=2.0)
    for model in (plain, network):
        free = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in free if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in free if p.ndim == 1], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, lr=1e-2)
        for step in range(5):
            adam.zero_grad()
            loss(model, step).backward()
            adam.step()
    for name, module in modules.items():
        module.flush()
        assert torch.equal(network.get_parameter(name), plain.get_parameter(name)), name


def test_a_matrix_decays_and_a_vector_does_not() -> None:
    index = torch.tensor([0, 2])
    assert vector(torch.ones(3, 2), index).ndim == 2
    assert vector(torch.ones(3), index).ndim == 1
    half = vector(torch.ones(3, dtype=torch.bfloat16), index)
    assert half.dtype == torch.float32


def test_a_forward_that_fails_leaves_the_parameter_in_place() -> None:
    network = nn.Sequential(nn.Linear(6, 4))
    sparsified(network)
    weight = network[0].weight
    with pytest.raises(RuntimeError):
        network(torch.ones(1, 5))
    assert network[0].weight is weight
    assert not weight.requires_grad


def test_released_values_stay_and_the_network_is_plain(network: nn.Module) -> None:
    kinds = [type(module) for module in network.modules()]
    sparsified(network)
    with torch.no_grad():
        for module in sparse_values(network):
            module.values += 0.1
    expected = loss(network)
    for module in sparse_values(network):
        module.release()
    assert [type(module) for module in network.modules()] == kinds
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    torch.testing.assert_close(loss(network), expected)


def test_a_copy_is_a_network_of_its_own() -> None:
    network = NETWORKS["mlp"]()
    sparsified(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for module in sparse_values(twin):
            module.values += 1.0
    before = loss(network).detach()
    loss(twin).backward()
    assert torch.equal(loss(network), before)
    assert all(m.values.grad is None for m in sparse_values(network))
    assert all(m.values.grad is not None for m in sparse_values(twin))


# Saving less ------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU("tanh"), nn.SiLU()])
def test_an_activation_is_rebuilt_to_the_same_gradients(
    act: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 6))
    sparsified(network)
    calls = []

    def gradients() -> list[Tensor]:
        network.zero_grad()
        loss(network).backward()
        return [m.values.grad.clone() for m in sparse_values(network)]  # type: ignore[union-attr]

    for name, make in list(_rebuild._FUNCTIONS.items()):
        monkeypatch.setitem(
            _rebuild._FUNCTIONS, name, lambda node, make=make: calls.append(node) or make(node)
        )
    rebuilt = gradients()
    assert len(calls) == 1
    monkeypatch.setattr(_rebuild, "_FUNCTIONS", {})
    for ours, plain in zip(rebuilt, gradients(), strict=True):
        assert torch.equal(ours, plain)


def test_recomputation_decides_on_its_own_what_is_saved() -> None:
    torch.manual_seed(0)
    network = NETWORKS["mlp"]()
    sparsified(network)
    x = torch.randn(3, 6)
    network(x).square().mean().backward()
    plain = [m.values.grad.clone() for m in sparse_values(network)]
    network.zero_grad()
    output: Any = checkpoint(network, x, use_reentrant=False)
    output.square().mean().backward()
    for module, expected in zip(sparse_values(network), plain, strict=True):
        assert torch.equal(module.values.grad, expected)  # type: ignore[arg-type]
