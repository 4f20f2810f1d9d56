"""DICOM stills of four modalities, for a first look at how such files are read and checked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from galenic.data.samples._sample import SampleCohort

# By patient: modality and files. Copies of one picture in several encodings stay in, for
# `galenic check` to find.
FILES = [
    ("CT", ["CT_small"]),
    ("CT", ["693_J2KI"]),
    ("CT", ["J2K_pixelrep_mismatch"]),
    ("MR", ["MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit"]),
    ("MR", ["examples_overlay"]),
    ("US", ["ExplVR_BigEnd"]),
    ("US", ["examples_jpeg2k", "examples_rgb_color"]),
    ("US", ["examples_palette"]),
]


def build() -> SampleCohort:
    """The readable CT, MR and ultrasound stills that pydicom carries; too few to judge a model."""
    import pydicom

    root = Path(pydicom.__file__).parent / "data" / "test_files"
    rows = [
        (f"{name}.dcm", modality, f"patient {patient}")
        for patient, (modality, names) in enumerate(FILES)
        for name in names
    ]
    return SampleCohort(
        table=pd.DataFrame(rows, columns=["file", "modality", "patient"]),
        inputs=["file"],
        label="modality",
        patient_id="patient",
        title="DICOM stills: CT, MR or ultrasound (to try the readers; too few to judge a model)",
        license="MIT, carried by pydicom",
        root=root,
    )
