"""ECGFounder: a convolutional network for tracings, and its published checkpoints.

Li et al., "An Electrocardiogram Foundation Model Built on over 10 Million Recordings with
External Evaluation across Multiple Domains", NEJM AI 2025, arXiv 2410.04133.
"""

from galenic.models.ecg.net1d import Net1D, Net1DConfig

__all__ = ["Net1D", "Net1DConfig"]
