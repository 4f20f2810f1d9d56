"""Patches: exact where they go, nowhere else, back to the bit, and refused where they are none."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
)

from galenic.core.errors import ConfigError, WeightsError
from galenic.merging.patches import Patch, recovery
from galenic.merging.patches.fitting import Naming
from galenic.merging.patches.portability import FAR, drift_of
from galenic.merging.writing import Slot, header
from galenic.models.delta import Dense, LowRank, Sparse, state_of
from galenic.models.delta.entries import piece

WEIGHTS = "model.safetensors"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}


def bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(BertConfig(**SMALL), add_pooling_layer=False).eval()


def shaken(network: nn.Module, size: float, seed: int, only: str = "") -> nn.Module:
    """A copy whose tensors moved; `only` those whose name holds a text."""
    draw = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if only in name:
                parameter += size * torch.randn(parameter.shape, generator=draw)
    return moved


def tuned(base: nn.Module, folder: Path, seed: int = 3, **options: Any) -> PeftModel:
    """A LoRA on a copy of `base`, as if it were trained, saved to `folder`."""
    options.setdefault("target_modules", ["query", "value"])
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**options))
    model = shaken(model, 0.2, seed, "lora_")
    for module in model.modules():
        # What else trains: heads and biases.
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.data += 0.1
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An old base, two later versions of it, and a LoRA that was trained on the old one."""
    old = bert()
    for seed, name in enumerate(("old", "new", "newer")):
        shaken(old, 0.02 * seed, seed).save_pretrained(tmp_path / name)
    tuned(old, tmp_path / "adapter", r=4, lora_alpha=6)
    return tmp_path


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        name: value
        for part in folder.glob("*.safetensors")
        for name, value in load_file(part).items()
    }


def product(adapter: Path, layer: str, scale: float) -> np.ndarray[Any, Any]:
    """s B A by a triple loop."""
    found = load_file(adapter / "adapter_model.safetensors")
    a = found[f"base_model.model.{layer}.lora_A.weight"].double().numpy()
    b = found[f"base_model.model.{layer}.lora_B.weight"].double().numpy()
    result = np.zeros((len(b), a.shape[1]))
    for row in range(len(b)):
        for column in range(a.shape[1]):
            result[row, column] = scale * sum(b[row, k] * a[k, column] for k in range(len(a)))
    return result


def targets(folder: Path) -> list[str]:
    names = load_file(folder / "adapter_model.safetensors")
    return sorted({n.removeprefix("base_model.model.").rpartition(".lora_")[0] for n in names})


def changed(first: nn.Module, second: nn.Module) -> int:
    """Number of bytes that differ."""
    count, other = 0, state_of(second)
    for name, value in state_of(first).items():
        pair = (x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (value, other[name]))
        count += int((next(pair) != next(pair)).sum())
    return count


IDS = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))


# Exact where it goes, and nowhere else ----------------------------------------------------


def test_every_target_moves_by_s_b_a_and_nothing_else_by_a_bit(folder: Path) -> None:
    known = Patch.from_peft(folder / "adapter", folder / "old").port(folder / "new", folder / "out")
    before, after = weights(folder / "new"), weights(folder / "out")
    layers = targets(folder / "adapter")
    assert known.added == len(layers) == 4
    for layer in layers:
        moved = (after[f"{layer}.weight"].double() - before[f"{layer}.weight"].double()).numpy()
        np.testing.assert_allclose(
            moved, product(folder / "adapter", layer, 1.5), atol=1e-6, rtol=0
        )
    assert after.keys() == before.keys()
    rest = after.keys() - {f"{layer}.weight" for layer in layers}
    assert all(torch.equal(after[name], before[name]) for name in rest)
    assert (folder / "out" / "config.json").read_bytes() == (
        folder / "new" / "config.json"
    ).read_bytes()


@pytest.mark.parametrize("rslora", [False, True])
def test_every_layer_has_its_own_rank_and_scale(tmp_path: Path, rslora: bool) -> None:
    base = bert()
    base.save_pretrained(tmp_path / "new")
    tuned(
        base,
        tmp_path / "adapter",
        r=4,
        lora_alpha=6,
        rank_pattern={"layer.1.attention.self.query": 2, "value": 8},
        alpha_pattern={"layer.0.attention.self.value": 20},
        use_rslora=rslora,
    )
    Patch.from_peft(tmp_path / "adapter").port(tmp_path / "new", tmp_path / "out")
    before, after = weights(tmp_path / "new"), weights(tmp_path / "out")
    ranks = {"0.attention.self.query": 4, "1.attention.self.query": 2}
    ranks |= {f"{i}.attention.self.value": 8 for i in range(2)}
    for layer in targets(tmp_path / "adapter"):
        rank = ranks[layer.removeprefix("encoder.layer.")]
        alpha = 20 if layer.startswith("encoder.layer.0.attention.self.value") else 6
        moved = (after[f"{layer}.weight"].double() - before[f"{layer}.weight"].double()).numpy()
        scale = alpha / rank**0.5 if rslora else alpha / rank
        np.testing.assert_allclose(
            moved, product(tmp_path / "adapter", layer, scale), atol=1e-6, rtol=0
        )
        # To forget the scale would be seen.
        assert np.abs(moved - product(tmp_path / "adapter", layer, 1.0)).max() > 1e-3


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 3, stride=2)
        self.flat = nn.Conv2d(6, 4, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.flat(self.wide(pixels).relu())


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=16,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2Model(config).eval()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return Pixels().eval()


PIXELS = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.parametrize(
    ("make", "options", "batch"),
    [
        (bert, {"target_modules": ["word_embeddings", "dense"]}, IDS),
        (bert, {"target_modules": ["query"], "bias": "lora_only"}, IDS),
        (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}, IDS),
        (convolutions, {"target_modules": ["wide", "flat"], "lora_bias": True}, PIXELS),
    ],
    ids=["embedding", "biases", "conv1d", "conv2d"],
)
def test_what_peft_merges_is_what_is_ported(
    make: Callable[[], nn.Module], options: dict[str, Any], batch: Tensor, tmp_path: Path
) -> None:
    old = make()
    new = shaken(old, 0.05, 1)
    model = tuned(old, tmp_path / "adapter", r=2, **options)
    patch = Patch.from_peft(tmp_path / "adapter", old)
    # What peft makes of the same adapter on the new base, biases as a difference.
    merged = state_of(model.merge_and_unload())
    expected = {n: v + merged[n] - state_of(old)[n] for n, v in state_of(new).items()}
    live = copy.deepcopy(new)
    patch.apply(live)
    found = state_of(live)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    reference = copy.deepcopy(new)
    reference.load_state_dict(expected, strict=False)
    with torch.no_grad():
        ours, theirs = live(batch), reference(batch)
    if not isinstance(ours, Tensor):
        ours, theirs = ours.last_hidden_state, theirs.last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_square_layers_of_both_kinds_are_not_guessed(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gpt = gpt2()
            self.square, self.wide = nn.Linear(32, 32), nn.Linear(32, 8)

    both = Both()
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        tuned(both, tmp_path / "adapter", target_modules=["square", "wide", "c_attn"])
    with pytest.raises(WeightsError, match=r"'square' may be \[out, in\] or \[in, out\]"):
        Patch.from_peft(tmp_path / "adapter", both)


def test_the_old_base_becomes_the_tuned_network(folder: Path) -> None:
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    patch.port(folder / "old", folder / "out", allow=["same"])
    model = PeftModel.from_pretrained(BertModel.from_pretrained(folder / "old"), folder / "adapter")
    merged = BertModel.from_pretrained(folder / "out", add_pooling_layer=False)
    with torch.no_grad():
        expected = model.eval()(IDS).last_hidden_state
        torch.testing.assert_close(
            merged.eval()(IDS).last_hidden_state, expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_rounded_once(folder: Path, dtype: torch.dtype) -> None:
    half = {name: value.to(dtype) for name, value in weights(folder / "new").items()}
    save_file(half, folder / "new" / WEIGHTS)
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    patch.port(folder / "new", folder / "out")
    for name, value in weights(folder / "out").items():
        entry = patch.delta.entries.get(name)
        expected = half[name] if entry is None else (half[name].float() + entry.dense()).to(dtype)
        assert value.dtype == dtype
        torch.testing.assert_close(value, expected, atol=0, rtol=0)


def test_shards_are_no_different_from_one_file(folder: Path) -> None:
    BertModel.from_pretrained(folder / "new").save_pretrained(
        folder / "shards", max_shard_size="30KB"
    )
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    patch.port(folder / "new", folder / "one")
    patch.port(folder / "shards", folder / "many")
    one, many = weights(folder / "one"), weights(folder / "many")
    assert all(torch.equal(value, many[name]) for name, value in one.items())


@given(st.integers(0, 24), st.integers(0, 24))
@settings(max_examples=60, deadline=None)
def test_a_piece_is_a_slice_of_the_whole(first: int, second: int) -> None:
    start, stop = sorted((first, second))
    draw = torch.Generator().manual_seed(0)
    b, a = torch.randn(4, 2, generator=draw), torch.randn(2, 6, generator=draw)
    index = torch.tensor([1, 5, 6, 22])
    for entry in (
        LowRank(b, a, 0.5, (4, 2, 3)),
        Dense(torch.randn(4, 6, generator=draw)),
        Sparse(index, torch.randn(4, generator=draw), (4, 6)),
    ):
        expected = entry.dense().reshape(-1)[start:stop]
        torch.testing.assert_close(piece(entry, start, stop), expected)


MEMORY = """
import os, sys
# Each thread of a merge holds pieces of its own.
os.cpu_count = lambda: 2
from pathlib import Path
import torch
from galenic.core.meters import Meter
from galenic.merging.patches import Patch
from galenic.models.delta import Delta, LowRank
def patch(rows):
    factors = torch.ones(rows, 2), torch.ones(2, 1000)
    return Patch(Delta({f"{i}.w": LowRank(*factors, 0.5, (rows, 1000)) for i in range(6)}))
folder = Path(sys.argv[1])
patch(10).port(folder / "small", folder / "out")
with Meter() as meter:
    patch(20_000).port(folder / "large", folder / "out")
print(meter.host_mb)
"""


def test_memory_is_that_of_a_tensor_not_of_the_checkpoint(tmp_path: Path) -> None:
    # Six tensors of 40 MB each, without their bytes on the disk.
    for name, rows in (("small", 10), ("large", 20_000)):
        (tmp_path / name).mkdir()
        slots = [Slot(f"{i}.w", torch.bfloat16, (rows, 1000)) for i in range(6)]
        with (tmp_path / name / WEIGHTS).open("wb") as file:
            file.write(header(slots, {"format": "pt"}))
            file.truncate(file.tell() + sum(slot.bytes for slot in slots))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 180
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert all(bool((value == 1).all()) for value in found.values())


# Back to the bit --------------------------------------------------------------------------


def test_scale_zero_is_the_new_base_to_the_bit(folder: Path) -> None:
    zeros = weights(folder / "new")
    zeros["encoder.layer.0.attention.self.query.weight"][:2] = -0.0
    save_file(zeros, folder / "new" / WEIGHTS)
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    patch.port(folder / "new", folder / "out", scale=0)
    for name, value in weights(folder / "out").items():
        assert torch.equal(value.view(torch.int32), zeros[name].view(torch.int32)), name
    live = bert()
    patch.apply(live, scale=0)
    assert changed(live, bert()) == 0
    patch.revert(live)
    # What was written at scale 0 holds no patch.
    patch.check(folder / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 0.3, -7.0])
def test_apply_and_revert_leave_no_changed_bit(
    folder: Path, scale: float, dtype: torch.dtype
) -> None:
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    base = bert(5).to(dtype)
    base.embeddings.requires_grad_(False)
    live = copy.deepcopy(base)
    patch.apply(live, scale)
    assert changed(live, base) > 0
    with pytest.raises(WeightsError, match="already"):
        patch.apply(live, 2 * scale)
    flags = [(p.requires_grad, p.grad_fn) for p in live.parameters()]
    assert flags == [(p.requires_grad, None) for p in base.parameters()]
    patch.revert(live)
    assert changed(live, base) == 0
    with pytest.raises(WeightsError, match="not applied"):
        patch.revert(live)


def test_two_patches_come_off_in_any_order(folder: Path) -> None:
    tuned(bert(), folder / "other", seed=9, target_modules=["key", "query"])
    one, two = (Patch.from_peft(folder / n, folder / "old") for n in ("adapter", "other"))
    base, live = bert(4), bert(4)
    one.apply(live)
    two.apply(live, 0.5)
    one.revert(live)
    alone = bert(4)
    two.apply(alone, 0.5)
    assert changed(live, alone) == 0
    two.revert(live)
    assert changed(live, base) == 0


def test_a_port_leaves_what_it_reads_as_it_was(folder: Path) -> None:
    def digests() -> dict[str, str]:
        files = [p for name in ("adapter", "old", "new") for p in (folder / name).iterdir()]
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    before = digests()
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    patch.port(folder / "new", folder / "out", old=folder / "old")
    assert digests() == before
    with pytest.raises(ConfigError, match="folder of its own"):
        patch.port(folder / "new", folder / "new")


def test_a_chain_of_versions_gets_the_patch_once_each(folder: Path) -> None:
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    for version in ("new", "newer"):
        patch.port(folder / version, folder / f"{version}-ported")
        before, after = weights(folder / version), weights(folder / f"{version}-ported")
        for layer in targets(folder / "adapter"):
            moved = (after[f"{layer}.weight"].double() - before[f"{layer}.weight"].double()).numpy()
            np.testing.assert_allclose(
                moved, product(folder / "adapter", layer, 1.5), atol=1e-6, rtol=0
            )
    with pytest.raises(WeightsError, match="holds this patch already"):
        patch.port(folder / "new-ported", folder / "twice")
    assert not (folder / "twice").exists()
    tuned(bert(), folder / "other", seed=9)
    Patch.from_peft(folder / "other").port(folder / "new-ported", folder / "both")
    with pytest.raises(WeightsError, match="already"):
        patch.check(folder / "both")


# What does not fit is named ----------------------------------------------------------------

QUERY = "encoder.layer.0.attention.self.query.weight"


def renamed(state: dict[str, Tensor]) -> None:
    state[QUERY.replace("query", "q_proj")] = state.pop(QUERY)


def resized(state: dict[str, Tensor]) -> None:
    state[QUERY] = torch.zeros(32, 33)


def cut_in_integers(state: dict[str, Tensor]) -> None:
    state[QUERY] = torch.zeros(32, 32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [(renamed, "is missing"), (resized, r"has shape \(32, 33\)"), (cut_in_integers, "quantised")],
)
def test_a_target_that_does_not_fit_is_named(folder: Path, spoil: Any, fault: str) -> None:
    state = weights(folder / "new")
    spoil(state)
    save_file(state, folder / "new" / WEIGHTS)
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    with pytest.raises(WeightsError, match=f"'{QUERY}'.*{fault}"):
        patch.port(folder / "new", folder / "out")
    assert not (folder / "out").exists()
    if spoil is renamed:
        known = patch.port(folder / "new", folder / "out", allow=["missing"])
        assert known.left_out == {QUERY: "missing in new"}
        assert known.added == 3


def test_a_transposed_target_is_named(tmp_path: Path) -> None:
    base = nn.ModuleDict({"proj": nn.Linear(6, 4)})
    tuned(base, tmp_path / "adapter", target_modules=["proj"])
    turned = {"proj.weight": base["proj"].weight.T.contiguous(), "proj.bias": base["proj"].bias}
    with pytest.raises(WeightsError, match=r"'proj\.weight' is transposed"):
        Patch.from_peft(tmp_path / "adapter", base).check(turned)


def test_a_prefix_more_or_less_is_found(folder: Path) -> None:
    torch.manual_seed(0)
    head = BertForSequenceClassification(BertConfig(**SMALL))
    bare = {n.removeprefix("bert."): v for n, v in head.state_dict().items() if "bert." in n}
    tuned(head, folder / "long")
    patches = [Patch.from_peft(folder / "long", bare), Patch.from_peft(folder / "adapter")]
    assert patches[0].check(weights(folder / "new")).added == 4
    assert patches[1].check(head.state_dict()).added == 4
    live = copy.deepcopy(head)
    patches[1].apply(live)
    moved = state_of(live)[f"bert.{QUERY}"] - state_of(head)[f"bert.{QUERY}"]
    torch.testing.assert_close(moved, patches[1].delta.entries[QUERY].dense(), atol=1e-6, rtol=0)


NAMES = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), max_size=8, unique=True
)


@given(wanted=NAMES, present=NAMES)
def test_the_naming_is_the_best_of_all(wanted: list[str], present: list[str]) -> None:
    there = set(present)
    options = {Naming()}
    for name in wanted:
        options |= {Naming(more=n.removesuffix(name)) for n in there if n.endswith("." + name)}
        cuts = [at + 1 for at, sign in enumerate(name) if sign == "."]
        options |= {Naming(less=name[:cut]) for cut in cuts if name[cut:] in there}

    def found(naming: Naming) -> int:
        return sum(naming(name) in there for name in wanted)

    made = Naming.between(wanted, present)
    assert made in options
    assert found(made) == max(map(found, options))


def test_the_names_of_many_experts_are_matched_in_a_moment() -> None:
    names = [f"layers.{i}.experts.{j}.{p}" for i in range(20) for j in range(64) for p in "abc"]
    began = time.perf_counter()
    assert Naming.between(names, names) == Naming()
    assert Naming.between(names, [f"model.{name}" for name in names]) == Naming(more="model.")
    assert Naming.between([f"model.{name}" for name in names], names) == Naming(less="model.")
    # Each name with each would be 15 million comparisons, of several seconds.
    assert time.perf_counter() - began < 2


def test_nothing_to_port_is_said(folder: Path) -> None:
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    with pytest.raises(WeightsError, match="nothing to port"):
        patch.check(folder / "old")
    with pytest.raises(WeightsError, match="nothing to port"):
        Patch.from_peft(folder / "adapter").check(folder / "old", folder / "old")
    assert patch.check(folder / "old", folder / "old", allow=["same"]).drift == 0
    # An update that spares the targets is an update.
    state = weights(folder / "old")
    state["embeddings.word_embeddings.weight"][0] += 1
    assert patch.check(state).added == 4


# What is no difference is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use_dora": True}, "column norms"),
        ({"init_lora_weights": "pissa"}, "pissa, which changes the base"),
        ({"init_lora_weights": "olora"}, "olora, which changes the base"),
        (
            {"target_modules": ["query"], "trainable_token_indices": [1, 2]},
            "rows of the vocabulary",
        ),
        ({"target_modules": ["query"], "layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
    ],
    ids=["dora", "pissa", "olora", "tokens", "replicated"],
)
def test_no_additive_difference_is_refused(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    model = get_peft_model(
        bert(), LoraConfig(**{"target_modules": ["query", "value"], "r": 4, **options})
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=why):
        Patch.from_peft(tmp_path)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", False])
def test_a_start_that_spares_the_base_is_a_difference(tmp_path: Path, init: Any) -> None:
    model = tuned(bert(), tmp_path, r=4, init_lora_weights=init)
    live = bert()
    Patch.from_peft(tmp_path, bert()).apply(live)
    with torch.no_grad():
        expected = model(IDS).last_hidden_state
        torch.testing.assert_close(live(IDS).last_hidden_state, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pissa_that_was_converted_is_a_difference(tmp_path: Path) -> None:
    base = bert()
    config = LoraConfig(target_modules=["query"], r=2, lora_alpha=2, init_lora_weights="pissa")
    model = get_peft_model(copy.deepcopy(base), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    trained = shaken(model, 0.2, 1, "lora_")
    with torch.no_grad():
        expected = trained(IDS).last_hidden_state
    trained.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    live = copy.deepcopy(base)
    Patch.from_peft(tmp_path / "adapter", base).apply(live)
    with torch.no_grad():
        torch.testing.assert_close(live(IDS).last_hidden_state, expected, atol=1e-4, rtol=0)


def test_what_multiplies_is_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["query"], feedforward_modules=[])
    get_peft_model(bert(), config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"IA3.*multiplies"):
        Patch.from_peft(tmp_path)


KEY = f"base_model.model.{QUERY.removesuffix('.weight')}"


def not_a_number(state: dict[str, Tensor]) -> None:
    state[f"{KEY}.lora_B.weight"][0, 0] = torch.nan


def one_rank_less(state: dict[str, Tensor]) -> None:
    state[f"{KEY}.lora_A.weight"] = state[f"{KEY}.lora_A.weight"][1:].contiguous()


def one_factor_less(state: dict[str, Tensor]) -> None:
    del state[f"{KEY}.lora_B.weight"]


def another_rank(state: dict[str, Tensor]) -> None:
    for part, shape in (("A", (3, 32)), ("B", (32, 3))):
        state[f"{KEY}.lora_{part}.weight"] = torch.ones(shape)


def nothing(state: dict[str, Tensor]) -> None:
    state.clear()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (not_a_number, f"'{KEY}.lora_B.weight' is not finite"),
        (one_rank_less, "A of rank 3, a B of rank 4"),
        (one_factor_less, "has no lora_B"),
        (another_rank, "rank 3, and rank 4 in the config"),
        (nothing, "empty"),
    ],
)
def test_a_damaged_adapter_is_named(folder: Path, spoil: Any, why: str) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    spoil(state)
    save_file(state, path)
    with pytest.raises(WeightsError, match=why):
        Patch.from_peft(folder / "adapter")


def test_no_adapter_is_said(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"adapter_config\.json is missing"):
        Patch.from_peft(folder / "new")


# Values: heads, biases ---------------------------------------------------------------------


def test_a_head_is_a_difference_where_the_base_has_it_and_a_copy_where_not(folder: Path) -> None:
    torch.manual_seed(0)
    whole = BertForSequenceClassification(BertConfig(**SMALL))
    model = tuned(whole, folder / "headed", task_type="SEQ_CLS")
    trained = model.base_model.model.classifier.modules_to_save["default"].bias.detach()
    newer = shaken(whole, 0.1, 1)
    both = Patch.from_peft(folder / "headed", whole)
    assert "classifier.bias" in both.delta.entries
    live = copy.deepcopy(newer)
    both.apply(live)
    expected = newer.classifier.bias + trained - whole.classifier.bias
    torch.testing.assert_close(live.classifier.bias, expected)
    # The bare encoder has no head: it is put in.
    bare = {n: v for n, v in whole.state_dict().items() if "classifier" not in n}
    (folder / "headless").mkdir()
    save_file(bare, folder / "headless" / WEIGHTS)
    fresh = Patch.from_peft(folder / "headed", folder / "headless")
    known = fresh.port(folder / "headless", folder / "out", allow=["same"])
    assert known.copied == ("classifier.bias", "classifier.weight")
    assert torch.equal(weights(folder / "out")["classifier.bias"], trained)
    live = copy.deepcopy(newer)
    fresh.apply(live)
    assert torch.equal(live.classifier.bias, trained)
    fresh.revert(live)
    assert changed(live, newer) == 0


def test_a_head_of_which_nothing_is_known_is_asked_for(folder: Path) -> None:
    whole = BertForSequenceClassification(BertConfig(**SMALL))
    tuned(whole, folder / "headed", task_type="SEQ_CLS")
    with pytest.raises(WeightsError, match=r"'classifier\.\w+' is a trained value"):
        Patch.from_peft(folder / "headed").apply(copy.deepcopy(whole))
    for patch in (
        Patch.from_peft(folder / "headed", copied=["classifier"]),
        Patch.from_peft(folder / "headed", whole, copied=["classifier"]),
    ):
        assert set(patch.delta.absolute) == {"classifier.weight", "classifier.bias"}
        patch.apply(copy.deepcopy(whole))


# Two checkpoints --------------------------------------------------------------------------


def test_a_dense_patch_gives_every_bit_of_the_tuned_network(folder: Path) -> None:
    shaken(bert(), 0.1, 7).save_pretrained(folder / "tuned")
    patch = Patch.from_checkpoints(folder / "old", folder / "tuned")
    patch.port(folder / "old", folder / "out", allow=["same"])
    found, expected = weights(folder / "out"), weights(folder / "tuned")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    known = patch.port(folder / "new", folder / "out", old=folder / "old")
    assert known.added == len(expected)
    with pytest.raises(WeightsError, match="patch is empty"):
        Patch.from_checkpoints(folder / "old", folder / "old")


@pytest.mark.parametrize("rank", [1, 5])
def test_a_truncated_patch_is_the_nearest_of_its_rank(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(12, 3, 5, generator=draw), "b": torch.randn(12, generator=draw)}
    end = {name: value + torch.randn(value.shape, generator=draw) for name, value in base.items()}
    patch = Patch.from_checkpoints(base, end, rank)
    gap = (end["w"] - base["w"]).reshape(12, 15).double()
    values = np.linalg.svd(gap.numpy(), compute_uv=False)
    entry = patch.delta.entries["w"]
    assert isinstance(entry, LowRank)
    error = (gap - entry.dense().reshape(12, 15).double()).norm().item()
    assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-5)
    # A vector has no rank to lose.
    assert torch.equal(patch.delta.applied(base, check=False)["b"], end["b"])


def test_rows_that_are_new_are_no_difference(folder: Path) -> None:
    base = weights(folder / "old")
    name = "embeddings.word_embeddings.weight"
    longer = {**base, name: torch.cat([base[name], torch.zeros(2, 32)])}
    with pytest.raises(WeightsError, match=f"'{name}' was resized from 40 to 42 rows"):
        Patch.from_checkpoints(base, longer)
    short = {n: v for n, v in base.items() if n != QUERY}
    with pytest.raises(WeightsError, match=f"'{QUERY}' is missing"):
        Patch.from_checkpoints(base, short)
    headed = {**base, QUERY: base[QUERY] + 1, "head.weight": torch.ones(2, 32)}
    patch = Patch.from_checkpoints(base, headed)
    assert list(patch.delta.absolute) == ["head.weight"]


def test_a_file_gives_back_the_patch(folder: Path) -> None:
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    patch.save(folder / "patch.safetensors")
    again = Patch.open(folder / "patch.safetensors")
    assert again.fingerprint == patch.fingerprint
    assert again.facts == patch.facts
    assert again.facts.config["hidden_size"] == 32
    assert again.check(folder / "new") == patch.check(folder / "new")
    assert Patch.open(folder / "adapter").fingerprint == patch.fingerprint
    for name, entry in patch.delta.entries.items():
        assert torch.equal(again.delta.entries[name].dense(), entry.dense())


# How far the base has moved ----------------------------------------------------------------


def test_drift_cosine_and_share_have_their_closed_forms() -> None:
    draw = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=draw))
    old = torch.randn(8, 6, generator=draw)
    b, a = q[:, :2], torch.eye(6)[:2]
    patch = LowRank(b, a, 0.5, (8, 6))
    scaled = drift_of("w", old, 1.25 * old, patch)
    assert scaled.drift == pytest.approx(0.25, rel=1e-5)
    assert scaled.size == pytest.approx(0.5 * 2**0.5 / old.norm().item(), rel=1e-5)
    along = drift_of("w", old, old + 3 * patch.dense(), patch)
    assert (along.cosine, along.share) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    apart = drift_of("w", old, old + q[:, 2:4] @ torch.eye(6)[2:4], patch)
    assert (apart.cosine, apart.share) == (pytest.approx(0, abs=1e-5), pytest.approx(0, abs=1e-5))
    # One of the two directions of the patch, and one of another.
    half = drift_of("w", old, old + q[:, 1:3] @ torch.eye(6)[1:3], patch)
    assert half.share == pytest.approx(0.5, abs=1e-4)
    still = drift_of("w", old, old, patch)
    assert (still.drift, still.cosine, still.share) == (0, None, None)


def test_the_drift_of_an_update_is_told_and_unrelated_weights_are_warned_of(folder: Path) -> None:
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    known = patch.check(folder / "new", folder / "old")
    old, new = weights(folder / "old"), weights(folder / "new")
    names = [f"{layer}.weight" for layer in targets(folder / "adapter")]
    steps = sum((new[n] - old[n]).square().sum().item() for n in names)
    whole = sum(old[n].square().sum().item() for n in names)
    assert known.drift == pytest.approx((steps / whole) ** 0.5, rel=1e-5)
    assert {row.name for row in known.tensors} == set(names)
    bert(77).save_pretrained(folder / "stranger")
    far = patch.check(folder / "stranger", folder / "old")
    assert far.drift == pytest.approx(2**0.5, rel=0.1)
    assert any("unrelated" in line for line in far.warnings)
    assert not any("unrelated" in line for line in patch.check(bert(77)).warnings)
    one = {**old, QUERY: 0.1 * old[QUERY]}
    (warned,) = patch.check(one, old).warnings
    assert f"1 matrices have moved by {FAR} of their norm or more: '{QUERY}' by 0.90" in warned


OTHER = "The old base that was named is not the one that the patch was made on."


def test_another_old_base_is_warned_of(folder: Path) -> None:
    lora = Patch.from_peft(folder / "adapter", folder / "old")
    shaken(bert(), 0.1, 7).save_pretrained(folder / "tuned")
    dense = Patch.from_checkpoints(folder / "old", folder / "tuned", 4)
    for patch in (lora, dense):
        patch.save(folder / "patch.safetensors")
        again = Patch.open(folder / "patch.safetensors")
        # A live network has buffers that a file has not.
        for old in (
            folder / "old",
            BertModel.from_pretrained(folder / "old", add_pooling_layer=False),
        ):
            assert OTHER not in again.check(folder / "newer", old).warnings
        assert OTHER in again.check(folder / "newer", folder / "new").warnings
    # What a patch does not know is not said.
    unknown = Patch.from_peft(folder / "adapter")
    assert OTHER not in unknown.check(folder / "newer", folder / "new").warnings
    headed = {f"bert.{name}": value for name, value in weights(folder / "old").items()}
    assert OTHER not in lora.check(folder / "newer", headed).warnings


def test_another_architecture_of_the_same_shapes_is_refused(folder: Path) -> None:
    path = folder / "new" / "config.json"
    config = json.loads(path.read_text())
    patch = Patch.from_peft(folder / "adapter", folder / "old")
    path.write_text(json.dumps({**config, "num_attention_heads": 8}))
    with pytest.raises(WeightsError, match="num_attention_heads: 4 then, 8 now"):
        patch.check(folder / "new")
    known = patch.check(folder / "new", allow=["config"])
    assert any("num_attention_heads" in line for line in known.warnings)
    idle = {"hidden_dropout_prob": 0.5, "transformers_version": "9", "id2label": {"0": "x"}}
    path.write_text(json.dumps({**config, **idle}))
    patch.check(folder / "new")
    path.write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(WeightsError, match="quantised"):
        patch.check(folder / "new")


def test_another_vocabulary_is_a_warning_and_its_rows_are_not_patched(folder: Path) -> None:
    for name, words in (("old", "a\nb\n"), ("new", "a\nc\n")):
        (folder / name / "vocab.txt").write_text(words)
    known = Patch.from_peft(folder / "adapter", folder / "old").check(folder / "new")
    assert any("tokenizer differs" in line for line in known.warnings)
    tuned(bert(), folder / "words", target_modules=["word_embeddings", "query"])
    patch = Patch.from_peft(folder / "words", folder / "old")
    name = "embeddings.word_embeddings.weight"
    with pytest.raises(WeightsError, match=f"another vocabulary.*{name}"):
        patch.check(folder / "new")
    known = patch.port(folder / "new", folder / "out", allow=["vocabulary"])
    assert known.left_out == {name: "rows of another vocabulary"}
    assert torch.equal(weights(folder / "out")[name], weights(folder / "new")[name])


# What it is for ---------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_least_squares_on_disjoint_blocks_needs_no_new_training(overlap: bool) -> None:
    """The update acts on one block of inputs, the patch on another: y = x1 w1 + x2 w2."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6))
    x, _ = np.linalg.qr(x)
    y = x @ draw.normal(size=6) + 0.1 * draw.normal(size=200)
    patched = np.arange(3)
    updated = np.arange(2, 6) if overlap else np.arange(3, 6)

    def fitted(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The best change of the patched block."""
        rest = y - x @ weight
        change = np.zeros(6)
        change[patched] = np.linalg.lstsq(x[:, patched], rest, rcond=None)[0]
        return weight + change

    def loss(weight: np.ndarray[Any, Any]) -> float:
        return float(((y - x @ weight) ** 2).sum())

    old = np.zeros(6)
    new = old.copy()
    new[updated] = draw.normal(size=len(updated))
    pair = ({"w": torch.from_numpy(old)}, {"w": torch.from_numpy(fitted(old))})
    patch = Patch.from_checkpoints(*pair)
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.from_numpy(new.copy())))
    patch.apply(module)
    ported, retrained = loss(module.w.detach().numpy()), loss(fitted(new))
    if overlap:
        assert ported > retrained + 1e-3
    else:
        assert ported == pytest.approx(retrained, abs=1e-6)


def test_recovery_is_the_share_of_what_training_anew_would_bring() -> None:
    found = recovery(0.5, 0.8, 0.6, 0.75, 0.8)
    assert found.share == pytest.approx(0.75)
    assert found.lost == pytest.approx(-0.05)
    loss = recovery(2.0, 1.0, 1.8, 1.2, 1.0, greater_is_better=False)
    assert loss.share == pytest.approx(0.75)
    # Where training anew brings nothing, there is nothing to recover.
    assert recovery(0.5, 0.8, 0.7, 0.9, 0.7).share is None
    assert recovery(0.5, 0.8, 0.7, 0.9, 0.6).share is None
