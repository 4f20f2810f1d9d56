"""galenic fits biomedical foundation models to patients."""

__version__ = "0.1.0"
