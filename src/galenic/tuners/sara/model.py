"""SaRA as a peft tuner."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import set_additional_trainable_modules
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.tuners import _peft
from galenic.tuners._placing import PlacingTuner
from galenic.tuners._sparse import place_of
from galenic.tuners.sara.config import SaRAConfig
from galenic.tuners.sara.layer import SaRALayer
from galenic.tuners.sara.placement import choose, fingerprint

__all__ = ["SaRAConfig", "SaRAModel"]


class SaRAModel(BaseTuner):
    """A network whose smallest weights train."""

    prefix = "sara_"
    tuner_layer_cls = SaRALayer
    target_module_mapping: dict[str, list[str]] = {}
    targeted_parameter_names: list[str]

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Choose the values, and put a layer beside every parameter that has some.

        Raises:
            BackboneError: If nothing is chosen, or an adapter from a file chooses other weights
                than it was trained on.
        """
        # A copy: the caller's config is his, and may go on to another network.
        config: Any = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        for layer in self.layers():
            layer.unmerge()
        masks = choose(model, config)
        mark = fingerprint(masks)
        if config.mask is not None and config.mask != mark:
            raise BackboneError(
                f"The adapter was made for another network: it trains the values {config.mask}, "
                f"and the small weights of this {type(model).__name__} are {mark}.",
                expected="the very weights that the adapter was trained on",
            )
        config.mask = mark
        config.placed = {name: len(mask.index) for name, mask in masks.items()}
        for name, mask in masks.items():
            owner, key = place_of(model, name)
            known: Any = owner._modules.get(f"sara_{key}")
            found: SaRALayer = known if known is not None else SaRALayer(model, name)
            found.update_layer(adapter_name, config, mask)
        self.targeted_parameter_names = sorted({*self.targeted_parameter_names, *masks})
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )

    _replace_module = PlacingTuner._replace_module

    def _create_and_replace(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("sara replaces no module")

    # Training ---------------------------------------------------------------------------

    def layers(self) -> list[SaRALayer]:
        """One a parameter, in the network's order."""
        return [module for module in self.model.modules() if isinstance(module, SaRALayer)]

    def _active(self) -> Iterator[tuple[SaRALayer, str]]:
        for layer in self.layers():
            for name in self.active_adapters:
                if name in layer.sara_values:
                    yield layer, name

    @property
    def threshold(self) -> float:
        """The largest threshold of the active adapter's parameters."""
        return max((layer.mask(name).threshold for layer, name in self._active()), default=0.0)

    def rank_loss(self) -> Tensor:
        """The weighted nuclear norm, to be added to the loss of the task (equation 6).

        With `rank_sample="one"` of one matrix drawn from torch's global generator, else the sum
        over all of them.
        """
        large = [(layer, name) for layer, name in self._active() if layer.has_rank(name)]
        if not large:
            reference = next(self.model.parameters())
            return torch.zeros((), device=reference.device)
        config: Any = self.peft_config[large[0][1]]
        if config.rank_sample == "one":
            large = [large[int(torch.randint(len(large), ()))]]
        norms = [layer.rank_loss(name) for layer, name in large]
        total: Tensor = config.lambda_rank * torch.stack(norms).sum()
        return total

    def reselect(self) -> int:
        """Freeze the values that grew past the threshold; gives how many still train.

        The optimiser goes on as it is: moments of the others, count of steps and rate.
        """
        return sum(layer.reselect(name) for layer, name in self._active())

    def settle(self) -> None:
        """Undo what momentum or decay did to values that no longer train."""
        for layer, name in self._active():
            layer.settle(name)

    # Merging ----------------------------------------------------------------------------

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Write the values into the network, all of them or none.

        Raises:
            ValueError: If a value is not finite (`safe_merge`), or weights are merged already.
        """
        layers = self.layers()
        merged = [layer for layer in layers if layer.merged]
        try:
            for layer in layers:
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        except ValueError:
            for layer in layers:
                if layer not in merged:
                    layer.unmerge()
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self.merge_adapter(adapter_names, safe_merge=safe_merge)
        else:
            self.unmerge_adapter()
        for layer in self.layers():
            if not merge:
                layer.restore()
            layer.release()
        return super()._unload_and_optionally_merge(False, progressbar)


_peft.register("SARA", SaRAConfig, SaRAModel, prefix="sara_")
