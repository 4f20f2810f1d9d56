"""The selective scan of Mamba, in plain torch.

Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
arXiv 2312.00752, algorithm 2:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,        y_t = C_t h_t.

Time goes by in chunks, whose states [T, B, N, D] are few enough to stay in a processor's cache.
Only the state at the start of each chunk is kept for the backward pass, which computes the others
again. A decay is multiplied with, never divided by and never summed as a logarithm: one that is
zero in the type of the computation forgets exactly.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Plan(NamedTuple):
    """How a scan is cut; the result does not depend on it.

    Attributes:
        chunk: Steps whose states are held at once.
        span: Steps of a lane. The lanes of a chunk go forward side by side, and then each takes
            up the last state of the lane before. With 1, step follows step.
    """

    chunk: int
    span: int


# Values of a chunk, and of a step that is worth a call: 2**19 of float32 stay in a processor's
# cache and are work enough for its threads; a GPU does a million in the time of a call.
SIZES = {"cpu": (2**19, 2**11)}
GPU_SIZES = (2**24, 2**20)
SHORTEST = 16


def plan_for(device: torch.device, values: int) -> Plan:
    """The plan for a device and a state of so many values.

    A chunk has at least 16 steps: the states that are kept then take no more memory than the
    input does, at the usual 16 states a channel.
    """
    held, worth = SIZES.get(device.type, GPU_SIZES)
    chunk = max(held // values, SHORTEST)
    lanes = min(worth // values, math.isqrt(chunk))
    return Plan(chunk - chunk % lanes, chunk // lanes) if lanes > 1 else Plan(chunk, 1)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    *,
    plan: Plan | None = None,
    starts: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan a sequence, in float32 or what is wider, also under autocast.

    Args:
        x: Input [B, L, D].
        dt: Step sizes [B, L, D], positive.
        A: Decay rates [D, N], negative.
        B: Input maps [B, L, N].
        C: Output maps [B, L, N].
        state: Before the first step [B, D, N]; None for zero.
        plan: None for what suits the device.
        starts: For a caller that computes the inputs once more in the backward pass: empty, it is
            filled with the states that are kept; filled, nothing is scanned, and the output holds
            no values.

    Returns:
        Output [B, L, D] in the type of `x`, and the state after the last step [B, D, N] in the
        type of the computation.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = x.new_zeros(len(x), *A.shape, dtype=wide)
    operands = [v.to(wide) for v in (x, dt, A, B, C, state)]
    if x.shape[1] == 1:
        y, last = _step(*operands)
    else:
        y, last = _Scan.apply(*operands, plan or plan_for(x.device, state.numel()), starts)
    return y.to(x.dtype), last


def _step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """A sequence of one, as in decoding: the equation as it is written."""
    x, dt = x.mT, dt.mT  # [B, D, 1]
    state = torch.addcmul((dt * A).exp() * state, dt * x, B)
    return (state * C).sum(-1).unsqueeze(1), state


def sweep(
    decay: Tensor, states: Tensor, start: Tensor, span: int = 1, *, reverse: bool = False
) -> None:
    """`states[t] += decay[t] * states[t - 1]`, in place, one step after the other.

    Args:
        decay: [T, ...].
        states: [T, ...]; what enters at each step, and in the end the states.
        start: State [...] before the first step.
        span: Steps of a lane; where it does not divide T, their greatest common divisor.
        reverse: From the last step to the first: `states[t] += decay[t] * states[t + 1]`.
    """
    span = math.gcd(span, len(decay))
    order, last = (slice(None, None, -1), 0) if reverse else (slice(None), -1)
    if span > 1:
        decay = decay.clone()
        steps = (v.unflatten(0, (-1, span)).unbind(1)[order] for v in (decay, states))
        for (fall, before), (gain, now) in pairwise(zip(*steps, strict=True)):
            now.addcmul_(gain, before)
            gain.mul_(fall)  # the decay since the lane began
    lanes = (v.split(span)[order] for v in (decay, states))
    for gain, now in zip(*lanes, strict=True):
        now.addcmul_(gain, start)
        start = now[last]


class _Chunks:
    """A sequence with time first, and the states of one chunk of it at a time.

    Attributes:
        x: [L, B, 1, D]; so is `dt`.
        A: [N, D].
        B: [L, B, 1, N].
        windows: The chunks, in order.
        decay: Of each step of the present chunk [T, B, N, D].
        after: Of the step after each [T, B, N, D]; 1 after the last of all.
        before: State before each step [T, B, N, D].
        states: State after each step [T, B, N, D].
    """

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, plan: Plan) -> None:
        self.x, self.dt, self.B = _rows(x), _rows(dt), _rows(B)
        self.A = A.T.contiguous()
        self.span = plan.span
        length = x.shape[1]
        size = min(plan.chunk, length)
        whole = length - length % plan.span  # what does not fill a lane is a chunk of its own
        begins = sorted({*range(0, length, size), whole} - {length})
        self.windows = [slice(*ends) for ends in pairwise([*begins, length])]
        self._decay = x.new_ones(size + 1, len(x), *self.A.shape)
        self._states = torch.empty_like(self._decay)

    def compute(self, window: slice, start: Tensor) -> None:
        """Make a chunk the present one; it begins at the state `start` [B, N, D]."""
        size = window.stop - window.start
        self._decay[size] = self._decay[0]  # what the chunk after this one left
        self.decay, self.after = self._decay[:size], self._decay[1 : size + 1]
        self.before, self.states = self._states[:size], self._states[1 : size + 1]
        self._states[0] = start
        torch.mul(self.dt[window], self.A, out=self.decay).exp_()
        entering = self.dt[window] * self.x[window]
        torch.mul(self.B[window].transpose(2, 3), entering, out=self.states)
        sweep(self.decay, self.states, start, self.span)


class _Scan(torch.autograd.Function):
    """The scan; keeps its inputs and the state at the start of each chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        plan: Plan,
        known: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Output [B, L, D] and last state [B, D, N]."""
        ctx.plan = plan
        if known:
            ctx.save_for_backward(x, dt, A, B, C, *known)
            return torch.empty_like(x), torch.empty_like(state)
        with torch.autocast(x.device.type, enabled=False):
            chunks, outward = _Chunks(x, dt, A, B, plan), _rows(C)
            start, starts, outputs = state.transpose(1, 2).contiguous(), [], []
            for window in chunks.windows:
                chunks.compute(window, start)
                outputs.append(outward[window] @ chunks.states)
                if any(ctx.needs_input_grad):
                    starts.append(start)
                start = chunks.states[-1].clone()
        ctx.save_for_backward(x, dt, A, B, C, *starts)
        if known is not None:
            known.extend(starts)
        return _unrows(torch.cat(outputs)), start.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors."""
        x, dt, A, B, C, *starts = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            chunks, outward, dy = _Chunks(x, dt, A, B, ctx.plan), _rows(C), _rows(dy)
            grads = _Gradients(chunks, dlast.transpose(1, 2))
            dC = torch.empty_like(outward)
            for window, start in zip(chunks.windows[::-1], starts[::-1], strict=True):
                chunks.compute(window, start)
                dC[window] = dy[window] @ chunks.states.transpose(2, 3)
                grads.compute(window, outward[window].transpose(2, 3), dy[window])
            dstate = chunks.decay[0] * grads.first
        dx, ddt, dB, dC = (_unrows(v) for v in (grads.dx, grads.ddt, grads.dB, dC))
        return dx, ddt, grads.dA.T, dB, dC, dstate.transpose(1, 2), None, None


class _Gradients:
    """The way back through the states: dh_t = C_t dy_t + exp(dt_{t+1} A) dh_{t+1}.

    Attributes:
        first: Gradient of the first state of the present chunk [B, N, D].
        dx: As `x` of the chunks; so are `ddt`, `dA` and `dB`.
    """

    def __init__(self, chunks: _Chunks, last: Tensor) -> None:
        self.chunks, self.first = chunks, last
        self.dx, self.ddt, self.dB = (torch.empty_like(v) for v in (chunks.x, chunks.dt, chunks.B))
        self.dA = torch.zeros_like(chunks.A)
        self._dh = torch.empty_like(chunks._decay)

    def compute(self, window: slice, outward: Tensor, dy: Tensor) -> None:
        """The gradients of the present chunk; uses up its states.

        Args:
            window: The chunk.
            outward: Its C [T, B, N, 1].
            dy: [T, B, 1, D].
        """
        chunks = self.chunks
        dh = self._dh[: len(dy)]
        torch.mul(outward, dy, out=dh)
        sweep(chunks.after, dh, self.first, chunks.span, reverse=True)
        self.first = dh[0].clone()
        x, dt = chunks.x[window], chunks.dt[window]
        self.dB[window] = (dt * x) @ dh.transpose(2, 3)
        dentering = chunks.B[window] @ dh
        self.dx[window] = dt * dentering
        drate = dh.mul_(chunks.decay).mul_(chunks.before)  # of dt A
        scratch = torch.mul(drate, chunks.A, out=chunks.states)
        self.ddt[window] = torch.addcmul(scratch.sum(2, keepdim=True), x, dentering)
        scratch = torch.mul(drate, dt, out=chunks.states)
        self.dA += scratch.sum((0, 1))


def _rows(values: Tensor) -> Tensor:
    """[B, L, D] as [L, B, 1, D]."""
    return values.transpose(0, 1).unsqueeze(2)


def _unrows(values: Tensor) -> Tensor:
    """[L, B, 1, D] as [B, L, D]."""
    return values.squeeze(2).transpose(0, 1)
