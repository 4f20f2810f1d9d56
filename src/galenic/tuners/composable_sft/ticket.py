"""The two phases on a network: what trains, what is chosen, what goes back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError, ConfigError
from galenic.models.delta import Delta
from galenic.tuners import Hooks, Stage
from galenic.tuners._network import freeze as freeze_all
from galenic.tuners._selection import Score, select
from galenic.tuners._sparse import SparseValues, sparse_values, write
from galenic.tuners.composable_sft.placement import maskable_names

if TYPE_CHECKING:
    from galenic.tuners.composable_sft import Config

_KEY = "_galenic_ticket"


class LotteryTicket:
    """A network in one of two phases (Ansell et al., 2022, section 3.1).

        ticket = LotteryTicket(network, k=1000)
        ...train...                    # dense
        ticket.sparsify()              # choose, rewind; make a new optimiser now
        ...train...                    # sparse
        delta = ticket.delta()

    Args:
        network: Changed in place: only the maskable tensors train.
        k: Entries to train; None for `proportion` of the maskable ones.
        proportion: Share of the maskable entries.
        maskable: `encoder`, or a pattern of full names.
        freeze: `norm`, or names of modules, that never train.
        mask: `lottery` (largest change), `magnitude` (largest weight) or `random`.
        on_top_of: File of a delta that is applied first, without its absolute tensors.

    Attributes:
        names: Of the maskable tensors.
        k: Entries to train.
        chosen: Flat places chosen so far, by name.

    Raises:
        BackboneError: If no tensor is maskable.
        ConfigError: If k is more than there is.
        WeightsError: If the delta of `on_top_of` belongs to another base.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        k: int | None = None,
        proportion: float = 0.01,
        maskable: str = "encoder",
        freeze: Sequence[str] = ("norm", "lm_head"),
        mask: str = "lottery",
        on_top_of: str | Path | None = None,
    ) -> None:
        # Choose before changing: an error must leave the network as it was.
        self.names = maskable_names(network, maskable, freeze)
        self.network, self.mask = network, mask
        self.size = sum(p.numel() for p in self.parameters().values())
        self.k = max(round(proportion * self.size), 1) if k is None else k
        if self.k > self.size:
            raise ConfigError(
                f"k is {self.k}, but only {self.size} entries of {type(network).__name__} are "
                "maskable.",
                where="tuner.k",
                expected=f"1 to {self.size}",
            )
        if on_top_of is not None:
            Delta.load(Path(on_top_of)).apply(network, with_abs=False)
        self.chosen: dict[str, Tensor] = {}
        # At the chosen places: what stood there at the beginning, and when the round began.
        self._first: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        # In the sparse phase the network itself is the start, but for the chosen places.
        self._dense: dict[str, Tensor] = {}
        freeze_all(network)
        self.densify()
        network.__dict__[_KEY] = self

    @property
    def sparse(self) -> bool:
        """Whether only the chosen entries train."""
        return bool(sparse_values(self.network))

    def parameters(self) -> dict[str, nn.Parameter]:
        """The maskable tensors themselves."""
        return {name: self.network.get_parameter(name) for name in self.names}

    def start(self, name: str) -> Tensor:
        """What the tensor held at the beginning."""
        if name in self._dense:
            return self._dense[name]
        found = self.network.get_parameter(name).detach().clone()
        if name in self.chosen:
            write(found, self.chosen[name], self._first[name])
        return found

    # Phases -----------------------------------------------------------------------------

    def densify(self) -> None:
        """Let every maskable entry train, from where the last sparse phase ended."""
        for module in sparse_values(self.network):
            module.release()
        live = self.parameters()
        if not self._dense:
            self._dense = {name: self.start(name) for name in self.names}
        self._before = {n: live[n].detach().reshape(-1)[i] for n, i in self.chosen.items()}
        for parameter in live.values():
            parameter.requires_grad_(True)

    @torch.no_grad()
    def sparsify(self, share: int | None = None) -> None:
        """Choose entries, put all tensors back, and let only those that are chosen train.

        All go back to the start; in a later round the entries chosen before go back to what
        they were when the round began.

        Args:
            share: How many to choose beside those chosen before; None for all k.

        Raises:
            BackboneError: If nothing changed, so that there is nothing to choose, or a weight
                is no longer finite.
        """
        share = self.k if share is None else share
        if not self._dense:
            self.densify()
        live = self.parameters()
        free: dict[str, Tensor] | None = None
        if self.chosen:
            free = {n: torch.ones_like(p, dtype=torch.bool) for n, p in live.items()}
            for name, index in self.chosen.items():
                free[name].view(-1)[index] = False
        keep_zeros = self.mask == "random"
        try:
            found = select(self._scores(), share, allowed=free, drop_zeros=not keep_zeros)
        except ValueError as error:
            raise BackboneError(f"'composable_sft' cannot choose: {error}.") from None
        if not found.count and not self.chosen:
            raise BackboneError(
                "No weight changed in the dense phase: there is nothing to choose from.",
                expected="a dense training before the sparse one",
            )
        for name, parameter in live.items():
            parameter.data.copy_(self._dense[name])
            if name in self.chosen:
                write(parameter, self.chosen[name], self._before[name])
            parameter.requires_grad_(False)
        for name, index in found.index.items():
            known = self.chosen.get(name)
            both = index if known is None else torch.cat([known, index])
            self.chosen[name] = both.sort().values
            self._first[name] = self._dense[name].reshape(-1)[self.chosen[name]]
        for name in self.names:
            if name in self.chosen:
                SparseValues(self.network, name, self.chosen[name])
        self._dense = {}

    def _scores(self) -> dict[str, Score]:
        draw = torch.Generator().manual_seed(torch.initial_seed() % 2**63)

        def score(name: str) -> Tensor:
            live = self.network.get_parameter(name).detach()
            if self.mask == "lottery":
                return (live - self._dense[name]).abs()
            if self.mask == "magnitude":
                return live.abs()
            # Drawn anew at each call: every tensor has a seed of its own.
            draw.manual_seed(torch.initial_seed() % 2**62 + self.names.index(name))
            return torch.rand(live.shape, generator=draw).to(live.device)

        return {name: partial(score, name) for name in self.names}

    # Training ---------------------------------------------------------------------------

    def pull(self, dense: float, sparse: float) -> Tensor:
        """`c * sum |theta - theta_0| / n` over the maskable entries (the paper's eq. 3).

        Args:
            dense: c in the dense phase.
            sparse: c in the sparse phase.
        """
        terms = []
        if self.sparse:
            for module in sparse_values(self.network):
                first = self._first[module.swap.name].to(module.values.dtype)
                terms.append((module.values.reshape(-1) - first).abs().sum())
        else:
            terms = [(p - self._dense[n]).abs().sum() for n, p in self.parameters().items()]
        return (sparse if self.sparse else dense) * torch.stack(terms).sum() / self.size

    def hooks(self, config: Config) -> Hooks:
        """The stages of a training, as `galenic.tuners` runs them.

        Raises:
            ConfigError: If a round would have nothing to choose.
        """
        if config.iterations > self.k:
            raise ConfigError(
                f"Each of {config.iterations} rounds chooses one entry at least, and k is {self.k}.",
                where="tuner.iterations",
                expected=f"1 to {self.k}",
            )
        stages: list[Stage] = []
        for turn in range(config.iterations):
            end = "" if config.iterations == 1 else f"-{turn + 1}"
            share = self.k // config.iterations
            if turn == config.iterations - 1:
                share = self.k - share * turn
            lottery = config.mask == "lottery"
            if lottery:
                stages.append(Stage(f"dense{end}", self.densify, config.phase1.keys()))
            begin = partial(self.sparsify if lottery else self._again, share)
            stages.append(Stage(f"sparse{end}", begin, config.phase2.keys(), rewind_head=lottery))
        penalty = None
        if config.l1_dense or config.l1_sparse:
            penalty = partial(self.pull, config.l1_dense, config.l1_sparse)
        return Hooks(stages=tuple(stages), penalty=penalty)

    def _again(self, share: int) -> None:
        self.densify()
        self.sparsify(share)

    # Results ----------------------------------------------------------------------------

    def delta(self, base: str = "", eps: float = 0.0) -> Delta:
        """The difference from the start, of what is maskable.

        Args:
            base: Fingerprint of the network that it is to be added to.
            eps: Differences up to this size are left out (1e-7 in the authors' code).
        """
        for module in sparse_values(self.network):
            module.flush()
        before = {name: self.start(name) for name in self.names}
        now: dict[str, Any] = dict(self.parameters())
        return Delta.from_models(before, now, eps=eps, fingerprint=base)

    @torch.no_grad()
    def put(self, delta: Delta) -> None:
        """Set the network to the start plus `delta`.

        Raises:
            WeightsError: If a tensor is unknown or of another shape; names it.
        """
        state = delta.applied({name: self.start(name) for name in self.names}, check=False)
        for module in sparse_values(self.network):
            module.release()
        for name, parameter in self.parameters().items():
            parameter.copy_(state[name])


def ticket_of(network: nn.Module) -> LotteryTicket | None:
    """The ticket of a network, where it has one."""
    found: LotteryTicket | None = network.__dict__.get(_KEY)
    return found


def require_ticket(network: nn.Module) -> LotteryTicket:
    """The ticket of a network.

    Raises:
        BackboneError: If it has none.
    """
    found = ticket_of(network)
    if found is None:
        raise BackboneError(
            "'composable_sft' is not attached to this network.", next_step="attach() first."
        )
    return found
