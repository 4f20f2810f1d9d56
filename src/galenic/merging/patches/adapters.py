"""A PEFT adapter folder as differences, or the reason why it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.merging.checkpoints import Checkpoint
from galenic.models.delta import Dense, Entry, LowRank

_CONFIG, _PREFIX = "adapter_config.json", "base_model.model."
_PART = re.compile(r"(?P<layer>.+)\.lora_(?P<kind>embedding_)?(?P<part>[AB])(?P<leaf>\.\w+)?")
_NOT_ADDED = {
    "IA3": "it multiplies activations",
    "SSF": "it scales and shifts activations",
    "OFT": "it rotates the weights of its own base",
    "BOFT": "it rotates the weights of its own base",
    "HRA": "it reflects the weights of its own base",
    "PROMPT_TUNING": "it adds words, not weights",
    "P_TUNING": "it adds words, not weights",
    "PREFIX_TUNING": "it adds keys and values, not weights",
    "ADAPTION_PROMPT": "it adds words, not weights",
    "TRAINABLE_TOKENS": "it replaces rows of the vocabulary, of new tokens often",
}
# What of LoRA's many switches makes more of it than `weight + s B A`.
_SWITCHES = {
    "use_dora": "DoRA rescales by the column norms of its own base",
    "use_qalora": "QALoRA pools the inputs of a quantised base",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "aLoRA acts from some token on, and on nothing before it",
    "arrow_config": "Arrow chooses between adapters token by token",
    "kasa_config": "KaSA cuts singular values off its base",
    "monteclora_config": "its factors are drawn",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it acts on bare parameters, such as those of experts",
    "trainable_token_indices": "it trains rows of the vocabulary, of new tokens often",
}
_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass
class _Pair:
    """The tensors of one layer: `A` [r, in, ...], `B` [out, r, ...], maybe the `bias` of B."""

    embedding: bool
    parts: dict[str, Tensor] = field(default_factory=dict)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A as [r, columns], the kernel of a convolution among its columns, and B as [rows, r]."""
        return self.parts["A"].flatten(1), self.parts["B"].flatten(1)

    def require_whole(self, layer: str, rank: int, folder: Path) -> None:
        """Check that both factors are there, and of the rank that the config says."""
        for part in "AB":
            if part not in self.parts:
                _refuse(f"'{layer}' has no lora_{part}", folder)
        a, b = self.factors()
        if not len(a) == b.shape[1] == rank:
            _refuse(
                f"'{layer}' has an A of rank {len(a)}, a B of rank {b.shape[1]}, and rank {rank} in "
                "the config",
                folder,
            )


@dataclass(frozen=True)
class Adapter:
    """What a LoRA folder holds, by the names of the network that it was trained in.

    Attributes:
        whole: Trained tensors that are values, not differences: heads, biases.
        base: Fingerprint of the base, where the folder tells it.
    """

    whole: dict[str, Tensor]
    base: str
    _folder: Path
    _config: Mapping[str, Any]
    _pairs: Mapping[str, _Pair]

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read what `PeftModel.save_pretrained` wrote.

        Raises:
            WeightsError: If it is no additive difference, with the reason; if a factor is missing,
                of another rank than the config says, or not finite; names the tensor.
        """
        config = _read_config(folder)
        _require_additive(config, folder)
        with Checkpoint.open(folder) as opened:
            pairs, whole = _sorted(opened, folder)
            base = opened.metadata.get("base_fingerprint", "")
        for layer, pair in pairs.items():
            pair.require_whole(layer, _rank(config, layer), folder)
        return cls(whole, base, folder, config, pairs)

    @property
    def targets(self) -> list[str]:
        """Names of the weights that get a product."""
        return [f"{layer}.weight" for layer in self._pairs]

    def entries(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Entry]:
        """Differences `s B A`, by name of tensor.

        s is alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, arXiv 2312.03732), each layer
        with its own r and alpha.

        Args:
            shapes: Of the base's tensors, as far as they are known: they tell which layers keep
                their weight as [in, out].

        Raises:
            WeightsError: If that cannot be told; names the layer.
        """
        turned = _turned(
            self._pairs, shapes, bool(self._config.get("fan_in_fan_out")), self._folder
        )
        found: dict[str, Entry] = {}
        for layer, pair in sorted(self._pairs.items()):
            a, b = pair.factors()
            scale = _scale(self._config, layer, len(a))
            shape = (len(b), *pair.parts["A"].shape[1:])
            if pair.embedding or layer in turned:
                a, b, shape = b.T.contiguous(), a.T.contiguous(), shape[::-1]
            found[f"{layer}.weight"] = LowRank(b, a, scale, shape)
            if "bias" in pair.parts:
                found[f"{layer}.bias"] = Dense(scale * pair.parts["bias"])
        return found


def _turned(
    pairs: Mapping[str, _Pair], shapes: Mapping[str, tuple[int, ...]], declared: bool, folder: Path
) -> set[str]:
    """Layers that keep their weight as [in, out], as transformers' Conv1D.

    The shape in the base tells; a square layer is taken to be as the others are, or as the config
    says, which has one word for all layers.
    """
    told: dict[str, bool] = {}
    untold: list[str] = []
    for layer, pair in pairs.items():
        if pair.embedding or pair.parts["A"].ndim > 2:
            continue
        ours = (len(pair.parts["B"]), pair.parts["A"].shape[1])
        theirs = shapes.get(f"{layer}.weight")
        if theirs is None or ours[0] == ours[1]:
            untold.append(layer)
        else:
            told[layer] = theirs == ours[::-1]
    kinds = set(told.values())
    if untold and len(kinds) == 2:
        _refuse(f"'{untold[0]}' may be [out, in] or [in, out]: other layers are of both", folder)
    guess = kinds.pop() if len(kinds) == 1 else declared
    return {layer for layer, is_so in told.items() if is_so} | set(untold if guess else ())


def _sorted(opened: Checkpoint, folder: Path) -> tuple[dict[str, _Pair], dict[str, Tensor]]:
    """Factors by layer, and all other tensors, as float32 copies."""
    pairs: dict[str, _Pair] = {}
    whole: dict[str, Tensor] = {}
    for key, stored in opened.items():
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if not bool(stored.isfinite().all()):
            _refuse(f"'{key}' is not finite", folder)
        found = _PART.fullmatch(name)
        if found is None:
            if "lora_" in name or "token_adapter" in name:
                _refuse(f"'{key}' is no factor of a plain LoRA", folder)
            whole[name] = stored.clone()
            continue
        pair = pairs.setdefault(found["layer"], _Pair(found["kind"] is not None))
        part = "bias" if found["leaf"] == ".bias" else found["part"]
        # bfloat16 would round s B A away before it is added.
        pair.parts[part] = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
    if not pairs and not whole:
        _refuse("it holds no tensors: the patch is empty", folder)
    return pairs, whole


def _rank(config: Mapping[str, Any], layer: str) -> int:
    return int(_by_layer(config, layer, "rank_pattern", "r"))


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = float(_by_layer(config, layer, "alpha_pattern", "lora_alpha"))
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _by_layer(config: Mapping[str, Any], layer: str, pattern: str, default: str) -> Any:
    from peft.utils.other import get_pattern_key

    values = config.get(pattern) or {}
    return values.get(get_pattern_key(list(values), layer), config[default])


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        found["peft_type"] = str(found["peft_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(
            f"'{folder.name}' is no adapter of PEFT: its {_CONFIG} is missing or damaged.",
            where=str(folder),
            expected=f"{_CONFIG} and adapter_model.safetensors",
        ) from None
    return dict(found)


def _require_additive(config: Mapping[str, Any], folder: Path) -> None:
    kind = config["peft_type"]
    if kind != "LORA":
        why = _NOT_ADDED.get(kind, "it is not known to be a sum of base and s B A")
        _refuse(f"{kind} is no difference to add: {why}", folder)
    for key, why in _SWITCHES.items():
        if config.get(key):
            _refuse(f"it was trained with {key}, and is no difference to add: {why}", folder)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_INITS):
        raise WeightsError(
            f"'{folder.name}' was begun with {init}, which changes the base: its factors are a "
            "difference from that changed base, not from the one that was opened.",
            where=str(folder / _CONFIG),
            next_step="Save it with path_initial_model_for_weight_conversion, which gives a plain "
            "LoRA, or take Patch.from_checkpoints(base, merged).",
        )


def _refuse(why: str, folder: Path) -> NoReturn:
    raise WeightsError(
        f"'{folder.name}' cannot be ported: {why}.",
        where=str(folder),
        expected="a LoRA whose layers are weight + s B A",
        next_step="Train a plain LoRA; or merge it into its own base, and take the difference: "
        "Patch.from_checkpoints(base, merged).",
    )
