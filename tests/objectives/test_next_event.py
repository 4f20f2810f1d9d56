"""The next token of a history, against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from galenic.models.mamba import EventMamba, StreamEmbedding, accelerate
from galenic.objectives import next_event
from galenic.objectives.next_event import NextEvent

VOCABULARY = 20


def objective() -> NextEvent:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    model = EventMamba(
        accelerate(MambaForCausalLM(config)), StreamEmbedding(16, waves=4, dropout=0)
    )
    return NextEvent(model, model.decoder)


def batch(lengths: tuple[int, ...] = (9, 5)) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shape = (len(lengths), max(lengths))
    made = {
        name: torch.randint(1, high, shape, generator=draw)
        for name, high in {
            "input_ids": VOCABULARY, "types": 9, "ages": 80, "times": 100, "segments": 3,
            "positions": 6,
        }.items()
    }  # fmt: skip
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return {**{k: v * mask for k, v in made.items()}, "attention_mask": mask.long()}


def test_the_loss_is_that_of_each_history_alone() -> None:
    net, both = objective(), batch()
    total, count = 0.0, 0
    with torch.no_grad():
        for row, length in enumerate((9, 5)):
            alone = {k: v[row : row + 1, :length] for k, v in both.items()}
            ids = alone["input_ids"][0]
            hidden = net.network(**alone).last_hidden_state[0]
            for t in range(length - 1):
                total -= float(net.decoder(hidden[t]).log_softmax(-1)[ids[t + 1]])
                count += 1
        assert net(**both)["loss"].item() == pytest.approx(total / count, rel=1e-5)


def test_sums_of_each_history_are_told() -> None:
    net, both = objective(), batch()
    with torch.no_grad():
        found = net(**both)
        for row, length in enumerate((9, 5)):
            alone = net(**{k: v[row : row + 1, :length] for k, v in both.items()})
            assert found["tokens"][row] == length - 1 == alone["tokens"]
            assert found["nll"][row].item() == pytest.approx(alone["loss"].item() * (length - 1))
            hidden = net.network(**both).last_hidden_state[row, : length - 1]
            likeliest = net.decoder(hidden).argmax(-1)
            assert found["hits"][row] == (likeliest == both["input_ids"][row, 1:length]).sum()


def test_padding_changes_neither_loss_nor_gradient() -> None:
    results = []
    for fill in (0, 2):
        net, both = objective(), batch()
        pads = both["attention_mask"] == 0
        for key in both.keys() - {"attention_mask"}:
            both[key] = both[key].masked_fill(pads, fill)
        loss = net(**both)["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_left_padding_is_neither_read_nor_predicted() -> None:
    seen: list[int] = []

    class Decoder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    net, both = objective(), batch()
    net.decoder = Decoder(16, VOCABULARY)
    flipped = {k: v.flip(1) for k, v in both.items()}
    net(**flipped)
    assert seen == [8 + 4]


def test_without_a_mask_every_token_counts() -> None:
    net, both = objective(), batch((7, 7))
    mask = both.pop("attention_mask")
    assert torch.equal(net(**both)["loss"], net(**both, attention_mask=mask)["loss"])


def test_a_decoder_that_knows_nothing_costs_log_of_the_vocabulary() -> None:
    net = objective()
    net.decoder = nn.Linear(16, VOCABULARY)
    nn.init.zeros_(net.decoder.weight)
    nn.init.zeros_(net.decoder.bias)
    assert net(**batch())["loss"].item() == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_histories_of_one_token_cost_nothing() -> None:
    net = objective()
    loss = net(**batch((1, 1)))["loss"]
    loss.backward()
    assert loss.item() == 0


def test_every_parameter_gets_a_gradient() -> None:
    net = objective()
    net(**batch())["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("at_once", [1, 5, 12])
def test_pieces_of_tokens_give_what_all_at_once_give(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    results = []
    for size in (1000, at_once):
        monkeypatch.setattr(next_event, "AT_ONCE", size)
        net = objective()
        found = net(**batch())
        found["loss"].backward()
        results.append([*found.values(), *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_nothing_to_predict_costs_nothing() -> None:
    net, one = objective(), batch((1,))
    found = net(**one)
    found["loss"].backward()
    assert found["loss"] == 0 and found["tokens"].tolist() == [0]
