"""Codes with their streams: the equation, and what a network over them promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from galenic.core.errors import DataError
from galenic.models.mamba import EventMamba, StreamEmbedding, accelerate
from galenic.models.mamba.streams import Past

LENGTH, WIDTH = 12, 16


def model(dropout: float = 0.1) -> EventMamba:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=30, hidden_size=WIDTH, num_hidden_layers=2, state_size=4)
    network = accelerate(MambaForCausalLM(config))
    return EventMamba(network, StreamEmbedding(WIDTH, waves=4, dropout=dropout)).eval()


def history(length: int = LENGTH, batch: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)

    def ints(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (batch, length), generator=draw)

    return {
        "input_ids": ints(1, 30), "types": ints(0, 9), "ages": ints(20, 90),
        "times": ints(0, 300).cumsum(1), "segments": ints(0, 3), "positions": ints(1, 40),
    }  # fmt: skip


def read(network: EventMamba, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return network(**batch).last_hidden_state


def test_the_equation_token_by_token() -> None:
    streams = model().streams
    batch = history()
    codes = torch.randn(2, LENGTH, WIDTH)
    values = {key: value for key, value in batch.items() if key != "input_ids"}
    with torch.no_grad():
        found = streams(codes, **values)
        for b in range(2):
            for t in range(LENGTH):
                gap = batch["times"][b, t] - batch["times"][b, t - 1] if t else 0
                waves = [
                    torch.sin(wave.rate[0] * value + wave.phase[0])
                    for wave, value in ((streams.times, gap), (streams.ages, batch["ages"][b, t]))
                ]
                z = torch.tanh(
                    streams.join.weight @ torch.cat([codes[b, t], *waves]) + streams.join.bias
                )
                z = z + streams.types.weight[batch["types"][b, t]]
                z = z + streams.positions.weight[batch["positions"][b, t]]
                z = z + streams.segments.weight[batch["segments"][b, t]]
                expected = (z - z.mean()) / z.std(correction=0)
                torch.testing.assert_close(found[b, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * LENGTH, [7] + [1] * 5, [5, 7]])
def test_cached_pieces_equal_the_whole(pieces: list[int]) -> None:
    network, batch = model(), history()
    past: Past | None = None
    found = []
    cuts = {key: value.split(pieces, dim=1) for key, value in batch.items()}
    with torch.no_grad():
        for index in range(len(pieces)):
            piece = {key: parts[index] for key, parts in cuts.items()}
            out = network(**piece, past=past, use_cache=True)
            past = out.past
            found.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(found, 1), read(network, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stream", ["input_ids", "types", "ages", "times", "segments", "positions"])
def test_every_stream_is_read_and_none_ahead_of_time(stream: str) -> None:
    network, batch = model(), history()
    changed = dict(batch)
    changed[stream] = batch[stream].clone()
    changed[stream][:, 6] = (batch[stream][:, 6] + 1) % 3
    before, after = read(network, batch), read(network, changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6] != after[:, 6]).any()


def test_right_padding_changes_nothing_before_it() -> None:
    network, batch = model(), history()
    padded = {key: torch.nn.functional.pad(value, (0, 5)) for key, value in batch.items()}
    mask = torch.ones_like(padded["input_ids"])
    mask[:, LENGTH:] = 0
    longer = read(network, {**padded, "attention_mask": mask})
    torch.testing.assert_close(longer[:, :LENGTH], read(network, batch), rtol=1e-5, atol=1e-5)


def test_left_padding_changes_nothing_after_it() -> None:
    network, batch = model(), history()
    padded = {key: torch.nn.functional.pad(value, (5, 0)) for key, value in batch.items()}
    padded["times"][:, :5] = batch["times"][:, :1]
    mask = torch.ones_like(padded["input_ids"])
    mask[:, :5] = 0
    longer = read(network, {**padded, "attention_mask": mask})
    torch.testing.assert_close(longer[:, 5:], read(network, batch), rtol=1e-5, atol=1e-5)


def test_codes_come_from_the_table_of_the_network() -> None:
    network = model()
    names = [name for name, _ in network.streams.named_parameters()]
    assert not any("code" in name for name in names)
    assert network.decoder.weight is network.network.get_input_embeddings().weight


def test_visits_past_the_table_are_as_its_last() -> None:
    streams, batch = model().streams, history()
    codes = torch.randn(2, LENGTH, WIDTH)
    values = {key: value for key, value in batch.items() if key not in ("input_ids", "positions")}
    last = torch.full_like(batch["positions"], 511)
    assert torch.equal(
        streams(codes, positions=last + 200, **values), streams(codes, positions=last, **values)
    )


def test_dropout_is_drawn_in_training_only() -> None:
    network, batch = model(dropout=0.5), history()
    assert torch.equal(read(network, batch), read(network, batch))
    network.train()
    assert not torch.equal(read(network, batch), read(network, batch))


def test_16_bit_autocast_runs_both_ways() -> None:
    network, batch = model(), history()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(**batch).last_hidden_state
    out.float().square().mean().backward()
    free = list(network.streams.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in free)


def test_a_stream_of_another_length_is_named() -> None:
    network, batch = model(), history()
    batch["ages"] = batch["ages"][:, :-1]
    with pytest.raises(DataError, match="'ages'"):
        network(**batch)
