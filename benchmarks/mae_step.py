"""Time and memory of a pre-training step of a masked autoencoder, against transformers' ViTMAE.

ViT-S/16 with the paper's decoder (width 512, 2 blocks, 16 heads), 90 % hidden, batch 16.
"""

from __future__ import annotations

import gc
import time
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Times, alternate, apart, write_result
from benchmarks.steps import BATCH, SIDE, STEPS
from galenic.core.meters import Meter
from galenic.models.backbone import open_backbone
from galenic.objectives import pretraining
from galenic.objectives.pretraining import _masking as masking

PEER = {
    "name": "transformers ViTMAEForPreTraining, SDPA",
    "version": f"transformers {version('transformers')}",
}
RATIO, WIDTH, DEPTH, HEADS, PATCHES = 0.9, 512, 2, 16, 196
DRAWS = torch.arange(BATCH)
# Ours, theirs; of a decoder block.
BLOCK = {"norm1": "layernorm_before", "out": "attention.o_proj", "norm2": "layernorm_after",
         "up": "mlp.fc1", "down": "mlp.fc2"}  # fmt: skip
OUTSIDE = {"embed": "decoder_embed", "norm": "decoder_norm", "predict": "decoder_pred"}


class Step:
    """A model that gives a loss, its optimiser, and one batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        free = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(free, lr=1e-4, fused=True)
        draw = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(BATCH, 3, SIDE, SIDE, generator=draw)

    def loss(self) -> Tensor:
        """Of the batch, with the masks of `DRAWS`."""
        raise NotImplementedError

    def step(self) -> None:
        """Forward, backward, update."""
        self.optimiser.zero_grad()
        self.loss().backward()
        self.optimiser.step()

    def step_ms(self) -> float:
        """Mean time of a step, in ms of the processor."""
        started = time.process_time()
        for _ in range(STEPS):
            self.step()
        return 1000 * (time.process_time() - started) / STEPS


class Ours(Step):
    """galenic's."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        decoder = {"dim": WIDTH, "depth": DEPTH, "heads": HEADS}
        config = pretraining.parse({"method": "mae", "mask_ratio": RATIO, "decoder": decoder})
        super().__init__(pretraining.build(open_backbone("builtin:vit?size=small"), config, 0))

    def loss(self) -> Tensor:
        found: Tensor = self.model(DRAWS, pixel_values=self.pixels)["loss"]
        return found


class Peer(Step):
    """transformers' own."""

    def __init__(self) -> None:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        torch.manual_seed(0)
        config = ViTMAEConfig(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
            decoder_hidden_size=WIDTH, decoder_num_hidden_layers=DEPTH,
            decoder_num_attention_heads=HEADS, decoder_intermediate_size=4 * WIDTH,
            image_size=SIDE, patch_size=16, mask_ratio=RATIO, layer_norm_eps=1e-6,
            attn_implementation="sdpa",
        )  # fmt: skip
        super().__init__(ViTMAEForPreTraining(config))

    def loss(self) -> Tensor:
        noise = masking.noise(DRAWS, PATCHES)
        found: Tensor = self.model(pixel_values=self.pixels, noise=noise).loss
        return found


@torch.no_grad()
def carry_over(ours: Ours, peer: Peer) -> None:
    """Give the peer our weights; the norms of ours get its epsilon."""
    mine: Any = ours.model
    theirs: Any = peer.model
    theirs.vit.load_state_dict(mine.encoder.network.state_dict(), strict=True)
    state = {f"decoder.{new}.{leaf}": getattr(getattr(mine.decoder, old), leaf)
             for old, new in OUTSIDE.items() for leaf in ("weight", "bias")}  # fmt: skip
    state["decoder.mask_token"] = mine.decoder.mask_token.expand(1, 1, -1)
    # A fresh peer has zeros there.
    positions = nn.functional.pad(mine.decoder.positions, (0, 0, 1, 0))
    state["decoder.decoder_pos_embed"] = positions[None]
    for place, block in enumerate(mine.decoder.blocks):
        stem = f"decoder.decoder_layers.{place}"
        for leaf in ("weight", "bias"):
            for old, new in BLOCK.items():
                state[f"{stem}.{new}.{leaf}"] = getattr(getattr(block, old), leaf)
            for part, tensor in zip("qkv", getattr(block.qkv, leaf).chunk(3), strict=True):
                state[f"{stem}.attention.{part}_proj.{leaf}"] = tensor
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra and all(name.startswith("vit.") for name in missing)
    for module in mine.encoder.network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def same_loss(ours: Ours, peer: Peer) -> tuple[float, float]:
    """Differences of loss and of the gradient of the patch embedding, which is the last to come."""
    carry_over(ours, peer)
    mine, theirs = ours.loss(), peer.loss()
    mine.backward()
    theirs.backward()
    names = ("encoder.network.", "vit.")
    first, second = (
        side.model.get_parameter(f"{name}embeddings.patch_embeddings.projection.weight").grad
        for side, name in zip((ours, peer), names, strict=True)
    )
    assert first is not None and second is not None
    loss = float((mine - theirs).detach().abs())
    return loss, float((first - second).abs().max() / second.abs().max())


SIDES = {"ours": Ours, "peer": Peer}


def peak_mb(side: str) -> float:
    """Growth of the resident memory over the weights and moments while steps are made, in MiB."""
    torch.set_num_threads(1)
    step = SIDES[side]()
    gc.collect()
    with Meter(interval=0.002) as meter:
        step.step()
        step.step()
    return meter.host_mb


def main() -> None:
    """Both figures."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    ours, peer = Ours(), Peer()
    loss, gradient = same_loss(ours, peer)
    assert loss < 1e-5 and gradient < 1e-3, f"losses differ by {loss}, gradients by {gradient}"
    same = (
        f"same weights and masks: losses differ by {loss:.1e}, gradients of the patch embedding by "
        f"{gradient:.1e} of the largest"
    )
    times = alternate(ours.step_ms, peer.step_ms)
    write_result(
        name="mae_step", unit=f"ms a step of batch {BATCH}", times=times, peer=PEER,
        reach="at most 1.0", met=lambda ratio: ratio <= 1.0, same_result=same,
    )  # fmt: skip
    del ours, peer
    sides = {name: [apart(peak_mb, name) for _ in range(5)] for name in SIDES}
    write_result(
        name="mae_memory", unit="MiB of resident memory that two steps add",
        times=Times(sides["ours"], sides["peer"]), peer=PEER, reach="at most 0.9",
        met=lambda ratio: ratio <= 0.9, same_result=same, module="mae_step",
    )  # fmt: skip


if __name__ == "__main__":
    main()
