"""FHIR NDJSON to the event table, with all checks, against validated models of fhir.resources.

The peer is slow: it is timed on a part of the lines. Both sides are measured in resources a second
of processor time, all threads together, which does not depend on what else the machine does.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import polars as pl
from fhir.resources.R4B import get_fhir_model_class

from benchmarks.harness import alternate, write_result
from galenic.data.events import read

COPIES = 8
PEER_TAKES_EVERY = 40
FAST = 50_000
DATA = Path(os.environ.get("GALENIC_DATA", "../shared/data"), "fhir_synthea_r4", "bundles")
READ = {"Encounter", "Condition", "Procedure", "MedicationRequest", "Observation"}


def lines() -> list[bytes]:
    """All resources of the bundles, in copies that share no id."""
    bundles = [orjson.loads(gzip.decompress(path.read_bytes())) for path in sorted(DATA.iterdir())]
    once = [orjson.dumps(entry["resource"]) for bundle in bundles for entry in bundle["entry"]]
    found = []
    for copy in range(COPIES):
        own = b"%d-" % copy
        for line in once:
            named = line.replace(b'"id":"', b'"id":"' + own)
            found.append(named.replace(b'"urn:uuid:', b'"urn:uuid:' + own))
    return found


def modelled(some: list[bytes]) -> pd.DataFrame:
    """Patient, code and value of the resources, each parsed and validated by fhir.resources."""
    rows: list[tuple[str, str, float | None]] = []
    for line in some:
        content = orjson.loads(line)
        resource = get_fhir_model_class(content["resourceType"]).model_validate(content)
        if content["resourceType"] not in READ:
            continue
        patient = resource.subject.reference.removeprefix("urn:uuid:")
        for part in getattr(resource, "component", None) or [resource]:
            rows.append((patient, *_of(part, resource)))
    return pd.DataFrame(rows, columns=["patient_id", "code", "value"])


def _of(part: Any, resource: Any) -> tuple[str, float | None]:
    if resource.__resource_type__ == "Encounter":
        return resource.class_fhir.code, None
    concept = getattr(part, "code", None) or resource.medicationCodeableConcept
    quantity = getattr(part, "valueQuantity", None)
    return concept.coding[0].code, None if quantity is None else float(quantity.value)


def _same(path: Path, some: list[bytes]) -> bool:
    """Whether both sides find the same patients, codes and values, in no particular order."""
    path.write_bytes(b"\n".join(some))
    frame = read(path).frame.filter(pl.col("source") != "patient")
    codes = frame["code"].str.split("//").list.last()
    ours = Counter(zip(frame["patient_id"], codes, frame["value"], strict=True))
    table = modelled(some).astype(object)
    peer = Counter(table.where(table.notna(), None).itertuples(index=False, name=None))
    return ours == peer


def main() -> None:
    """Measure, check that both sides found the same, write the result."""
    work = Path(tempfile.mkdtemp())
    path = work / "all.ndjson"
    found = lines()
    path.write_bytes(b"\n".join(found))
    part = found[::PEER_TAKES_EVERY]

    def ours() -> float:
        started = time.process_time()
        read(path)
        return len(found) / (time.process_time() - started)

    def peer() -> float:
        started = time.process_time()
        modelled(part)
        return len(part) / (time.process_time() - started)

    times = alternate(ours, peer)
    same = _same(work / "part.ndjson", part)
    write_result(
        name="fhir_events",
        unit="resources/s of processor time",
        times=times,
        peer={"name": "fhir.resources", "version": importlib.metadata.version("fhir.resources")},
        reach=f"at least {FAST:,} resources/s of processor time",
        met=lambda ratio: statistics.median(times.ours) >= FAST,
        same_result=f"{len(part)} resources, the same patients, codes and values: {same}",
    )
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
