"""Twins of patients: agent-based models, metamodels of them, and controllers that steer both.

"Control of Medical Digital Twins with Artificial Neural Networks", arXiv 2403.13851, and its
companion on metamodels, arXiv 2402.05750. No result here is a recommendation of a treatment.
"""
