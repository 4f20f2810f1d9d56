"""Networks that read histories, what they write, and what an answer leans on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.models.mamba import EventMamba, Sizes, build
from galenic.models.mamba.attribution import integrated_gradients
from galenic.models.mamba.sampling import nucleus
from galenic.objectives.prompted_event import PromptedEvent

VOCABULARY = 30
SMALL = Sizes(layers=2, width=32, state=4, waves=4, visits=8, dropout=0)
KINDS: tuple[Literal["mamba", "transformer"], ...] = ("mamba", "transformer")


def made(kind: Literal["mamba", "transformer"]) -> EventMamba:
    torch.manual_seed(0)
    return build(kind, SMALL, VOCABULARY).eval()


def histories(length: int = 12, rows: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    highs = {
        "input_ids": VOCABULARY,
        "types": 9,
        "ages": 80,
        "times": 100,
        "segments": 3,
        "positions": 12,
    }
    return {n: torch.randint(1, h, (rows, length), generator=draw) for n, h in highs.items()}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_later_token_changes_nothing_before_it(kind: Literal["mamba", "transformer"]) -> None:
    network, batch = made(kind), histories()
    before = network(**batch).last_hidden_state
    for name in batch:
        changed = {**batch, name: batch[name].clone()}
        changed[name][:, 7] = 1 + changed[name][:, 7] % 2
        after = network(**changed).last_hidden_state
        assert torch.equal(before[:, :7], after[:, :7])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_on_the_right_changes_no_other_output(
    kind: Literal["mamba", "transformer"],
) -> None:
    network, batch = made(kind), histories()
    alone = network(**batch).last_hidden_state
    padded = {name: nn.functional.pad(values, (0, 5)) for name, values in batch.items()}
    mask = (torch.arange(17) < 12).long().expand(2, -1)
    together = network(**padded, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(together[:, :12], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_step_by_step_is_as_all_at_once(kind: Literal["mamba", "transformer"]) -> None:
    network, batch = made(kind), histories()
    whole, past, steps = network(**batch).last_hidden_state, None, []
    for place in range(12):
        one = {name: values[:, place : place + 1] for name, values in batch.items()}
        read = network(**one, past=past, use_cache=True)
        past = read.past
        steps.append(read.last_hidden_state)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


def test_a_transformer_has_as_many_parameters() -> None:
    sizes = Sizes(layers=4, width=256)
    counts = [sum(p.numel() for p in build(kind, sizes, 10).parameters()) for kind in KINDS]
    assert 0.85 < counts[0] / counts[1] < 1.15


def test_the_defaults_are_those_of_the_paper() -> None:
    sizes = Sizes()
    assert (sizes.layers, sizes.width, sizes.state, sizes.kernel, sizes.expand) == (
        32,
        768,
        16,
        4,
        2,
    )


# Starting from other weights --------------------------------------------------------------


def saved(folder: Path) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(3)
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    network = MambaForCausalLM(config)
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("tokens", [VOCABULARY, VOCABULARY + 7])
def test_weights_of_a_mamba_are_taken_over(tokens: int, tmp_path: Path) -> None:
    theirs = dict(saved(tmp_path).named_parameters())
    network = build("mamba", SMALL, tokens, str(tmp_path)).network
    same = tokens == VOCABULARY
    for name, tensor in network.named_parameters():
        if "embeddings" not in name:
            assert torch.equal(tensor, theirs[name]), name
        else:
            assert len(tensor) == tokens and torch.equal(tensor[:9], theirs[name][:9]) == same
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_what_is_no_mamba_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"could not be opened.*\n.*MambaForCausalLM"):
        build("mamba", SMALL, VOCABULARY, str(tmp_path / "nothing"))
    saved(tmp_path)
    with pytest.raises(BackboneError, match="transformer does not start"):
        build("transformer", SMALL, VOCABULARY, str(tmp_path))


# Drawing ----------------------------------------------------------------------------------


def logits() -> Tensor:
    return torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def shares(top_p: float, temperature: float = 1.0, count: int = 4000) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    many = logits().expand(count, -1)
    drawn = nucleus(many, temperature=temperature, top_p=top_p, draws=draws)
    return torch.bincount(drawn, minlength=4) / count


def test_temperature_zero_is_the_likeliest() -> None:
    draw = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nucleus(draw, temperature=0, top_p=0.5), draw.argmax(-1))


def test_top_p_of_one_draws_from_all() -> None:
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05])
    torch.testing.assert_close(shares(1.0), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.5, 1), (0.6, 2), (0.85, 3), (0.99, 4)])
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(top_p: float, kept: int) -> None:
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05])
    expected[kept:] = 0
    torch.testing.assert_close(shares(top_p), expected / expected.sum(), atol=0.03, rtol=0)


def test_temperature_sharpens_and_the_generator_decides() -> None:
    assert shares(1.0, temperature=0.5)[0] > 0.65
    assert torch.equal(shares(1.0), shares(1.0))


def test_what_is_barred_is_never_drawn() -> None:
    barred = logits().masked_fill(torch.tensor([True, False, False, False]), -torch.inf)
    drawn = nucleus(barred.expand(500, -1), temperature=1, top_p=1, draws=torch.Generator())
    assert not (drawn == 0).any()


# Attribution ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up_to_the_answer(kind: Literal["mamba", "transformer"]) -> None:
    network = made(kind)
    objective = PromptedEvent(network, 32).train()
    batch = {**histories(rows=1), "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    embedding = network.network.get_input_embeddings()
    found = integrated_gradients(objective, embedding, batch, steps=200)
    assert objective.training and all(p.grad is None for p in objective.parameters())
    objective.eval()
    with torch.no_grad():
        answer = objective(**batch)["logits"]
        handle = embedding.register_forward_hook(lambda _, __, output: output * 0)
        nothing = objective(**batch)["logits"]
        handle.remove()
    torch.testing.assert_close(found.sum()[None], answer - nothing, rtol=1e-2, atol=1e-4)


def test_a_linear_answer_is_shared_exactly() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"logits": (self.embedding(input_ids) @ self.weight).sum(1)}

    net, ids = Linear(), torch.tensor([[0, 3, 4]])
    found = integrated_gradients(net, net.embedding, {"input_ids": ids}, steps=1)
    torch.testing.assert_close(found, (net.embedding(ids) @ net.weight)[0].detach())
