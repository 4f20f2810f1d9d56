"""One manifest with several inputs: a network a modality, and samples that may lack some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from galenic.core.errors import ConfigError, DataError, nearest
from galenic.core.run import Run
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.data.manifest import require_column
from galenic.data.tabular import TabularEncoder
from galenic.models.backbone import Backbone, Pool
from galenic.pipeline.config import InputConfig
from galenic.pipeline.frozen import FrozenCache
from galenic.pipeline.inputs import Array, Inputs, single_input
from galenic.pipeline.opening import ENCODING, open_inputs

TOKENS = "tokens"
# How each of several tables was encoded.
TABLES = "tables.json"


@dataclass
class Modality:
    """One input of a cohort, and the network that reads it.

    Attributes:
        name: Column of the manifest, or name of a group of columns.
        cohort: All rows, with this input alone.
        backbone: Its network.
        inputs: What the network reads.
        present: Bool [n], which rows have it.
        augmented: As `inputs`, drawn afresh every epoch; None where nothing is varied.
        ahead: States [n, D] by row, where the network is frozen and they were computed.
    """

    name: str
    cohort: Cohort
    backbone: Backbone
    inputs: Inputs
    present: Array
    augmented: Inputs | None = None
    ahead: dict[int, Array] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """image, ecg, text, table, ..."""
        return self.inputs.modality

    @property
    def frozen(self) -> bool:
        """Whether nothing of the network trains."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def having(self, rows: Array) -> Array:
        """Those of `rows` that have this input."""
        return rows[self.present[rows]]

    def compute(self, rows: Array, cache: FrozenCache) -> None:
        """Run the frozen network once over those of `rows` that have this input."""
        wanted = [int(row) for row in self.having(rows) if int(row) not in self.ahead]
        found = cache.tokens(self.backbone, self.inputs, wanted)
        self.ahead.update(zip(wanted, found, strict=True))

    def example(self, row: int, training: bool) -> Mapping[str, Array]:
        """What the encoder takes of one row."""
        if training and self.augmented is not None:
            return self.augmented[row]
        if row in self.ahead:
            return {TOKENS: np.array(self.ahead[row])}
        return self.inputs[row]


def encodings(run: Run) -> dict[str, TabularEncoder]:
    """How each table of a finished run is encoded, by its name."""
    if (run.path / TABLES).is_file():
        states = run.read_json(TABLES)
    else:
        kinds = run.provenance["data"]["inputs"]
        states = {n: run.read_json(ENCODING) for n, kind in kinds.items() if kind == "table"}
    return {name: TabularEncoder.of(state) for name, state in states.items()}


def split_inputs(cohort: Cohort, tables: Mapping[str, Sequence[str]]) -> dict[str, Cohort]:
    """The cohort of each input alone, with all rows.

    Args:
        cohort: Any number of inputs.
        tables: Groups of columns that are an input of their own; the other columns of a table
            stay together.

    Raises:
        ConfigError: If a group has the name of another input, or a column stands in two.
        DataError: If a column is not there, or is the label.
    """
    found: dict[str, Cohort] = {}
    taken: list[str] = []
    for name, columns in tables.items():
        if name in cohort.inputs and name != "table":
            raise ConfigError(f"'{name}' is a column and a group of columns.", where="tables")
        labels = cohort.label.columns if cohort.label else ()
        for column in columns:
            require_column(column, cohort.table.columns)
            if column in taken or column in labels or column in cohort.inputs:
                raise ConfigError(
                    f"Column '{column}' stands in two places.",
                    where=f"tables.{name}",
                    expected="each column in one group, and no label",
                )
            taken.append(column)
        found[name] = replace(cohort, inputs={name: "table"}, feature_columns=tuple(columns))
    for name, kind in cohort.inputs.items():
        features: tuple[str, ...] = ()
        if kind == "table":
            features = tuple(c for c in cohort.feature_columns if c not in taken)
            if not features:
                continue
        found[name] = replace(cohort, inputs={name: kind}, feature_columns=features)
    return found


def presence(cohort: Cohort) -> Array:
    """Bool [n]: the rows whose one input is there; of a table, at least one of its columns."""
    column, kind = single_input(cohort)
    if kind == "table":
        return cohort.features().notna().any(axis=1).to_numpy()
    cells = cohort.table[column]
    return (cells.notna() & (cells.astype(str).str.strip() != "")).to_numpy()


def open_modalities(
    cohort: Cohort,
    train: Array,
    run: Run,
    *,
    backbone: str,
    backbones: Mapping[str, str],
    tables: Mapping[str, Sequence[str]],
    pool: Pool,
    config: InputConfig,
    configs: Mapping[str, InputConfig],
    used: Array,
    seed: int,
    encoders: Mapping[str, TabularEncoder] | None = None,
) -> list[Modality]:
    """Open a network for every input of a cohort.

    Args:
        cohort: The samples.
        train: Training rows.
        run: Told what was opened.
        backbone: Network of every input that `backbones` does not name.
        backbones: Network by input.
        tables: As for :func:`split_inputs`.
        pool: As for `open_backbone`.
        config: Sizes of every input that `configs` does not name.
        configs: Sizes by input.
        used: Every row of the split.
        seed: Of the augmentation.
        encoders: Of tables, by input, where they were learnt before.

    Raises:
        ConfigError: If an input is named that is not there.
        DataError: If an input is there in no training row, or a row has none.
    """
    parts = split_inputs(cohort, tables)
    for key, named in (("backbones", backbones), ("inputs", configs)):
        for name in named:
            if name not in parts:
                raise ConfigError(
                    f"There is no input '{name}'. {nearest(name, parts)}".strip(),
                    where=key,
                    expected=", ".join(parts),
                )
    there = {name: presence(part) for name, part in parts.items()}
    _require_some(cohort, there, used)
    found, tabular = [], {}
    for name, part in parts.items():
        rows = train[there[name][train]]
        if not len(rows):
            raise DataError(
                f"No training sample has '{name}'.",
                where=cohort.name,
                expected="at least one",
            )
        options = configs.get(name, config)
        network, inputs = open_inputs(
            part,
            rows,
            run,
            backbone=backbones.get(name, backbone),
            pool=pool,
            config=options,
            encoder=(encoders or {}).get(name),
        )
        if inputs.modality == "table":
            tabular[name] = run.read_json(ENCODING)
        augmented = _augmented(part, network, options.augment, seed, inputs)
        found.append(Modality(name, part, network, inputs, there[name], augmented))
    if len(tabular) > 1:
        (run.path / ENCODING).unlink(missing_ok=True)
        run.write_json(TABLES, tabular)
    run.update_provenance(
        data={
            "fingerprint": cohort.fingerprint,
            "inputs": {m.name: m.kind for m in found},
            "present": {m.name: int(m.present[used].sum()) for m in found},
        },
        weights={
            "backbone": " + ".join(dict.fromkeys(m.backbone.spec for m in found)),
            "fingerprint": " + ".join(m.backbone.fingerprint for m in found),
        },
    )
    return found


def _augmented(
    part: Cohort, network: Backbone, augment: AugmentConfig | None, seed: int, inputs: Inputs
) -> Inputs | None:
    if augment is None or inputs.transform is None:
        return None
    return Inputs(part, network, augment=augment, seed=seed)


def _require_some(cohort: Cohort, there: Mapping[str, Array], used: Array) -> None:
    some: Array = np.any(list(there.values()), axis=0)
    lacking = used[~some[used]]
    if len(lacking):
        rows = ", ".join(map(str, sorted(lacking)[:6]))
        raise DataError(
            f"{len(lacking)} samples have none of the inputs.",
            where=f"{cohort.name}, rows {rows}{' ...' if len(lacking) > 6 else ''}",
            expected=f"at least one of: {', '.join(there)}",
            next_step="Leave these rows out.",
        )
