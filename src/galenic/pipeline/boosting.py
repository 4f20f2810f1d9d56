"""Gradient boosting by scikit-learn, planted into a head of this house."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from galenic.core.config import Config
from galenic.core.progress import tell
from galenic.models.trees import Forest, TreesHead

Array = np.ndarray[Any, np.dtype[Any]]
# Nodes of a tree, and the logit that it adds to.
Tree = tuple[Array, int]
# Below the others by so much is the logit of a class that training never showed.
UNSEEN = -14.0
# Values from which on threads share the work.
SHARED = 2_000_000


class TreesConfig(Config):
    """Named as scikit-learn's HistGradientBoosting names them, with its defaults."""

    max_iter: int = Field(100, ge=1, description="Rounds: trees a logit.")
    learning_rate: float = Field(0.1, gt=0)
    max_leaf_nodes: int = Field(31, ge=2)
    min_samples_leaf: int = Field(20, ge=1, description="Fewer where labels are few.")
    l2_regularization: float = Field(0.0, ge=0)


def grow(
    kind: str,
    features: Array,
    targets: Array,
    outputs: int,
    *,
    config: TreesConfig,
    seed: int,
    weights: Array | None = None,
) -> TreesHead:
    """Trees on the features of training samples, for any kind of label.

    Args:
        kind: Of the label.
        features: [n, F], NaN where something is unknown.
        targets: Codes [n] of classes or grades; 0 and 1 [n] (binary), with NaN for unknown [n, C]
            (multilabel); numbers [n] (continuous), in the unit of the logits.
        outputs: Number of logits.
        config: Of the trees.
        seed: Of the trees.
        weights: Of every target, in the shape of `targets`; None for all alike.
    """
    settings = {**config.model_dump(), "early_stopping": False, "random_state": seed}
    trees: list[Tree] = []
    baseline = np.zeros(outputs)
    if kind == "continuous":
        with _threads(features):
            model = HistGradientBoostingRegressor(**settings).fit(features, targets, weights)
        trees, baseline = _trees_of(model, [0]), np.ravel(model._baseline_prediction)
    elif kind in ("multiclass", "ordinal"):
        trees, baseline = _classes(features, targets, outputs, settings, weights)
    else:
        by_column = None if weights is None else weights.reshape(len(targets), -1)
        for place, column in enumerate(targets.reshape(len(targets), -1).T):
            known = ~np.isnan(column.astype(float))
            if not known.any():
                continue
            own = None if by_column is None else by_column[known, place]
            found, ends = _classes(features[known], column[known].astype(int), 2, settings, own)
            trees += [(nodes, place) for nodes, _ in found]
            baseline[place] = ends[1] - ends[0]
    if all(len(nodes) == 1 for nodes, _ in trees):
        tell(
            f"No tree divides the {len(features)} training samples: head.trees.min_samples_leaf="
            f"{config.min_samples_leaf} is too many for them."
        )
    return TreesHead(_forest(trees, baseline))


def _classes(
    features: Array, codes: Array, outputs: int, settings: dict[str, Any], weights: Array | None
) -> tuple[list[Tree], Array]:
    """Trees and baseline [outputs] whose softmax is the probability of each class."""
    baseline = np.full(outputs, UNSEEN)
    seen = np.unique(codes)
    baseline[seen] = 0
    if len(seen) == 1:
        return [], baseline
    with _threads(features):
        model = HistGradientBoostingClassifier(**settings).fit(features, codes, weights)
    # Of two classes the second alone has trees.
    places = seen[1:] if len(seen) == 2 else seen
    baseline[places] = np.ravel(model._baseline_prediction)
    return _trees_of(model, places.tolist()), baseline


def _threads(features: Array) -> AbstractContextManager[Any]:
    """One thread where the work of a node is less than what it costs to share it."""
    return threadpool_limits(1, user_api="openmp") if features.size < SHARED else nullcontext()


def _trees_of(
    model: HistGradientBoostingClassifier | HistGradientBoostingRegressor, places: list[int]
) -> list[Tree]:
    # Not public, but what converters of scikit-learn's models read as well.
    rounds = model._predictors
    return [(tree.nodes, place) for one in rounds for tree, place in zip(one, places, strict=True)]


def _forest(trees: list[Tree], baseline: Array) -> Forest:
    sizes = [len(nodes) for nodes, _ in trees]
    starts = np.cumsum([0, *sizes[:-1]]) if trees else np.zeros(0)
    nodes = np.concatenate([nodes for nodes, _ in trees]) if trees else None

    def part(name: str, kind: type) -> torch.Tensor:
        return torch.from_numpy(np.zeros(0, kind) if nodes is None else nodes[name].astype(kind))

    leaf, own = part("is_leaf", bool), torch.arange(sum(sizes))
    shift = torch.from_numpy(np.repeat(starts, sizes).astype(np.int64))
    return Forest(
        feature=part("feature_idx", np.int64),
        threshold=part("num_threshold", np.float64),
        unknown_left=part("missing_go_to_left", bool),
        left=torch.where(leaf, own, part("left", np.int64) + shift),
        right=torch.where(leaf, own, part("right", np.int64) + shift),
        value=part("value", np.float64),
        root=torch.from_numpy(starts.astype(np.int64)),
        output=torch.tensor([place for _, place in trees], dtype=torch.int64),
        baseline=torch.from_numpy(baseline.astype(np.float64)),
    )
