"""Detectors: a pyramid of maps on any image network, an anchor-free head, boxes out."""
