"""The baseline of `forecast`: a bag of codes, its penalty chosen on validation."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from galenic.objectives.bag_of_codes import BagOfCodes
from galenic.pipeline.histories import TaskRows, collate

# Weights of the data against the penalty.
STRENGTHS = (0.01, 0.1, 1.0)


def fit_bag(train: TaskRows, held: TaskRows, tokens: int) -> BagOfCodes:
    """A bag of codes fitted to `train`, by the strength that suits `held` best."""
    bag = BagOfCodes(tokens)
    features = [_counts(bag, rows) for rows in (train, held)]
    best = float("inf")
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=2000).fit(features[0], train.labels)
        loss = log_loss(held.labels, model.predict_proba(features[1])[:, 1], labels=[0, 1])
        if loss < best:
            best = loss
            with torch.no_grad():
                bag.weight.copy_(torch.from_numpy(model.coef_[0]))
                bag.bias.copy_(torch.tensor(model.intercept_[0]))
    return bag


@torch.no_grad()
def _counts(bag: BagOfCodes, rows: TaskRows) -> object:
    batch = collate([rows[place] for place in range(len(rows))])
    return bag.counts(batch["input_ids"], batch["attention_mask"]).numpy()
