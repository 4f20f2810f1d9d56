"""What experts know of the categories of pictures, as sentences: a small YAML file.

Silva-Rodriguez et al., "A Foundation Language-Image Model of the Retina" (FLAIR), Medical Image
Analysis 2025, arXiv 2308.07898; Yu et al. (UrFound), MICCAI 2024, arXiv 2408.05618.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from galenic.core.config import Config, load_yaml, parse
from galenic.core.errors import ConfigError, DataError, nearest

BUILTIN = "builtin:"
PLACE = "{category}"


class Knowledge(Config):
    """Of one modality."""

    templates: list[str] = Field(
        min_length=1, description="Sentences with {category} in them, one of which is drawn."
    )
    categories: dict[str, list[str]] = Field(
        min_length=1,
        description="Expert descriptions by category, in the words that its name would stand "
        "among; a category without any goes by its name.",
    )

    @field_validator("templates")
    @classmethod
    def _has_a_place(cls, value: list[str]) -> list[str]:
        for template in value:
            if template.count(PLACE) != 1:
                raise ValueError(f"{template!r} does not have {PLACE} once")
        return value

    @field_validator("categories")
    @classmethod
    def _told_apart(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        plain = {_plain(name): phrases for name, phrases in value.items()}
        if len(plain) < len(value):
            raise ValueError("two categories differ in case or spaces alone")
        empty = [name for name, found in value.items() if not all(map(str.strip, found))]
        if empty:
            raise ValueError(f"{empty[0]!r} has an empty description")
        return plain


class KnowledgeBase(Config):
    """Templates and descriptions by modality.

    Attributes:
        title: One line for people.
        modalities: By name, as the manifest or the settings say it.
    """

    title: str = ""
    modalities: dict[str, Knowledge] = Field(min_length=1)

    @classmethod
    def open(cls, name: str) -> KnowledgeBase:
        """The knowledge base in a YAML file, or one that comes with galenic.

        Args:
            name: A path, or `builtin:NAME`.

        Raises:
            ConfigError: If there is no such file, or it is broken; names the keys.
        """
        path = Path(name)
        if name.startswith(BUILTIN):
            known = {f"{BUILTIN}{file.stem}": file for file in Path(__file__).parent.glob("*.yaml")}
            if name not in known:
                raise ConfigError(
                    f"There is no knowledge base '{name}'. {nearest(name, known)}".strip(),
                    expected=f"{', '.join(sorted(known))}, or a path",
                )
            path = known[name]
        return parse(cls, load_yaml(path), where=name)

    def of(self, modality: str | None) -> Knowledge:
        """What is known of a modality; None for the only one there is.

        Raises:
            DataError: If there is none of this name, or one must be named.
        """
        known = list(self.modalities)
        if modality is None and len(known) == 1:
            return self.modalities[known[0]]
        if modality not in self.modalities:
            asked = "No modality is named" if modality is None else f"No modality '{modality}'"
            raise DataError(
                f"{asked} in the knowledge base. {nearest(str(modality), known)}".strip(),
                expected=f"one of: {', '.join(known)}",
                next_step="captions.modality=NAME, or a column of the manifest that says it",
            )
        return self.modalities[modality]

    def require(self, categories: Iterable[str], modality: str | None) -> None:
        """Check that all of `categories` are known of a modality.

        Raises:
            DataError: If one is not, naming the nearest.
        """
        known = self.of(modality).categories
        for category in categories:
            if _plain(category) not in known:
                hint = nearest(_plain(category), known)
                raise DataError(
                    f"Nothing is known of the category '{category}'. {hint}".strip(),
                    expected=f"one of: {', '.join(known)}",
                    next_step="Add it to the knowledge base; an empty list stands for its name.",
                )

    def caption(self, category: str, modality: str | None, rng: np.random.Generator) -> str:
        """A sentence: a template drawn of the modality, about a description drawn of the category.

        Args:
            category: Of the sample.
            modality: Of the sample; None for the only one there is.
            rng: What it is drawn from.

        Raises:
            DataError: If either is unknown.
        """
        self.require([category], modality)
        known = self.of(modality)
        name = _plain(category)
        phrases = known.categories[name] or [name]
        template = known.templates[int(rng.integers(len(known.templates)))]
        return template.replace(PLACE, phrases[int(rng.integers(len(phrases)))])


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
