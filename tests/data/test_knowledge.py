"""Knowledge bases: what is drawn of them, and what is said of a broken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galenic.core.errors import ConfigError, DataError
from galenic.data.knowledge import KnowledgeBase

EYES = """
title: eyes
modalities:
  fundus:
    templates: ["a fundus photograph of {category}", "an eye with {category}"]
    categories:
      Drusen: [yellow deposits, small bright spots]
      normal: []
  OCT:
    templates: ["optical coherence tomography of {category}"]
    categories: {normal: [], drusen: []}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "eyes.yaml"
    path.write_text(text)
    return str(path)


def drawn(base: KnowledgeBase, category: str, modality: str | None) -> set[str]:
    rng = np.random.default_rng(0)
    return {base.caption(category, modality, rng) for _ in range(60)}


def test_every_template_and_description_is_drawn(tmp_path: Path) -> None:
    base = KnowledgeBase.open(written(tmp_path, EYES))
    assert drawn(base, "drusen", "fundus") == {
        start + rest
        for start in ("a fundus photograph of ", "an eye with ")
        for rest in ("yellow deposits", "small bright spots")
    }


def test_a_category_without_descriptions_goes_by_its_name(tmp_path: Path) -> None:
    base = KnowledgeBase.open(written(tmp_path, EYES))
    assert drawn(base, " DRUSEN ", "OCT") == {"optical coherence tomography of drusen"}


def test_what_is_unknown_is_named_with_the_nearest(tmp_path: Path) -> None:
    base = KnowledgeBase.open(written(tmp_path, EYES))
    with pytest.raises(DataError, match=r"'drussen'.*'drusen'"):
        base.require(["normal", "drussen"], "fundus")
    with pytest.raises(DataError, match=r"No modality 'fundis'.*'fundus'"):
        base.of("fundis")
    with pytest.raises(DataError, match="No modality is named"):
        base.of(None)
    with pytest.raises(ConfigError, match=r"'builtin:radiologi'.*radiology"):
        KnowledgeBase.open("builtin:radiologi")
    with pytest.raises(ConfigError, match="no file"):
        KnowledgeBase.open(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("of {category}", "of it", "does not have {category} once"),
        ("of {category}", "of {category} and {category}", "once"),
        ("normal: []", "drusen: []", "case or spaces"),
        ("small bright spots", '" "', "'Drusen' has an empty description"),
        ("templates", "template", "Unknown key 'modalities.fundus.template'"),
        ("[yellow deposits, small bright spots]", "yellow", "valid list"),
        (EYES, "title: eyes\nmodalities: {}", "at least 1"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match="modalities") as raised:
        KnowledgeBase.open(written(tmp_path, EYES.replace(old, new, 1)))
    assert said in str(raised.value)


def test_the_one_that_comes_with_galenic_is_whole() -> None:
    base = KnowledgeBase.open("builtin:radiology")
    for modality, known in base.modalities.items():
        for category in known.categories:
            sentences = drawn(base, category, modality)
            assert len(sentences) == len(known.templates) * len(known.categories[category])
