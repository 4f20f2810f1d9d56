"""Time of SparK's pass through ResNet-50, against the dense network on the same masked pixels."""

from __future__ import annotations

import time
from importlib.metadata import version

import torch
from torch import Tensor

from benchmarks.harness import alternate, write_result
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened
from galenic.objectives import pretraining
from galenic.objectives.pretraining.spark.objective import Spark
from galenic.objectives.pretraining.spark.sparse import Sparse

BATCH, SIDE = 4, 224


class Side:
    """One ResNet-50 under SparK, and a batch.

    Args:
        sparse: Whether the network is sparse, or sees zeros and is dense.
    """

    def __init__(self, sparse: bool) -> None:
        from transformers import ResNetConfig, ResNetModel

        torch.manual_seed(0)
        spec = InputSpec("pixel_values", "image", 3, (SIDE, SIDE))
        backbone = Backbone(Opened(ResNetModel(ResNetConfig()), spec), "resnet-50", "auto")
        config = pretraining.parse({"method": "spark", "sparse": sparse})
        objective = pretraining.build(backbone, config, 0)
        assert isinstance(objective, Spark)
        self.objective = objective.train()
        self.draws = torch.arange(BATCH)
        self.pixels = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    def maps(self, active: Tensor) -> list[Tensor]:
        """Feature maps where these cells are active."""
        sparse = Sparse(active, self.objective.maps.sides)
        return list(self.objective.encoded(self.pixels, sparse).values())

    def encoder_ms(self) -> float:
        """A pass through the network and back, in ms of the processor."""
        self.objective.zero_grad()
        _, active = self.objective.masked(self.pixels, self.draws)
        started = time.process_time()
        torch.stack([found.square().mean() for found in self.maps(active)]).sum().backward()
        return 1000 * (time.process_time() - started)

    def step_ms(self) -> float:
        """A whole step, decoder and loss included."""
        self.objective.zero_grad()
        started = time.process_time()
        self.objective(self.draws, pixel_values=self.pixels)["loss"].backward()
        return 1000 * (time.process_time() - started)


def main() -> None:
    """The figure."""
    torch.set_num_threads(1)  # two threads on a shared machine measure the neighbours
    ours, peer = Side(sparse=True), Side(sparse=False)
    everything = torch.ones(BATCH, 1, *ours.objective.grid, dtype=torch.bool)
    with torch.no_grad():
        pairs = zip(ours.maps(everything), peer.maps(everything), strict=True)
        gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    assert gap < 1e-4, f"with all cells active the maps differ by {gap}"
    times = alternate(ours.encoder_ms, peer.encoder_ms)
    whole = alternate(ours.step_ms, peer.step_ms, warmup=0).ratio
    write_result(
        name="spark_step",
        unit=f"ms through ResNet-50 and back, batch {BATCH}",
        times=times,
        peer={"name": "the same network, dense", "version": f"torch {version('torch')}"},
        reach="at most 1.1",
        met=lambda ratio: ratio <= 1.1,
        same_result=(
            f"with all cells active, all maps agree to {gap:.1e} of their largest value; a whole "
            f"step with the decoder takes {whole:.3f}"
        ),
    )


if __name__ == "__main__":
    main()
