"""Which patients a simulated client has: those of one hospital, or a share of them all."""

from __future__ import annotations

from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.core.seeding import rng
from galenic.data.cohort import Cohort
from galenic.data.splits import strata_of

Array = np.ndarray[Any, np.dtype[Any]]
# Draws until every client has a patient.
TRIES = 200


def by_site(cohort: Cohort, rows: Array) -> dict[str, Array]:
    """Rows of each site, by its name; rows of an unknown site belong to none.

    Raises:
        DataError: If there is no site column, or no row has one.
    """
    if cohort.site_column is None:
        raise DataError(
            "The cohort has no column of sites to part clients by.",
            where=cohort.name,
            next_step="--site COLUMN, or clients.by=patient",
        )
    column = cohort.sites.iloc[rows]
    known, names = column.notna().to_numpy(), column.to_numpy()
    found = {site: rows[known & (names == site)] for site in sorted(set(names[known]))}
    if not found:
        raise DataError(f"No row of the training part has a '{cohort.site_column}'.")
    return found


def by_patient(
    cohort: Cohort, rows: Array, clients: int, seed: int, concentration: float | None = None
) -> list[Array]:
    """Rows of each client; all rows of a patient are with one client.

    Args:
        cohort: With a label.
        rows: Those to part.
        clients: How many.
        seed: Of the draw.
        concentration: Of the symmetric Dirichlet distribution that the clients' shares of a class
            are drawn from (Hsu et al., arXiv 1909.06335): 0.1 parts classes sharply, 100 evenly.
            None deals patients at random.

    Raises:
        DataError: If there are fewer patients than clients, or one is left without patients.
    """
    groups, first, place = np.unique(
        cohort.patient_ids[rows], return_index=True, return_inverse=True
    )
    if len(groups) < clients:
        raise DataError(
            f"{len(groups)} patients cannot be parted among {clients} clients.",
            where=cohort.name,
            next_step=f"clients.count={len(groups)} at most",
        )
    draw = rng(seed, "clients", "patients")
    if concentration is None:
        owner = draw.permutation(np.arange(len(groups)) % clients)
        return [rows[owner[place] == client] for client in range(clients)]
    assert cohort.label is not None
    strata = strata_of(cohort.label, cohort.targets()[rows])[first]
    for _ in range(TRIES):
        owner = _skewed(strata, clients, concentration, draw)
        if len(np.unique(owner)) == clients:
            return [rows[owner[place] == client] for client in range(clients)]
    raise DataError(
        f"A client is left without patients, in each of {TRIES} draws.",
        where=cohort.name,
        next_step="Raise clients.concentration, or lower clients.count.",
    )


def _skewed(strata: Array, clients: int, concentration: float, draw: np.random.Generator) -> Array:
    owner = np.zeros(len(strata), dtype=int)
    for stratum in np.unique(strata):
        own = draw.permutation(np.flatnonzero(strata == stratum))
        share = draw.dirichlet(np.full(clients, concentration))
        cuts = np.round(np.cumsum(share)[:-1] * len(own)).astype(int)
        for client, part in enumerate(np.split(own, cuts)):
            owner[part] = client
    return owner
