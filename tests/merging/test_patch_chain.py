"""A chain of versions: the patch once onto each, never onto a ported one, and what each recovers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from galenic.core.errors import ConfigError, WeightsError
from galenic.merging.patches import Evaluation, Gate, Patch, Probe, chain, recovery
from galenic.merging.patches.chain import Network
from galenic.models.delta import state_of

VERSIONS = ("1.1", "1.2", "1.3")
QUERY = "encoder.layer.0.attention.self.query.weight"


def moved(network: nn.Module, size: float, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=draw)
    return other


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, three later versions that move ever further, and a LoRA that was trained on it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = BertModel(
        BertConfig(**shape, intermediate_size=24, vocab_size=30), add_pooling_layer=False
    )
    base.save_pretrained(tmp_path / "1.0")
    for number, name in enumerate(VERSIONS, 1):
        base = moved(base, 0.003 * 2**number, number)
        base.save_pretrained(tmp_path / name)
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=["query"], init_lora_weights=False)
    old = BertModel.from_pretrained(tmp_path / "1.0", add_pooling_layer=False)
    get_peft_model(old, lora).save_pretrained(tmp_path / "adapter")
    return tmp_path


def bases(folder: Path, *names: str) -> dict[str, Network]:
    return {name: folder / name for name in names or VERSIONS}


def live(folder: Path, *names: str) -> dict[str, nn.Module]:
    opened = (BertModel.from_pretrained(folder / n, add_pooling_layer=False) for n in names)
    return dict(zip(names, opened, strict=True))


def weights(place: Network) -> dict[str, Tensor]:
    if isinstance(place, nn.Module):
        return {n: value.detach().clone() for n, value in state_of(place).items()}
    return load_file(Path(place) / "model.safetensors")


def products(folder: Path) -> dict[str, Tensor]:
    """s B A by name of target, from the file of the adapter."""
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    names = {n.removeprefix("base_model.model.").rpartition(".lora_")[0] for n in found}
    key = "base_model.model.{}.lora_{}.weight".format
    return {f"{n}.weight": 3.0 * found[key(n, "B")] @ found[key(n, "A")] for n in names}


def require_once(before: dict[str, Tensor], after: dict[str, Tensor], folder: Path) -> None:
    """`after` is `before` and the patch once; what is no target has not changed by a bit."""
    added = products(folder)
    assert len(added) == 2
    for name, value in before.items():
        if name in added:
            torch.testing.assert_close(after[name] - value, added[name], atol=1e-6, rtol=0)
        else:
            assert torch.equal(after[name], value), name


def digests(folder: Path, *names: str) -> dict[str, str]:
    files = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Once onto each ---------------------------------------------------------------------------


def test_every_version_gets_the_patch_once_from_its_own_weights(folder: Path) -> None:
    before = digests(folder, "adapter", "1.0", *VERSIONS)
    patch = Patch.open(folder / "adapter", folder / "1.0")
    made = chain(patch, bases(folder), old=folder / "1.0", out=folder / "out")
    assert [version.name for version in made] == list(VERSIONS)
    for version in made:
        assert version.folder == folder / "out" / version.name
        require_once(weights(folder / version.name), weights(version.folder), folder)
    assert digests(folder, "adapter", "1.0", *VERSIONS) == before
    drifts = [version.portability.drift or 0 for version in made]
    assert 0 < drifts[0] < drifts[1] < drifts[2]
    # A chain is no more than its ports.
    alone = patch.port(folder / "1.2", folder / "alone", old=folder / "1.0")
    assert made[1].portability == alone
    found, expected = weights(folder / "out" / "1.2"), weights(folder / "alone")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_order_of_the_versions_is_of_no_account(folder: Path) -> None:
    patch = Patch.open(folder / "adapter")
    for order in permutations(VERSIONS):
        chain(patch, bases(folder, *order), out=folder / "-".join(order))
    first, *others = ("-".join(order) for order in permutations(VERSIONS))
    for name in VERSIONS:
        expected = weights(folder / first / name)
        for other in others:
            found = weights(folder / other / name)
            assert all(torch.equal(value, expected[n]) for n, value in found.items())


def test_live_networks_have_the_patch_while_they_are_scored_alone(folder: Path) -> None:
    networks = live(folder, *VERSIONS)
    for parameter in networks["1.2"].parameters():
        parameter.requires_grad_(False)
    before = {name: weights(network) for name, network in networks.items()}
    flags = {n: [p.requires_grad for p in network.parameters()] for n, network in networks.items()}
    seen: list[tuple[str, dict[str, Tensor]]] = []

    def score(network: Network) -> float:
        (name,) = (n for n, found in networks.items() if found is network)
        for other, found in networks.items():
            if other != name:
                assert all(torch.equal(v, before[other][n]) for n, v in weights(found).items())
        seen.append((name, weights(network)))
        return 0.0

    patch = Patch.open(folder / "adapter", folder / "1.0")
    chain(patch, networks, evaluation=Evaluation(score))
    assert [name for name, _ in seen] == [name for name in VERSIONS for _ in range(2)]
    for (name, bare), (_, patched) in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(value, before[name][n]) for n, value in bare.items())
        require_once(bare, patched, folder)
    for name, network in networks.items():
        assert all(torch.equal(value, before[name][n]) for n, value in weights(network).items())
        assert [p.requires_grad for p in network.parameters()] == flags[name]


def test_a_ported_network_is_no_version(folder: Path) -> None:
    patch = Patch.open(folder / "adapter", folder / "1.0")
    chain(patch, bases(folder, "1.1"), out=folder / "out")
    mixed = {**bases(folder, "1.2"), "again": folder / "out" / "1.1"}
    with pytest.raises(WeightsError, match="holds this patch already"):
        chain(patch, mixed, out=folder / "more")
    # The one before it was not written either.
    assert not (folder / "more").exists()
    network = live(folder, "1.2")["1.2"]
    patch.apply(network)
    with pytest.raises(WeightsError, match="holds this patch already"):
        chain(patch, {"1.2": network})


def test_what_is_read_is_never_replaced_by_what_is_written(folder: Path) -> None:
    # "1.1" would be written where the second version is read.
    crossed = {"1.1": folder / "1.2", "other": folder / "1.1"}
    before = digests(folder, *VERSIONS)
    for old, wanted in ((None, crossed), (folder / "1.0", {"1.0": folder / "1.1"})):
        with pytest.raises(ConfigError, match="a model that is merged"):
            chain(Patch.open(folder / "adapter"), wanted, old=old, out=folder)
    assert digests(folder, *VERSIONS) == before


@pytest.mark.parametrize(
    ("names", "says"),
    [({"a": "1.1", "b": "1.1"}, "'a' and 'b' are the same"), ({"a": "1.0"}, "nothing to port")],
)
def test_the_same_weights_are_no_two_versions(
    folder: Path, names: dict[str, str], says: str
) -> None:
    patch = Patch.open(folder / "adapter", folder / "1.0")
    with pytest.raises(WeightsError, match=says):
        chain(patch, {name: folder / at for name, at in names.items()}, out=folder / "out")
    assert not (folder / "out").exists()


def test_a_version_that_does_not_fit_stops_the_chain_before_it_begins(folder: Path) -> None:
    state = weights(folder / "1.3")
    state[QUERY] = torch.zeros(16, 17)
    with pytest.raises(WeightsError, match=f"'{QUERY}' has shape"):
        chain(Patch.open(folder / "adapter"), bases(folder, "1.1") | {"odd": _net(state)})


def _net(state: dict[str, Tensor]) -> nn.Module:
    net = nn.Module()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        place = net
        for part in parents:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(leaf, nn.Parameter(value))
    return net


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ((), {}, "no base"),
        (("a/b",), {}, "no name of a folder"),
        (("..",), {}, "no name of a folder"),
        (("",), {}, "no name of a folder"),
        (("1.1",), {"scale": float("nan")}, "finite"),
        (("1.1",), {"gate": Gate(min_gain=0)}, "gain is not measured"),
        (("1.1",), {"gate": Gate(max_drift=1)}, "max_drift"),
        (("1.1",), {"evaluation": Evaluation(lambda _: 0.0)}, "no output"),
        (("1.1",), {"evaluation": Evaluation(lambda _: 0.0, True, {"1.2": "x"})}, "'1.2'"),
    ],
)
def test_what_cannot_be_asked_is_said(
    folder: Path, names: tuple[str, ...], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        chain(Patch.open(folder / "adapter"), dict.fromkeys(names, folder / "1.1"), **options)


# What each recovers -----------------------------------------------------------------------


def near(target: dict[str, Tensor]) -> Callable[[Network], float]:
    """Minus the distance of the first query matrix from that of `target`."""
    return lambda network: -(weights(network)[QUERY] - target[QUERY]).norm().item()


def test_recovery_is_told_of_every_version(folder: Path) -> None:
    goal = {QUERY: weights(folder / "1.0")[QUERY] + products(folder)[QUERY]}
    score = near(goal)
    again = live(folder, "1.2")["1.2"]
    with torch.no_grad():
        again.get_submodule(QUERY.removesuffix(".weight")).weight.copy_(goal[QUERY])
    again.save_pretrained(folder / "retrained")
    evaluation = Evaluation(score, retrained={"1.2": folder / "retrained"})
    patch = Patch.open(folder / "adapter", folder / "1.0")
    options: dict[str, Any] = {"old": folder / "1.0", "evaluation": evaluation}
    first, second = chain(patch, bases(folder, "1.1", "1.2"), out=folder / "out", **options)
    old, ported = score(folder / "1.0"), [score(folder / "out" / n) for n in ("1.1", "1.2")]
    new = [score(folder / name) for name in ("1.1", "1.2")]
    assert second.recovery == recovery(
        old, pytest.approx(0, abs=1e-5), new[1], ported[1], score(folder / "retrained")
    )
    assert second.recovery is not None
    assert 0.3 < (second.recovery.share or 0) < 1
    # Without training anew there is a gain, and no share.
    assert first.recovery is not None
    assert (first.recovery.retrained, first.recovery.share, first.recovery.lost) == (None,) * 3
    assert first.portability.gain == first.recovery.gain == ported[0] - new[0]
    report = json.loads((folder / "out" / "chain_report.json").read_text())
    assert report["versions"][1]["recovery"]["share"] == second.recovery.share
    beside = json.loads((folder / "out" / "1.2" / "port_report.json").read_text())
    assert beside["gain"] == second.portability.gain
    # Live networks say the same, and nothing else is left of the folders.
    networks = live(folder, "1.0", "1.1", "1.2")
    again = chain(
        patch, {n: networks[n] for n in ("1.1", "1.2")}, old=networks["1.0"], evaluation=evaluation
    )[1].recovery
    assert again is not None
    assert vars(again) == pytest.approx(vars(second.recovery), abs=1e-5)
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["1.1", "1.2", "chain_report.json"]


@pytest.mark.parametrize("better", [True, False])
def test_a_version_below_a_floor_is_left_out_and_the_others_go_on(
    folder: Path, better: bool
) -> None:
    # The patch is worth something on 1.2 alone.
    target = weights(folder / "1.2")[QUERY] + products(folder)[QUERY]

    def score(network: Network) -> float:
        gap = (weights(network)[QUERY] - target).norm().item()
        close = gap < 1e-4
        return float(close if better else -close)

    patch = Patch.open(folder / "adapter", folder / "1.0")
    evaluation = Evaluation(score, greater_is_better=better)
    gate = Gate(min_gain=0.5)
    made = chain(patch, bases(folder), out=folder / "out", gate=gate, evaluation=evaluation)
    assert [version.portability.accepted for version in made] == [False, True, False]
    assert [version.folder for version in made] == [None, folder / "out" / "1.2", None]
    assert "the gain over the bare new base is 0" in made[0].portability.reasons[0]
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["1.2", "chain_report.json"]
    report = json.loads((folder / "out" / "chain_report.json").read_text())
    told = [version["portability"]["accepted"] for version in report["versions"]]
    assert told == [False, True, False]
    found = chain(patch, live(folder, *VERSIONS), gate=gate, evaluation=evaluation)
    assert [version.portability.accepted for version in found] == [False, True, False]


def test_a_version_too_far_away_is_neither_written_nor_scored(folder: Path) -> None:
    patch, old = Patch.open(folder / "adapter", folder / "1.0"), folder / "1.0"
    drifts = [patch.check(folder / name, old).drift or 0 for name in VERSIONS]
    scored: list[Network] = []
    evaluation = Evaluation(lambda network: scored.append(network) or 0.0)
    gate = Gate(max_drift=(drifts[1] + drifts[2]) / 2)
    made = chain(
        patch, bases(folder), old=old, out=folder / "out", gate=gate, evaluation=evaluation
    )
    assert [version.folder is not None for version in made] == [True, True, False]
    assert made[2].recovery is None
    assert folder / "1.3" not in scored
    assert not (folder / "out" / "1.3").exists()


def test_a_score_that_fails_leaves_no_folder_and_no_patch(folder: Path) -> None:
    added, before = products(folder)[QUERY], weights(folder / "1.1")

    def score(network: Network) -> float:
        if not torch.equal(weights(network)[QUERY], before[QUERY]):
            torch.testing.assert_close(weights(network)[QUERY], before[QUERY] + added)
            raise RuntimeError("out of luck")
        return 0.0

    patch, evaluation = Patch.open(folder / "adapter"), Evaluation(score)
    with pytest.raises(RuntimeError, match="luck"):
        chain(patch, bases(folder, "1.1"), out=folder / "out", evaluation=evaluation)
    assert not list((folder / "out").glob("*"))
    network = live(folder, "1.1")["1.1"]
    with pytest.raises(RuntimeError, match="luck"):
        chain(patch, {"1.1": network}, evaluation=evaluation)
    assert all(torch.equal(v, before[n]) for n, v in weights(network).items() if n in before)


def test_texts_are_read_by_every_version(folder: Path) -> None:
    networks = live(folder, "1.0", *VERSIONS)
    probe = Probe(networks["1.0"], [{"input_ids": torch.arange(1, 12)[None]}])
    patch = Patch.open(folder / "adapter")
    made = chain(patch, {n: networks[n] for n in VERSIONS}, probe=probe)
    drifts = [version.portability.activations[1].drift or 0 for version in made]
    assert 0 < drifts[0] < drifts[1] < drifts[2]
