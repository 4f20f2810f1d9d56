"""FHIR R4 to events: real bundles against a slow reading, and every fault of a resource."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from galenic.core.errors import DataError
from galenic.data.events import fhir, read, rejection, validate
from galenic.data.events.staging import Intake

Json = dict[str, Any]

PATIENT: Json = {
    "resourceType": "Patient",
    "id": "p1",
    "birthDate": "1980-05-02",
    "gender": "female",
}
LOINC = "http://loinc.org"
UTC_DAY = "2020-03-01T10:00:00Z"


def concept(code: str, system: str = LOINC) -> Json:
    return {"coding": [{"system": system, "code": code, "display": f"name of {code}"}]}


def observation(**changes: Any) -> Json:
    return {
        "resourceType": "Observation",
        "id": "o1",
        "status": "final",
        "category": [{"coding": [{"code": "laboratory"}]}],
        "code": concept("2345-7"),
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": UTC_DAY,
        "valueQuantity": {"value": 5.5, "unit": "mmol per l", "code": "mmol/L"},
        **changes,
    }


def request(**changes: Any) -> Json:
    return {
        "resourceType": "MedicationRequest",
        "id": "m1",
        "status": "active",
        "subject": {"reference": "Patient/p1"},
        "authoredOn": UTC_DAY,
        **changes,
    }


def write(folder: Path, *resources: Any, name: str = "all.ndjson") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(resource) + "\n" for resource in resources))
    return path


def events_of(folder: Path, *resources: Any, **options: Any) -> pl.DataFrame:
    return read(write(folder, PATIENT, *resources), **options).frame


def reasons_of(folder: Path, *resources: Any, **options: Any) -> dict[str, int]:
    rejected = read(write(folder, PATIENT, *resources), **options).rejected
    return dict(rejected.select("reason", "count").iter_rows())


@pytest.fixture(scope="module")
def bundles(real_data: Path) -> list[Path]:
    return sorted((real_data / "fhir_synthea_r4" / "bundles").glob("*.json.gz"))[:12]


@pytest.fixture(scope="module")
def resources(bundles: list[Path]) -> list[Json]:
    read_all = (json.loads(gzip.decompress(path.read_bytes())) for path in bundles)
    return [entry["resource"] for bundle in read_all for entry in bundle["entry"]]


def test_bundles_and_shuffled_lines_give_the_same_events(
    bundles: list[Path], resources: list[Json], tmp_path: Path
) -> None:
    shuffled = random.Random(0).sample(resources, len(resources))
    by_type: dict[str, list[Json]] = {}
    for resource in shuffled:
        by_type.setdefault(resource["resourceType"], []).append(resource)
    exported = [write(tmp_path, *them, name=f"{kind}.ndjson") for kind, them in by_type.items()]
    from_bundles, from_lines = read(*bundles), read(*reversed(exported))
    assert len(validate(from_bundles.frame)) > 1000
    assert from_bundles.frame.equals(from_lines.frame)
    assert from_bundles.names == from_lines.names
    told = [
        made.rejected.group_by("kind", "reason").agg(pl.col("count").sum()).sort("kind", "reason")
        for made in (from_bundles, from_lines)
    ]
    assert told[0].equals(told[1])


def test_a_slow_reading_finds_the_same_measurements(
    bundles: list[Path], resources: list[Json]
) -> None:
    slow: Counter[tuple[Any, ...]] = Counter()
    for resource in resources:
        if resource["resourceType"] != "Observation":
            continue
        parts = resource.get("component") or [resource]
        for part in parts:
            if "valueQuantity" in part:
                slow[
                    resource["subject"]["reference"].removeprefix("urn:uuid:"),
                    "LOINC//" + part["code"]["coding"][0]["code"],
                    part["valueQuantity"]["value"],
                    part["valueQuantity"]["code"],
                    resource["encounter"]["reference"].removeprefix("urn:uuid:"),
                ] += 1
    made = read(*bundles)
    late = made.rejected.filter(pl.col("kind") == "Observation")["count"].sum()
    measured = made.frame.filter(pl.col("value").is_not_null())
    columns = ("patient_id", "code", "value", "unit", "encounter_id")
    fast = Counter(measured.select(columns).iter_rows())
    assert not fast - slow
    # What is missing was written after a death, and counted.
    assert (slow - fast).total() <= late


def test_the_counts_of_the_manifest_are_there(real_data: Path, bundles: list[Path]) -> None:
    manifest = pl.read_csv(real_data / "fhir_synthea_r4" / "patients.csv")
    manifest = manifest.filter(pl.col("file").is_in([f"bundles/{path.name}" for path in bundles]))
    made = read(*bundles)
    found = dict(made.frame["source"].value_counts().iter_rows())
    left_out = made.rejected.filter(~pl.col("kept"))
    out = dict(left_out.group_by("kind").agg(pl.col("count").sum()).iter_rows())
    for source, kind in (
        ("encounter", "Encounter"),
        ("condition", "Condition"),
        ("procedure", "Procedure"),
        ("medication", "MedicationRequest"),
    ):
        assert found[source] + out.get(kind, 0) == manifest[f"n_{kind.lower()}"].sum()
    assert (made.frame["code"] == "MEDS_DEATH").sum() == manifest["deceased"].sum()


def test_no_patient_is_named_in_the_report(bundles: list[Path]) -> None:
    made = read(*bundles)
    told = made.rejected.write_csv()
    assert len(made.rejected) > 5
    for path, patient in zip(bundles, made.frame["patient_id"].unique(), strict=True):
        assert path.name.removesuffix(".json.gz") not in told
        assert patient not in told


def test_an_observation_is_a_row(tmp_path: Path) -> None:
    row = events_of(tmp_path, observation()).filter(pl.col("source") == "lab").to_dicts()[0]
    assert (row["code"], row["value"], row["unit"]) == ("LOINC//2345-7", 5.5, "mmol/L")
    assert row["time"].isoformat() == "2020-03-01T10:00:00+00:00"


def test_components_are_rows_of_their_own(tmp_path: Path) -> None:
    parts = [
        {"code": concept("8480-6"), "valueQuantity": {"value": 120, "unit": "mmHg"}},
        {"code": concept("8462-4"), "valueQuantity": {"value": 80, "unit": "mmHg"}},
    ]
    pressure = observation(component=parts, category=[{"coding": [{"code": "vital-signs"}]}])
    del pressure["valueQuantity"]
    rows = events_of(tmp_path, pressure).filter(pl.col("source") == "vital")
    assert rows.select("code", "value").rows() == [
        ("LOINC//8462-4", 80.0),
        ("LOINC//8480-6", 120.0),
    ]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"code": {"text": "mean"}, "valueQuantity": {"value": 93}}, rejection.NO_CODE),
        ({"code": concept("8478-0"), "valueQuantity": {"value": "93"}}, rejection.BAD_VALUE),
    ],
)
def test_a_component_that_holds_no_event_takes_no_other_along(
    broken: Json, reason: str, tmp_path: Path
) -> None:
    good = {"code": concept("8480-6"), "valueQuantity": {"value": 120, "unit": "mmHg"}}
    node = observation(component=[broken, good, broken])
    rows = events_of(tmp_path, node).filter(pl.col("source") == "lab")
    assert set(rows["code"]) == {"LOINC//2345-7", "LOINC//8480-6"}
    assert reasons_of(tmp_path, node) == {reason: 2}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"valueCodeableConcept": {"text": "Never smoker"}}, (None, "Never smoker")),
        ({"valueCodeableConcept": concept("260385009")}, (None, "name of 260385009")),
        ({"valueString": "clear"}, (None, "clear")),
        ({"valueInteger": 3}, (3.0, None)),
        ({"valueBoolean": True}, (1.0, None)),
        ({"valueQuantity": {"value": 2, "comparator": "<", "unit": "g"}}, (2.0, "<")),
        ({"dataAbsentReason": {"text": "lost"}}, (None, None)),
    ],
)
def test_every_kind_of_value_is_read(
    value: Json, expected: tuple[float | None, str | None], tmp_path: Path
) -> None:
    node = observation()
    del node["valueQuantity"]
    row = events_of(tmp_path, {**node, **value}).filter(pl.col("source") == "lab")
    assert row.select("value", "text").row(0) == expected


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1",
        "urn:uuid:p1",
        "https://fhir.example.org/r4/Patient/p1",
        "Patient/p1/_history/3",
    ],
)
def test_every_reference_to_a_patient_is_understood(reference: str, tmp_path: Path) -> None:
    frame = events_of(tmp_path, observation(subject={"reference": reference}))
    assert set(frame["patient_id"]) == {"p1"}


def test_a_bundle_may_name_its_resources_by_other_ids(tmp_path: Path) -> None:
    nameless = {key: value for key, value in PATIENT.items() if key != "id"}
    bundle = {
        "resourceType": "Bundle",
        "entry": [
            {"fullUrl": "urn:uuid:a", "resource": observation(subject={"reference": "urn:uuid:b"})},
            {"fullUrl": "urn:uuid:b", "resource": PATIENT},
            {
                "fullUrl": "urn:uuid:c",
                "resource": {"resourceType": "Bundle", "entry": [
                    {"resource": observation(id="o2", subject={"reference": "urn:uuid:d"})},
                    {"fullUrl": "urn:uuid:d", "resource": nameless},
                ]},
            },
        ],
    }  # fmt: skip
    frame = read(write(tmp_path, bundle, name="x.json")).frame
    labs = frame.filter(pl.col("source") == "lab")
    assert labs["patient_id"].to_list() == ["d", "p1"]
    births = frame.filter(pl.col("code") == "MEDS_BIRTH")
    assert births["patient_id"].to_list() == ["d", "p1"]


@pytest.mark.parametrize("reference", ["Medication/x", "urn:uuid:x", "#inside"])
@pytest.mark.parametrize("late", [False, True])
def test_a_prescription_takes_the_code_of_its_medication(
    reference: str, late: bool, tmp_path: Path
) -> None:
    code = concept("562251", "http://www.nlm.nih.gov/research/umls/rxnorm")
    asked = request(
        medicationReference={"reference": reference},
        contained=[{"resourceType": "Medication", "id": "inside", "code": code}],
    )
    medication = {"resourceType": "Medication", "id": "x", "code": code}
    order = [asked, medication] if late else [medication, asked]
    rows = events_of(tmp_path, *order).filter(pl.col("source") == "medication")
    assert rows["code"].to_list() == ["RXNORM//562251"]


def test_a_condition_is_known_when_it_was_written_down(tmp_path: Path) -> None:
    node = {
        "resourceType": "Condition",
        "id": "c",
        "code": concept("E11.9", "http://hl7.org/fhir/sid/icd-10-cm"),
        "subject": {"reference": "Patient/p1"},
        "onsetDateTime": "2015",
        "recordedDate": "2020-02-01",
        "abatementDateTime": "2021-01-01",
    }
    row = events_of(tmp_path, node).filter(pl.col("source") == "condition").to_dicts()[0]
    assert row["code"] == "ICD10CM//E11.9"
    assert (row["time"].year, row["end"].year) == (2020, 2021)


FAULTS: list[tuple[Any, str]] = [
    (observation(subject=None), rejection.NO_PATIENT),
    (observation(subject={"reference": "Group/7"}), rejection.NO_PATIENT),
    (observation(subject={"reference": "Patient?identifier=7"}), rejection.NO_PATIENT),
    (observation(code=None), rejection.NO_CODE),
    (observation(code={"text": "sugar"}), rejection.NO_CODE),
    (observation(effectiveDateTime=None), rejection.NO_TIME),
    (observation(effectiveDateTime="yesterday"), rejection.BAD_TIME),
    (observation(effectiveDateTime="2020-13-01"), rejection.BAD_TIME),
    (observation(status="entered-in-error"), rejection.NOT_DONE),
    (observation(status="done"), rejection.MALFORMED),
    (observation(status=["final"]), rejection.MALFORMED),
    (observation(valueQuantity={"value": "5,5"}), rejection.BAD_VALUE),
    (observation(valueQuantity=[5]), rejection.MALFORMED),
    (observation(effectiveDateTime=20200301), rejection.MALFORMED),
    (observation(id=7), rejection.MALFORMED),
    (observation(code={"coding": [{"system": LOINC, "code": 7}]}), rejection.MALFORMED),
    (request(medicationCodeableConcept={"text": "aspirin"}), rejection.NO_CODE),
    (request(medicationReference={"reference": "Medication/none"}), rejection.NO_CODE),
    (request(medicationReference={"reference": "#none"}), rejection.MALFORMED),
    ({"resourceType": "Patient", "gender": "male"}, rejection.NO_PATIENT),
    ({**PATIENT, "id": "p2", "deceasedBoolean": True}, rejection.NO_TIME),
    ({**PATIENT, "id": "p2", "gender": "F"}, rejection.MALFORMED),
    ({"resourceType": "Claim"}, rejection.NOT_READ),
    ({"id": "nothing"}, rejection.MALFORMED),
    ([1, 2], rejection.MALFORMED),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=range(len(FAULTS)))
def test_what_cannot_be_an_event_is_counted_with_its_reason(
    fault: Any, reason: str, tmp_path: Path
) -> None:
    assert reasons_of(tmp_path, fault) == {reason: 1}


def test_times_are_turned_into_utc(tmp_path: Path) -> None:
    times = {
        "2020-03-01T10:00:00-05:00": "2020-03-01T15:00:00+00:00",
        "2020-03-01T10:00:00.250Z": "2020-03-01T10:00:00.250000+00:00",
        "2020-07-01T10:00:00": "2020-07-01T08:00:00+00:00",
        "2020-07-02": "2020-07-01T22:00:00+00:00",
        "2020-08": "2020-07-31T22:00:00+00:00",
        "2021": "2020-12-31T23:00:00+00:00",
    }
    nodes = [observation(id=time, effectiveDateTime=time) for time in times]
    made = read(write(tmp_path, PATIENT, *nodes), timezone="Europe/Rome")
    found = {time.isoformat() for time in made.frame.filter(pl.col("source") == "lab")["time"]}
    assert found == set(times.values())
    told = dict(made.rejected.select("reason", "count").iter_rows())
    assert told == {rejection.NAIVE: 1, rejection.MIXED: 1}


def test_an_hour_that_the_clock_skips_never_was(tmp_path: Path) -> None:
    node = observation(effectiveDateTime="2020-03-29T02:30:00")
    told = reasons_of(tmp_path, node, timezone="Europe/Rome")
    assert told == {rejection.NAIVE: 1, rejection.BAD_TIME: 1}


def test_copies_count_once_and_the_latest_version_stays(tmp_path: Path) -> None:
    first = observation(meta={"lastUpdated": "2020-01-01T00:00:00Z"})
    second = observation(
        meta={"lastUpdated": "2020-02-01T00:00:00Z"}, valueQuantity={"value": 7, "code": "mmol/L"}
    )
    for order in ([first, second, first], [second, first, first], [first, first, second]):
        made = read(write(tmp_path, PATIENT, *order))
        assert made.frame.filter(pl.col("source") == "lab")["value"].to_list() == [7.0]
        assert made.rejected["reason"].unique().to_list() == [rejection.CLASH]
        assert made.rejected["count"].sum() == 2
    assert reasons_of(tmp_path, first, first) == {rejection.COPY: 1}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write(tmp_path / place, PATIENT, observation())
    made = read(tmp_path)
    assert len(made.frame) == 3
    assert made.rejected["count"].sum() == 2
    assert set(made.rejected["source"]) <= {"all.ndjson", "all.ndjson 2"}
    assert read(tmp_path, tmp_path / "a").frame.equals(made.frame)


def test_a_file_that_breaks_off_keeps_what_was_read(tmp_path: Path) -> None:
    nodes = [PATIENT, *(observation(id=str(random.Random(n).random())) for n in range(2000))]
    whole = gzip.compress(write(tmp_path, *nodes).read_bytes())
    (tmp_path / "all.ndjson").unlink()
    (tmp_path / "all.ndjson.gz").write_bytes(whole[: len(whole) // 2])
    made = read(tmp_path)
    assert 100 < len(made.frame) < 2000
    assert rejection.BAD_FILE in made.rejected["reason"]


def test_events_leave_in_frames_that_stay_small(
    resources: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, *resources)
    whole = read(path).frame
    monkeypatch.setattr(fhir, "BATCH", 50)
    frames = [*fhir.batches([path], Intake())]
    assert len(frames) > 20
    # A resource is not cut in two.
    assert max(map(len, frames)) < 60
    assert read(path).frame.equals(whole)


def _mutations(node: Any, draw: random.Random) -> Any:
    """`node` with one value somewhere replaced by something of another type, or gone."""
    node = copy.deepcopy(node)
    place = node
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.7:
            place = place[key]
            continue
        junk = [
            None,
            7,
            -1e308,
            True,
            "",
            "x",
            [],
            {},
            [[]],
            [None],
            {"coding": 3},
            "\x00",
            "2" * 99,
        ]
        place[key] = draw.choice(junk)
        return node


def test_no_mutation_of_a_resource_is_more_than_a_row_of_the_report(
    resources: list[Json], tmp_path: Path
) -> None:
    draw = random.Random(0)
    kinds = {"Patient", "Encounter", "Condition", "Procedure", "MedicationRequest", "Observation"}
    wanted = [one for one in resources if one["resourceType"] in kinds]
    nodes = [_mutations(draw.choice(wanted), draw) for _ in range(3000)]
    made = read(write(tmp_path, PATIENT, *nodes))
    validate(made.frame)
    assert rejection.MALFORMED in made.rejected["reason"]


def test_no_mutation_of_bytes_is_more_than_an_error_of_data(
    resources: list[Json], tmp_path: Path
) -> None:
    draw = random.Random(1)
    good = write(tmp_path, *resources[:40]).read_bytes()
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(draw.choice([1, 5, 300])):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        for name in ("bad.ndjson", "bad.json", "bad.ndjson.gz"):
            path = tmp_path / name
            path.write_bytes(bytes(bad[: draw.randrange(1, len(bad))]))
            with contextlib.suppress(DataError):
                validate(read(path).frame)
            path.unlink()


def test_nothing_to_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No event could be read(.|\n)*not JSON \(1\)"):
        read(write(tmp_path, name="x.json").parent)
    with pytest.raises(DataError, match="without a mapping"):
        read(__file__)
