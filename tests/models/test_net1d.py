"""Net1D: lengths, padding, shortcuts, sizes, and checkpoints in the published layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from galenic.core.errors import BackboneError, DataError, WeightsError
from galenic.core.inputs import EcgSpec
from galenic.models.anatomy import anatomy, depths
from galenic.models.backbone import open_backbone
from galenic.models.ecg import Net1D, Net1DConfig
from galenic.models.ecg.net1d import SameConv1d, shortcut

NARROW = Net1DConfig(
    leads=3, stem=8, widths=(8, 16, 16, 24, 24, 32, 32), blocks=(2, 1, 1, 1, 1, 2, 1), group_width=8
)
SPEC = "builtin:net1d?stem=8&widths=[8,16,16,24,24,32,32]&blocks=[1,1,1,1,1,1,1]&group_width=8&kernel=8"


def closed_form(config: Net1DConfig, classes: int) -> int:
    """Parameters, layer by layer."""
    kernel, group = config.kernel, config.group_width
    total = config.stem * config.leads * kernel + config.stem
    inputs = config.stem
    for width, count in zip(config.widths, config.blocks, strict=True):
        for _ in range(count):
            total += inputs * width + width  # narrow
            total += width * group * kernel + width  # grouped
            total += width * width + width  # narrow
            total += width * (width // 2) + width // 2 + (width // 2) * width + width  # by channel
            inputs = width
    return total + inputs * classes + classes


def plain_same(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    """The convolution, one output sample and channel at a time."""
    batch, _, length = x.shape
    outputs, per_group, kernel = weight.shape
    count = -(-length // stride)
    missing = max(0, (count - 1) * stride + kernel - length)
    padded = torch.zeros(batch, x.shape[1], length + missing)
    padded[:, :, missing // 2 : missing // 2 + length] = x
    result = torch.zeros(batch, outputs, count)
    for place in range(count):
        window = padded[:, :, place * stride : place * stride + kernel]
        for channel in range(outputs):
            first = channel // (outputs // groups) * per_group
            part = window[:, first : first + per_group]
            result[:, channel, place] = (part * weight[channel]).sum((1, 2)) + bias[channel]
    return result


@pytest.fixture(scope="module")
def narrow() -> Net1D:
    torch.manual_seed(0)
    return Net1D(NARROW).eval()


def published(network: Net1D, classes: int) -> dict[str, Tensor]:
    """Its weights as a published checkpoint has them, batch norms that were never used included."""
    state = dict(network.state_dict())
    norms = [("first_bn", network.config.stem)]
    for name, module in network.named_modules():
        if hasattr(module, "se_fc1"):
            inputs = module.conv1.conv.in_channels
            width = module.conv1.conv.out_channels
            norms += [(f"{name}.bn1", inputs), (f"{name}.bn2", width), (f"{name}.bn3", width)]
    for name, width in norms:
        state |= {f"{name}.{k}": v for k, v in torch.nn.BatchNorm1d(width).state_dict().items()}
    torch.manual_seed(1)
    dense = torch.nn.Linear(network.config.widths[-1], classes)
    return state | {f"dense.{name}": tensor for name, tensor in dense.state_dict().items()}


def plain_network(state: dict[str, Tensor], config: Net1DConfig, x: Tensor) -> Tensor:
    """The mean feature, written out over the published names."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        missing = max(0, (-(-x.shape[-1] // stride) - 1) * stride + weight.shape[-1] - x.shape[-1])
        x = functional.pad(x, (missing // 2, missing - missing // 2))
        return functional.conv1d(x, weight, bias, stride, groups=groups)

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = swish(conv("first_conv", x, stride=2))
    for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
        for block in range(count):
            at, stride = f"stage_list.{stage}.block_list.{block}", 2 if block == 0 else 1
            out = conv(f"{at}.conv1", x if stage == block == 0 else swish(x))
            out = conv(f"{at}.conv2", swish(out), stride, width // config.group_width)
            out = conv(f"{at}.conv3", swish(out))
            scale = torch.sigmoid(
                linear(f"{at}.se_fc2", swish(linear(f"{at}.se_fc1", out.mean(-1))))
            )
            around = torch.zeros(x.shape[0], width, -(-x.shape[-1] // stride))
            left = (width - x.shape[1]) // 2
            pooled = x if stride == 1 else functional.max_pool1d(functional.pad(x, (0, 1)), 2)
            around[:, left : left + x.shape[1]] = pooled
            x = out * scale[..., None] + around
    return x.mean(-1)


@pytest.mark.parametrize("length", [700, 701])
def test_the_network_is_the_one_written_out(narrow: Net1D, length: int) -> None:
    x = torch.randn(2, 3, length)
    with torch.no_grad():
        wanted = plain_network(narrow.state_dict(), NARROW, x)
        torch.testing.assert_close(narrow(x).mean(dim=1), wanted, atol=1e-5, rtol=1e-5)


def test_published_sizes_have_the_published_count() -> None:
    with torch.device("meta"):
        network = Net1D()
    body = sum(p.numel() for p in network.parameters())
    assert body + 1024 * 150 + 150 == closed_form(Net1DConfig(), 150) == 30_752_646


@pytest.mark.parametrize("leads", [1, 3, 12])
def test_count_follows_the_closed_form(leads: int) -> None:
    config = Net1DConfig(leads, NARROW.stem, NARROW.widths, NARROW.blocks, 7, 4)
    body = sum(p.numel() for p in Net1D(config).parameters())
    assert body + NARROW.widths[-1] * 5 + 5 == closed_form(config, 5)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 3000))
def test_length_is_halved_and_rounded_up_eight_times(length: int) -> None:
    network = Net1D(NARROW)
    wanted = length
    for _ in range(8):
        wanted = (wanted + 1) // 2
    with torch.no_grad():
        assert network(torch.zeros(1, 3, length)).shape == (1, wanted, 32)


def test_ten_seconds_give_twenty_features(narrow: Net1D) -> None:
    with torch.no_grad():
        assert narrow(torch.zeros(2, 3, 5000)).shape == (2, 20, 32)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 33])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(16, 2, 1), (16, 1, 2), (5, 2, 4), (1, 1, 1)])  # fmt: skip
def test_same_convolution_is_that_of_the_padded_input(
    length: int, kernel: int, stride: int, groups: int
) -> None:
    torch.manual_seed(length)
    layer = SameConv1d(4, 8, kernel, stride, groups)
    x = torch.randn(2, 4, length)
    with torch.no_grad():
        wanted = plain_same(x, layer.conv.weight, layer.conv.bias, stride, groups)
        torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [4, 7, 8])
def test_shortcut_keeps_the_old_channels_in_the_middle(channels: int) -> None:
    x = torch.randn(2, 4, 9)
    left = (channels - 4) // 2
    wide = shortcut(x, 1, channels)
    assert torch.equal(wide[:, left : left + 4], x)
    assert int(wide.count_nonzero()) == x.numel()


@pytest.mark.parametrize("length", [8, 9])
def test_shortcut_takes_the_larger_of_two_and_zero_beyond_the_end(length: int) -> None:
    x = torch.randn(2, 3, length)
    even = functional.pad(x, (0, length % 2))
    wanted = torch.maximum(even[..., ::2], even[..., 1::2])
    assert torch.equal(shortcut(x, 2, 3), wanted)


def test_a_sample_does_not_depend_on_its_batch(narrow: Net1D) -> None:
    x = torch.randn(5, 3, 600)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        whole = narrow.train()(x)
        torch.testing.assert_close(narrow(x[order]), whole[order], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(narrow(x[2:3]), whole[2:3], atol=1e-6, rtol=1e-5)
        assert torch.equal(narrow.eval()(x), whole)
    assert not any("Norm" in type(m).__name__ or "Dropout" in type(m).__name__ for m in narrow.modules())  # fmt: skip


def test_every_parameter_gets_a_gradient(narrow: Net1D) -> None:
    narrow(torch.randn(2, 3, 600)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in narrow.parameters())
    narrow.zero_grad()


def test_stages_are_its_blocks(narrow: Net1D) -> None:
    parts = anatomy(narrow)
    assert parts.blocks == tuple(f"stage_list.{place}" for place in range(7))
    assert (parts.family, parts.stem, parts.norms) == ("convolutional", "first_conv.conv", ())
    found = depths(narrow)
    assert found["first_conv.conv.weight"] == 0
    assert found["stage_list.6.block_list.0.se_fc2.bias"] == 7


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_published_checkpoint_opens_with_its_head(
    narrow: Net1D, tmp_path: Path, suffix: str
) -> None:
    state, path = published(narrow, 4), tmp_path / f"net.{suffix}"
    (tmp_path / "tasks.txt").write_text("NORMAL ECG\nATRIAL FIBRILLATION\nBLOCKED\nACUTE\n")
    if suffix == "safetensors":
        save_file(state, path)
    else:
        parallel = {f"module.{name}": tensor for name, tensor in state.items()}
        # Training scripts keep NumPy's numbers beside the weights.
        torch.save({"state_dict": parallel, "step": 3, "val_auroc": np.float64(0.9)}, path)
    backbone = open_backbone(str(path), modality="ecg").eval()
    assert (backbone.width, backbone.inputs.channels) == (32, 3)
    x = torch.randn(2, 3, 700)
    with torch.no_grad():
        feature = narrow(x).mean(dim=1)
        torch.testing.assert_close(backbone(signal=x).pooled, feature)
        wanted = functional.linear(feature, state["dense.weight"], state["dense.bias"])
        assert backbone.head is not None
        chosen = backbone.head.of(["blocked", "Normal ECG"])
        torch.testing.assert_close(chosen(feature), wanted[:, [2, 0]])
    with pytest.raises(DataError, match="ATRIAL FIBRILLATION"):
        backbone.head.of(["atrial fibrilation"])
    random = open_backbone(f"{path}#random")
    assert (random.width, random.head) == (32, None)
    assert random.fingerprint != backbone.fingerprint


def test_a_head_of_the_published_size_has_the_published_names(
    narrow: Net1D, tmp_path: Path
) -> None:
    save_file(published(narrow, 150), tmp_path / "net.safetensors")
    head = open_backbone(str(tmp_path / "net.safetensors")).head
    assert head is not None
    assert (head.labels[0], head.labels[5], head.labels[149]) == (
        "ABNORMAL ECG", "ATRIAL FIBRILLATION", "MULTIFOCAL ATRIAL TACHYCARDIA",
    )  # fmt: skip
    assert len(set(head.labels)) == 150
    save_file(published(narrow, 7), tmp_path / "net.safetensors")
    nameless = open_backbone(str(tmp_path / "net.safetensors")).head
    assert nameless is not None
    with pytest.raises(WeightsError, match=r"tasks\.txt"):
        nameless.of(["ABNORMAL ECG"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("stage_list.2.block_list.0.se_fc1.weight"), "se_fc1"),
        (lambda s: s.pop("first_conv.conv.weight"), "no layout"),
        (lambda s: s["stage_list.1.block_list.0.bn2.running_mean"].add_(1), "batch norms"),
        (
            lambda s: s.update({"stage_list.0.block_list.0.conv9.conv.weight": torch.ones(2)}),
            "conv9",
        ),
    ],
)
def test_another_network_is_refused(narrow: Net1D, tmp_path: Path, change, words: str) -> None:
    state = {name: tensor.clone() for name, tensor in published(narrow, 4).items()}
    change(state)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=words):
        open_backbone(str(tmp_path / "net.safetensors"))


def test_a_checkpoint_that_would_run_code_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    (tmp_path / "net.pth").write_bytes(pickle.dumps({"state_dict": Attack()}))
    torch.save({"state_dict": {"a": Attack()}}, tmp_path / "zip.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    for name in ("net.pth", "zip.pth", "cut.pth"):
        with pytest.raises(WeightsError):
            open_backbone(str(tmp_path / name))
    assert not marker.exists()


@pytest.mark.parametrize(("channels", "leads"), [(None, 12), (12, 12), (15, 12), (1, 1), (3, 3)])
def test_a_builtin_network_reads_the_leads_that_are_there(channels: int | None, leads: int) -> None:
    backbone = open_backbone(SPEC, modality="ecg", channels=channels)
    assert backbone.inputs.channels == leads
    assert backbone.inputs.ecg is not None
    assert len(backbone.inputs.ecg.leads) == (12 if leads == 12 else 0)
    assert backbone(**backbone.example(2)).pooled.shape == (2, 32)


def test_leads_are_asked_for_by_name(narrow: Net1D, tmp_path: Path) -> None:
    backbone = open_backbone(SPEC, modality="ecg", channels=12, ecg=EcgSpec(leads=("V2",)))
    assert backbone.inputs.channels == 1
    assert backbone.inputs.ecg == EcgSpec(leads=("V2",), preset="ecgfounder")
    save_file(published(narrow, 4), tmp_path / "net.safetensors")
    with pytest.raises(BackboneError, match="reads 3 leads; 1"):
        open_backbone(str(tmp_path / "net.safetensors"), ecg=EcgSpec(leads=("I",)))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("width=[8]", "widths"),
        ("widths=8", "refused"),
        ("widths=[8", "cannot be read"),
        ("kernel=0", "below 1"),
        ("widths=[8,16]", "2 widths and 7"),
        ("widths=[16,8]&blocks=[1,1]&stem=8", "widths"),
        ("widths=[20,40]&blocks=[1,1]&stem=8", "multiples"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(query: str, words: str) -> None:
    with pytest.raises(BackboneError, match=words):
        open_backbone(f"builtin:net1d?{query}")
