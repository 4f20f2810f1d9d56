"""Patches: what fine-tuning added, ported to later versions of its base without training.

    patch = Patch.from_peft("adapter/", base="model-1.0/")
    patch.check("model-1.1/", old="model-1.0/").drift
    patch.port("model-1.1/", "model-1.1-triage/", old="model-1.0/")

Source: "PortLLM: Personalizing Evolving Large Language Models with Training-Free and Portable
Model Patches", ICLR 2025, arXiv 2410.10870.
"""

from galenic.merging.patches.checking import Allowed, allowed
from galenic.merging.patches.patch import Patch
from galenic.merging.patches.portability import Drift, Portability
from galenic.merging.patches.recovery import Recovery, recovery

__all__ = ["Allowed", "Drift", "Patch", "Portability", "Recovery", "allowed", "recovery"]
