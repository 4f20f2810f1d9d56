"""Settings of SSF, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig


@dataclass
class SSFConfig(PeftConfig):
    """Scaling and shifting of features (SSF).

    Source: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model
    Tuning", NeurIPS 2022, arXiv 2210.08823.

    Args:
        target_modules: `auto` (the paper's placement, outside the head), a list of names, or a
            pattern that a full name must match.
        exclude_modules: Names or pattern of modules that get no pair.
        init: `normal` (gamma ~ N(1, init_std), beta ~ N(0, init_std), as the authors' code) or
            `identity` (ones and zeros: the backbone's output to the bit).
        init_std: Standard deviation of `normal`.
        modules_to_save: Modules trained and saved whole, such as a head.
        last_blocks: Only the last so many blocks and what follows them.
        rebuild: Keep the output instead of the input for the backward pass. `auto`: after
            linear layers and layer or RMS norms, where nothing in the network writes in place.
        placed: The modules that carry a pair; filled when the adapter is made, so that the
            saved file names them.
    """

    target_modules: list[str] | str | None = field(default="auto")
    exclude_modules: list[str] | str | None = field(default=None)
    init: str = field(default="normal")
    init_std: float = field(default=0.02)
    modules_to_save: list[str] | None = field(default=None)
    last_blocks: int | None = field(default=None)
    rebuild: str = field(default="auto")
    placed: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "SSF"
        if self.target_modules is None:
            self.target_modules = "auto"
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if isinstance(self.exclude_modules, (set, tuple)):
            self.exclude_modules = sorted(self.exclude_modules)
        if self.init not in ("normal", "identity"):
            raise ValueError(f"init is {self.init!r}; expected 'normal' or 'identity'")
        if self.rebuild not in ("auto", "never"):
            raise ValueError(f"rebuild is {self.rebuild!r}; expected 'auto' or 'never'")
        if not self.init_std >= 0:
            raise ValueError(f"init_std is {self.init_std}; expected 0 or more")
