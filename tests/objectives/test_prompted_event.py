"""Answers to tasks, from the state at the last token or from counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from galenic.objectives.bag_of_codes import BagOfCodes
from galenic.objectives.prompted_event import PromptedEvent


class Read(NamedTuple):
    last_hidden_state: Tensor


class Table(nn.Module):
    """States that tell their token and their place."""

    def forward(self, input_ids: Tensor, **_: Any) -> Read:
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return Read(torch.stack([input_ids, places], -1).float())


def test_the_answer_is_read_off_the_last_token_that_is_no_padding() -> None:
    torch.manual_seed(0)
    net = PromptedEvent(Table(), 2).eval()
    ids = torch.tensor([[7, 3, 7, 0, 0], [8, 1, 2, 3, 8]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = net(ids, mask, torch.tensor([1, 0]))
    pair = net.head(torch.tensor([[7.0, 2.0], [8.0, 4.0]]))
    torch.testing.assert_close(found["logits"], pair[:, 1] - pair[:, 0])
    wanted = torch.stack([found["logits"][0], -found["logits"][1]]).sigmoid().log()
    torch.testing.assert_close(found["loss"], -wanted.mean())


def test_without_labels_there_is_no_loss() -> None:
    net = PromptedEvent(Table(), 2)
    assert set(net(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3))) == {"logits"}


@pytest.mark.parametrize("pads", [0, 3])
def test_a_bag_counts_each_token_and_no_padding(pads: int) -> None:
    bag = BagOfCodes(4)
    ids = torch.tensor([[1, 3, 3, 3, *[0] * pads]])
    mask = torch.tensor([[1] * 4 + [0] * pads])
    expected = torch.tensor([[0, 1.0, 0, 3.0]]).log1p()
    torch.testing.assert_close(bag.counts(ids, mask), expected)
    with torch.no_grad():
        bag.weight.copy_(torch.tensor([5.0, 1.0, 5.0, 2.0]))
    torch.testing.assert_close(bag(ids, mask)["logits"], expected @ bag.weight)
