"""Merging four bfloat16 checkpoints: the streaming engine against a plain loop over state dicts.

The loop loads every checkpoint, works tensor by tensor in float32, and saves; it selects by a
sort, as mergekit does. `python -m benchmarks.merge_speed --mb 60 --method ties` is a short run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.harness import alternate, clocked, write_result
from galenic.merging import merge, merge_states
from galenic.merging.writing import Slot, header

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare", "breadcrumbs")
FAST, SLOW = 1.0, 0.4
DENSITY, GAMMA, ALPHA = 0.2, 0.01, 0.4
State = dict[str, Tensor]


def checkpoints(folder: Path, megabytes: int) -> int:
    """Write a base and three models; their largest tensor is an eighth. Returns its bytes."""
    width = 1024
    rows = megabytes * 1_000_000 // 2 // width
    shapes = {"embed.weight": (rows // 8, width)}
    left = rows - rows // 8
    layers = max(left // (4 * width), 1)
    for i in range(layers):
        shapes[f"layers.{i}.mlp.weight"] = (max(left // layers - 1, 1), width)
        shapes[f"layers.{i}.norm.weight"] = (width,)
    draw = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=draw).bfloat16() for n, s in shapes.items()}
    write_models(base, folder, draw)
    return max(t.nbytes for t in base.values())


def write_models(base: State, folder: Path, draw: torch.Generator) -> None:
    """`base` and three models a little off it, each in a folder of its own."""
    for name in ("base", "x", "y", "z"):
        (folder / name).mkdir()
        state = base
        if name != "base":
            state = {
                n: (t.float() + 0.05 * torch.randn(t.shape, generator=draw)).bfloat16()
                for n, t in base.items()
            }
        save_file(state, folder / name / "model.safetensors", {"format": "pt"})


def recipe(method: str, folder: Path) -> dict[str, Any]:
    """What the engine is given."""
    names = ["x"] if method == "slerp" else ["base", "x", "y", "z"][method != "linear" :]
    parameters: dict[str, Any] = {
        "linear": {},
        "slerp": {"t": 0.3, "norm": "keep"},
        "task_arithmetic": {"alpha": ALPHA},
        "ties": {"density": DENSITY, "alpha": ALPHA, "granularity": "tensor"},
        "dare": {"density": DENSITY, "alpha": ALPHA, "consensus": "sum"},
        "breadcrumbs": {"density": DENSITY, "gamma": GAMMA, "alpha": ALPHA},
    }[method]
    return {
        "method": method,
        "base_model": str(folder / "base"),
        "models": [str(folder / name) for name in names],
        "parameters": parameters,
    }


def loop(method: str, folder: Path, out: Path) -> None:
    """The same, as one would write it for state dicts."""
    names = ("base", "x") if method == "slerp" else ("base", "x", "y", "z")
    base, *models = (load_file(folder / n / "model.safetensors") for n in names)
    merged = {
        name: plain(method, value.float(), [m[name].float() for m in models]).to(value.dtype)
        for name, value in base.items()
    }
    out.mkdir()
    save_file(merged, out / "model.safetensors")
    _sync(out / "model.safetensors")


def plain(method: str, base: Tensor, models: list[Tensor]) -> Tensor:
    """One tensor in float32."""
    if method == "linear":
        return torch.stack([base, *models]).mean(0)
    if method == "slerp":
        a, b = base.reshape(-1), models[0].reshape(-1)
        omega = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
        if omega.cos().abs() > 0.9995:
            return 0.7 * base + 0.3 * models[0]
        s = torch.sin(omega)
        return torch.sin(0.7 * omega) / s * base + torch.sin(0.3 * omega) / s * models[0]
    deltas = [m - base for m in models]
    if method in ("ties", "breadcrumbs"):
        deltas = [d * _band(d, GAMMA if method == "breadcrumbs" else 0.0) for d in deltas]
    elif method == "dare":
        deltas = [d * torch.bernoulli(torch.full_like(d, DENSITY)) / DENSITY for d in deltas]
    stack = torch.stack(deltas)
    if method in ("ties", "dare"):
        agree = stack.sign() == (stack.sum(0) >= 0).float() * 2 - 1
        mixed = (stack * agree).sum(0)
        if method == "ties":
            mixed /= agree.sum(0).clamp(min=1)
    else:
        mixed = stack.sum(0)
    return base + ALPHA * mixed


def _band(delta: Tensor, gamma: float) -> Tensor:
    order = delta.abs().reshape(-1).sort(descending=True, stable=True).indices
    first = int(gamma * len(order))
    mask = torch.zeros(len(order))
    mask[order[first : first + int(DENSITY * len(order))]] = 1
    return mask.reshape(delta.shape)


def copy(method: str, folder: Path, out: Path) -> None:
    """Read every checkpoint and write the base: what the bytes alone cost."""
    names = ("base", "x") if method == "slerp" else ("base", "x", "y", "z")
    room = bytearray(4 << 20)
    for name in names[1:]:
        with (folder / name / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(room):
                pass
    out.mkdir()
    shutil.copyfile(folder / "base" / "model.safetensors", out / "model.safetensors")
    _sync(out / "model.safetensors")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def check(method: str, folder: Path) -> str:
    """Both sides give the same on one small set of tensors; how that was seen."""
    names = ("base", "x") if method == "slerp" else ("base", "x", "y", "z")
    small: dict[str, State] = {}
    for name in names:
        state = load_file(folder / name / "model.safetensors")
        small[name] = {n: t[:40].float() for n, t in state.items() if n.startswith(("embed", "l"))}
    values = recipe(method, folder)
    if method == "dare":
        values["parameters"]["density"] = 1.0
    models = {k: s for k, s in small.items() if k != "base" or method == "linear"}
    ours = merge_states(method, small["base"], models, values["parameters"])
    gap = 0.0
    for name, base in small["base"].items():
        others = [small[k][name] for k in names[1:]]
        if method == "dare":
            stack = torch.stack([o - base for o in others])
            agree = stack.sign() == (stack.sum(0) >= 0).float() * 2 - 1
            theirs = base + ALPHA * (stack * agree).sum(0)
        else:
            theirs = plain(method, base, others)
        gap = max(gap, (ours[name] - theirs).abs().max().item())
    assert gap < 1e-5, f"{method}: the results differ by {gap}"
    how = " (with nothing dropped: both draw their own masks)" if method == "dare" else ""
    return f"largest difference in float32 {gap:.1e}{how}"


MERGE = """
from benchmarks.merge_speed import recipe
from galenic.merging import merge
from galenic.merging.engine import merge_states
import torch
merge_states("breadcrumbs", {"w": torch.ones(9)}, {"x": {"w": torch.zeros(9)}})
clocked(lambda: merge(recipe(sys.argv[1], Path(sys.argv[2])), sys.argv[3]))
"""


def main() -> None:
    """Measure every method, and write a result for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=450, help="Size of each checkpoint.")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument(
        "--large", type=float, metavar="GB", help="Merge sparse checkpoints of this size instead."
    )
    arguments = parser.parse_args()
    if arguments.large:
        for method in arguments.method or ["breadcrumbs"]:
            large(method, arguments.large)
        return
    full = arguments.mb == 450
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        largest = checkpoints(folder, arguments.mb)
        size = (folder / "base" / "model.safetensors").stat().st_size
        for method in arguments.method or METHODS:
            _measure(method, folder, size, largest, full)


def large(method: str, gigabytes: float) -> None:
    """Merge checkpoints of zeros that need not fit in memory, and tell the most that was used.

    The parents take no room on the disk; the output takes all of its own.
    """
    shapes = {f"layers.{i}.w": (250_000, 1000) for i in range(max(int(gigabytes * 2), 1))}
    slots = [Slot(name, torch.bfloat16, shape) for name, shape in shapes.items()]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        for model in ("base", "x", "y", "z"):
            (folder / model).mkdir()
            with (folder / model / "model.safetensors").open("wb") as file:
                file.write(header(slots, {"format": "pt"}))
                file.truncate(file.tell() + sum(slot.bytes for slot in slots))
        seconds, peak = clocked(sys.executable, MERGE, method, folder, folder / "out")
    size = sum(slot.bytes for slot in slots) / 1e9
    print(f"{method}: four checkpoints of {size:.1f} GB in {seconds:.0f} s, peak {peak:.0f} MB")


def _measure(method: str, folder: Path, size: int, largest: int, full: bool) -> None:
    same = check(method, folder)
    gigabytes = size * (3 if method == "slerp" else 5) / 1e9
    quick = method in ("linear", "task_arithmetic", "slerp")

    def timed(work: Callable[[Path], Any]) -> Callable[[], float]:
        def run() -> float:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            work(out)
            return time.perf_counter() - started

        return run

    values = recipe(method, folder)
    peer = copy if quick else loop
    times = alternate(
        timed(lambda out: merge(values, out)), timed(lambda out: peer(method, folder, out))
    )
    speed = gigabytes / sorted(times.ours)[len(times.ours) // 2]
    _, peak = clocked(sys.executable, MERGE, method, folder, folder / "peak")
    limit = 4 * largest / 2**20 + 300
    print(f"{method}: {speed:.2f} GB/s; peak {peak:.0f} MB of {limit:.0f} MB", file=sys.stderr)
    wanted = f"{FAST} GB/s or 60 % of a copy" if quick else f"{SLOW} GB/s"

    def met(ratio: float) -> bool:
        fast = speed >= FAST or ratio <= 1 / 0.6 if quick else speed >= SLOW
        return fast and peak <= limit

    if full:
        write_result(
            name=f"merge_{method}",
            unit="s",
            times=times,
            peer={
                "name": "a plain copy" if quick else "a loop over state dicts",
                "version": torch.__version__,
            },
            reach=f"{wanted} (got {speed:.2f} GB/s), peak at most {limit:.0f} MB (got {peak:.0f})",
            met=met,
            same_result=same,
            module="merge_speed",
        )


if __name__ == "__main__":
    main()
