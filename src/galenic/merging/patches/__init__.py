"""Patches: what fine-tuning added, ported to later versions of its base without training.

    patch = Patch.from_peft("adapter/", base="model-1.0/")
    patch.check("model-1.1/", old="model-1.0/").drift
    patch.port("model-1.1/", "model-1.1-triage/", old="model-1.0/", gate=Gate(max_drift=0.3))
    chain(patch, {"1.1": "model-1.1/", "1.2": "model-1.2/"}, old="model-1.0/", out="triage/")

Source: "PortLLM: Personalizing Evolving Large Language Models with Training-Free and Portable
Model Patches", ICLR 2025, arXiv 2410.10870.
"""

from galenic.merging.patches.activations import ActivationDrift, Probe, activation_drift
from galenic.merging.patches.chain import Evaluation, Version, chain
from galenic.merging.patches.checking import Allowed, allowed
from galenic.merging.patches.gate import Gate, judged
from galenic.merging.patches.patch import Patch
from galenic.merging.patches.portability import Drift, Portability
from galenic.merging.patches.recovery import Recovery, recovery

__all__ = [
    "ActivationDrift",
    "Allowed",
    "Drift",
    "Evaluation",
    "Gate",
    "Patch",
    "Portability",
    "Probe",
    "Recovery",
    "Version",
    "activation_drift",
    "allowed",
    "chain",
    "judged",
    "recovery",
]
