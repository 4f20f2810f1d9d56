"""How far the inputs of patched layers moved: closed forms, padding, memory, and what is left as it was."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from galenic.core.errors import ConfigError, WeightsError
from galenic.merging.patches import Patch, Probe, activation_drift, activations
from galenic.models.attention import even
from galenic.models.delta import state_of

TARGETS = ["first.weight", "second.weight"]
DRAW = torch.Generator().manual_seed(0)


class Net(nn.Module):
    """Two layers; the input of the second is what the first gives."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.first.weight.data = weight.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def batches(*sizes: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(size, 4, generator=draw)} for size in sizes]


def rotated(weight: Tensor) -> Tensor:
    """Outputs turned by a right angle, in pairs."""
    turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]])
    return turn @ weight


WEIGHT = torch.randn(4, 4, generator=DRAW)


@pytest.mark.parametrize(
    ("new", "drift", "cosine"),
    [
        (WEIGHT, 0.0, 1.0),
        (1.5 * WEIGHT, 0.5, 1.0),
        (-WEIGHT, 2.0, -1.0),
        (rotated(WEIGHT), 2**0.5, 0.0),
    ],
    ids=["same", "scaled", "opposite", "rotated"],
)
def test_drift_and_cosine_have_their_closed_forms(new: Tensor, drift: float, cosine: float) -> None:
    first, second = activation_drift(TARGETS, Net(WEIGHT), Net(new), batches(3, 5))
    # What comes in before anything has moved is the same.
    assert (first.name, first.drift, first.cosine) == ("first", 0, pytest.approx(1))
    assert second.name == "second"
    assert second.drift == pytest.approx(drift, abs=1e-6)
    assert second.cosine == pytest.approx(cosine, abs=1e-6)


def test_sums_over_batches_are_those_over_all_rows_at_once() -> None:
    other, parts = torch.randn(4, 4, generator=DRAW), batches(1, 7, 4)
    x = torch.cat([part["x"] for part in parts]).double().numpy()
    old, new = (x @ w.double().numpy().T for w in (WEIGHT, other))
    (row,) = activation_drift(["second.weight"], Net(WEIGHT), Net(other), iter(parts))
    assert row.drift == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
    both = np.linalg.norm(old) * np.linalg.norm(new)
    assert row.cosine == pytest.approx((old * new).sum() / both, rel=1e-5)


def test_one_batch_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Tensor]] = []
    add = activations._Sums.add

    def watched(self: Any, layer: str, old: Tensor, new: Tensor) -> None:
        seen.extend(weakref.ref(x) for x in (old, new))
        add(self, layer, old, new)

    def parts() -> Iterator[dict[str, Tensor]]:
        for part in batches(2, 2, 2):
            assert not [ref for ref in seen if ref() is not None]
            yield part

    monkeypatch.setattr(activations._Sums, "add", watched)
    activation_drift(TARGETS, Net(WEIGHT), Net(WEIGHT), parts())
    assert len(seen) == 12


def test_networks_are_left_as_they_were() -> None:
    old, new = Net(WEIGHT), Net(2 * WEIGHT)
    old.train()
    new.first.eval()
    modes = [part.training for net in (old, new) for part in net.modules()]
    kept = copy.deepcopy((old.state_dict(), new.state_dict()))
    grads: list[bool] = []
    handle = new.second.register_forward_hook(lambda *found: grads.append(found[2].requires_grad))
    activation_drift(TARGETS, old, new, batches(3))
    handle.remove()
    assert grads == [False]
    with pytest.raises(RuntimeError):
        activation_drift(TARGETS, old, new, [{"x": torch.zeros(2, 3)}])
    parts = [part for net in (old, new) for part in net.modules()]
    assert [part.training for part in parts] == modes
    assert not any(part._forward_pre_hooks for part in parts)
    for before, net in zip(kept, (old, new), strict=True):
        assert all(torch.equal(value, before[n]) for n, value in net.state_dict().items())


def test_a_layer_that_is_not_called_is_told_and_one_of_another_shape_named() -> None:
    row = activation_drift(["head.weight"], Net(WEIGHT), Net(WEIGHT), batches(2))[0]
    assert (row.name, row.drift, row.cosine) == ("head", None, None)

    class Shorter(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x[:1]))

    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(self.first(x)))

    for other in (Shorter(WEIGHT), Twice(WEIGHT)):
        with pytest.raises(WeightsError, match="'first' read"):
            activation_drift(TARGETS, Net(WEIGHT), other, batches(2))
        with pytest.raises(WeightsError, match="'first' read"):
            activation_drift(TARGETS, other, Net(WEIGHT), batches(2))
    twice = activation_drift(["first.weight"], Twice(WEIGHT), Twice(2 * WEIGHT), batches(2))[0]
    # Both calls count: the first saw no drift, the second twice its input.
    assert 0 < (twice.drift or 0) < 1


def bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**shape, intermediate_size=24, vocab_size=30)
    return BertModel(config, add_pooling_layer=False).eval()


def test_padding_is_not_counted_and_a_prefix_is_found() -> None:
    old, new = bert(), bert()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=DRAW)
    names = [f"encoder.layer.{i}.attention.self.query.weight" for i in range(2)]
    ids = torch.randint(1, 30, (2, 9), generator=DRAW)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    whole = [
        {"input_ids": row[:length][None], "attention_mask": torch.ones(1, length).long()}
        for row, length in zip(ids, (9, 4), strict=True)
    ]
    padded = activation_drift(names, old, new, [{"input_ids": ids, "attention_mask": mask}])
    alone = activation_drift([f"bert.{name}" for name in names], old, new, whole)
    for first, second in zip(padded, alone, strict=True):
        assert second.name == f"bert.{first.name}"
        assert first.drift == pytest.approx(second.drift, rel=1e-4)
        assert (first.drift or 0) > 0
    counted = activation_drift(names, old, new, [{"input_ids": ids}])
    assert counted[1].drift != pytest.approx(padded[1].drift, rel=1e-4)


def test_a_check_tells_the_layers_of_the_matrices_it_changes(tmp_path: Path) -> None:
    old, new, tuned = bert(), bert(), bert()
    # As a folder is opened.
    even(old)
    even(new)
    query = "encoder.layer.1.attention.self.query"
    with torch.no_grad():
        new.embeddings.word_embeddings.weight.mul_(1.3)
        tuned.get_submodule(query).weight += 0.1
        tuned.encoder.layer[0].output.LayerNorm.weight += 0.1
    patch = Patch.from_checkpoints(old, tuned)
    probe = Probe(old, [{"input_ids": torch.arange(1, 9)[None]}])
    before = copy.deepcopy(state_of(new))
    known = patch.check(new, old, probe=probe)
    assert [row.name for row in known.activations] == [query]
    assert 0 < (known.activations[0].drift or 0) < 1
    assert known.drift == 0
    assert all(torch.equal(value, before[n]) for n, value in state_of(new).items())
    # A folder is opened to read.
    new.save_pretrained(tmp_path / "new")
    assert patch.check(tmp_path / "new", old, probe=probe).activations == known.activations
    with pytest.raises(ConfigError, match="read no text"):
        patch.check(state_of(new), old, probe=probe)
    assert patch.check(new, old).activations == ()
