"""Merging four bfloat16 checkpoints of one Llama: our engine against mergekit, from its own recipe.

mergekit lives in an environment of its own: `MERGEKIT=/path/to/its/python python -m
benchmarks.merge_peer`. Each merge runs in a fresh process, imports not counted, and is told by
itself; both are given the same threads and the same file. `--mb 60 --method ties` is a short run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.harness import alternate, clocked, write_result
from benchmarks.merge_speed import write_models

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties", "breadcrumbs")
WIDTH, INNER, WORDS = 1024, 2816, 16_000
THREADS = 2
# MB of each checkpoint in what is written; at 450, as in merge_speed, mergekit takes half an hour.
SIZE = 120

OURS = """
from galenic.merging import merge
import galenic.merging.engine
clocked(lambda: merge(sys.argv[1], sys.argv[2]))
"""
THEIRS = """
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, lazy_unpickle=True)
clocked(lambda: run_merge(config, sys.argv[2], options))
"""


def checkpoints(folder: Path, megabytes: int) -> int:
    """Write a Llama and three fine-tunings of it; gives the bytes of each."""
    layer = {
        **{f"self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"},
        **{f"mlp.{n}_proj.weight": (INNER, WIDTH) for n in ("gate", "up")},
        "mlp.down_proj.weight": (WIDTH, INNER),
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
    }
    ends = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    ends["lm_head.weight"] = (WORDS, WIDTH)
    of_layer = 4 * WIDTH**2 + 3 * INNER * WIDTH
    layers = max(round((megabytes * 1e6 / 2 - 2 * WORDS * WIDTH) / of_layer), 1)
    shapes: dict[str, tuple[int, ...]] = dict(ends)
    for place in range(layers):
        shapes |= {f"model.layers.{place}.{n}": s for n, s in layer.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": WORDS, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=draw).bfloat16() for n, s in shapes.items()}
    write_models(base, folder, draw)
    for name in ("base", "x", "y", "z"):
        (folder / name / "config.json").write_text(json.dumps(config))
    return (folder / "base" / "model.safetensors").stat().st_size


def recipe(method: str, folder: Path) -> Path:
    """A file that both read."""
    names = ["base", "x", "y", "z"] if method == "linear" else ["x", "y", "z"]
    each: dict[str, float] = {"weight": 1.0}
    values: dict[str, Any] = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16"}
    if method in ("ties", "dare_ties", "breadcrumbs"):
        each["density"] = 0.2
    if method == "breadcrumbs":
        each["gamma"] = 0.01
    if method == "slerp":
        names, each, values["parameters"] = ["base", "x"], {}, {"t": 0.3}
    elif method != "linear":
        values["parameters"] = {"lambda": 0.4}
    if method != "linear":
        values["base_model"] = str(folder / "base")
    values["models"] = [{"model": str(folder / n), "parameters": each} for n in names]
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(python: str, script: str, config: Path, out: Path) -> tuple[float, float]:
    """Seconds of a merge in a process of its own, and the MB that it held at most."""
    shutil.rmtree(out, ignore_errors=True)
    return clocked(python, script, config, out, OMP_NUM_THREADS=str(THREADS))


def difference(ours: Path, theirs: Path, method: str) -> str:
    """How far both results are apart, in steps of bfloat16 at the value."""
    if method == "dare_ties":
        return "each draws masks of its own"
    left = {n: t for p in sorted(ours.glob("*.safetensors")) for n, t in load_file(p).items()}
    right = {n: t for p in sorted(theirs.glob("*.safetensors")) for n, t in load_file(p).items()}
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    same = total = 0
    gap = 0.0
    for name, value in left.items():
        a, b = value.float(), right[name].float()
        near = (a - b).abs() <= 2**-7 * a.abs().clamp_min(1e-2)
        same, total = same + int(near.sum()), total + near.numel()
        gap = max(gap, float((a - b).abs().max()))
    found = (
        f"{same / total:.4%} of all weights within a step of bfloat16, largest difference {gap:.1e}"
    )
    if method in ("ties", "breadcrumbs"):
        # With float32 checkpoints, where hardly two changes are equal, all weights agree.
        found += "; the others are changes of equal size at the edge of what is kept"
    return found


def main() -> None:
    """Measure every method, and write a result for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=SIZE, help="Size of each checkpoint.")
    parser.add_argument("--method", choices=METHODS, action="append")
    arguments = parser.parse_args()
    mergekit = os.environ.get("MERGEKIT")
    if mergekit is None:
        print("merge_peer: left out; MERGEKIT=PYTHON names an interpreter that has mergekit")
        return
    asked = [mergekit, "-c", "import importlib.metadata as m; print(m.version('mergekit'))"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = checkpoints(folder, arguments.mb)
        for method in arguments.method or METHODS:
            config = recipe(method, folder)
            peaks: dict[str, list[float]] = {"ours": [], "theirs": []}

            def ours(config: Path = config, peaks: dict[str, list[float]] = peaks) -> float:
                seconds, peak = run(sys.executable, OURS, config, folder / "ours")
                peaks["ours"].append(peak)
                return seconds

            def theirs(config: Path = config, peaks: dict[str, list[float]] = peaks) -> float:
                seconds, peak = run(mergekit, THEIRS, config, folder / "theirs")
                peaks["theirs"].append(peak)
                return seconds

            times = alternate(ours, theirs, warmup=0)
            same = difference(folder / "ours", folder / "theirs", method)
            moved = size * (3 if method == "slerp" else 5) / 1e9
            middle = sorted(times.ours)[len(times.ours) // 2]
            memory = f"{max(peaks['ours']):.0f} MB at most, mergekit {max(peaks['theirs']):.0f} MB"
            ratio = times.ratio
            print(
                f"{method}: {ratio:.3f} of the time, {moved / middle:.2f} GB/s; {memory}; {same}",
                file=sys.stderr,
            )
            if arguments.mb == SIZE:
                write_result(
                    name=f"mergekit_{method}",
                    unit="s",
                    times=times,
                    peer={"name": "mergekit", "version": version},
                    reach=f"faster, four checkpoints of {SIZE} MB (got {moved / middle:.2f} GB/s)",
                    met=lambda ratio: ratio < 1,
                    same_result=f"{same}; {memory}",
                    module="merge_peer",
                )


if __name__ == "__main__":
    main()
