"""Tables by a mapping: three real sources against pandas, OMOP, and tables that are wrong."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
import yaml

from galenic.core.errors import ConfigError, DataError
from galenic.data.events import read, rejection, validate
from galenic.data.events.mapping import Mapping, load


def mapping(**table: object) -> Mapping:
    event = {"code": "{code}", "time": "{time}", "value": "{value}", "unit": "{unit}"}
    return Mapping.model_validate(
        {"tables": [{"file": "t", "patient": "{who}", "events": [event], **table}]}
    )


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text)
    return folder


def test_mimic3_gives_the_events_that_pandas_counts(real_data: Path) -> None:
    folder = real_data / "mimic3_demo_tables"
    made = read(folder, mapping="mimic3")
    frame = validate(made.frame)
    stays = pd.read_csv(folder / "ADMISSIONS.csv.gz", parse_dates=["admittime", "dischtime"])
    encounters = frame.filter(pl.col("source") == "encounter")
    hours = (encounters["end"] - encounters["time"]).dt.total_seconds().sum()
    assert len(encounters) == len(stays)
    assert hours == (stays.dischtime - stays.admittime).dt.total_seconds().sum()
    codes = pd.read_csv(folder / "DIAGNOSES_ICD.csv.gz", dtype=str).icd9_code
    found = frame.filter(pl.col("source") == "condition")["code"].value_counts()
    assert dict(found.iter_rows()) == ("ICD9CM//" + codes).value_counts().to_dict()
    deaths = frame.filter(pl.col("code") == "MEDS_DEATH")
    assert len(deaths) == 100
    # The hour of the admission table counts, not the day of the table of patients.
    died = stays.dropna(subset=["deathtime"])
    exact = pl.Series(pd.to_datetime(died.deathtime).to_list()).dt.replace_time_zone("UTC")
    assert exact.cast(deaths["time"].dtype).is_in(deaths["time"].implode()).mean() > 0.9


def test_a_code_of_billing_is_known_at_discharge(real_data: Path) -> None:
    frame = read(real_data / "mimic3_demo_tables", mapping="mimic3").frame
    stays = frame.filter(pl.col("source") == "encounter").select("encounter_id", stay_end="end")
    coded = frame.filter(pl.col("source") == "condition").join(stays, on="encounter_id")
    assert len(coded) == 1761
    assert (coded["time"] == coded["stay_end"]).all()


def test_eicu_offsets_become_times_of_the_stay(real_data: Path) -> None:
    folder = real_data / "eicu_demo_subset"
    made = read(folder, mapping="eicu")
    frame = validate(made.frame)
    assert frame["patient_id"].n_unique() == 144
    stays = pd.read_csv(folder / "patient.csv.gz").set_index("patientunitstayid")
    labs = pd.read_csv(folder / "lab.csv.gz")
    assert (frame["source"] == "lab").sum() == len(labs)
    one = labs.iloc[123]
    stay = stays.loc[one.patientunitstayid]
    admitted = pd.Timestamp(f"{stay.hospitaldischargeyear}-01-01 {stay.hospitaladmittime24}")
    minutes = int(one.labresultoffset) - int(stay.hospitaladmitoffset)
    expected = (admitted + pd.Timedelta(minutes=minutes)).tz_localize("UTC")
    found = frame.filter(
        (pl.col("code") == f"LAB//{one.labname}")
        & (pl.col("encounter_id") == str(stay.patienthealthsystemstayid))
        & (pl.col("time") == expected.to_pydatetime())
    )
    assert found["value"].to_list() == [one.labresult]
    # 174 unit stays of 144 hospital stays: 30 rows tell the same hospital stay again.
    told = dict(made.rejected.select("reason", "count").iter_rows())
    assert told[rejection.COPY] == 30
    lost = pd.read_csv(folder / "medication.csv.gz").query("drugordercancelled == 'No'").drugname
    assert told[rejection.NO_CODE] == lost.isna().sum()


def test_physionet2012_summaries_are_seen_within_48_hours(real_data: Path) -> None:
    folder = real_data / "physionet2012_icu"
    made = read(folder / "set-a.csv.gz", mapping="physionet2012")
    frame = validate(made.frame)
    wide = pd.read_csv(folder / "set-a.csv.gz")
    summaries = wide.filter(regex=r"_(first|last|lowest|highest|median)$|MechVent|Urine")
    vital = frame.filter(pl.col("source") == "vital")
    assert len(vital) == int(summaries.notna().sum().sum())
    assert vital["time"].unique().to_list() == [datetime(2012, 1, 2, 23, 59, tzinfo=UTC)]
    assert (frame["code"] == "MEDS_DEATH").sum() == wide["In-hospital_death"].sum()
    assert not frame["code"].str.contains("SAPS|SOFA|Survival|death").any()
    unknown = made.rejected.filter(pl.col("reason") == rejection.OPEN)
    assert unknown["count"].sum() == (wide.Length_of_stay == -1).sum()


@pytest.mark.parametrize("concepts", [False, True])
@pytest.mark.parametrize("parquet", [False, True])
def test_omop_takes_codes_of_concepts_where_they_are(
    concepts: bool, parquet: bool, tmp_path: Path
) -> None:
    tables = {
        "person": {"person_id": [1], "gender_concept_id": [8532], "year_of_birth": [1980],
                   "month_of_birth": [5], "day_of_birth": [2]},
        "visit_occurrence": {"visit_occurrence_id": [7], "person_id": [1], "visit_concept_id": [9201],
                             "visit_start_date": [date(2020, 1, 1)],
                             "visit_end_date": [date(2020, 1, 9)]},
        "condition_occurrence": {"condition_occurrence_id": [1, 2], "person_id": [1, 1],
                                 "condition_concept_id": [201826, 0],
                                 "condition_start_date": [date(2020, 1, 2)] * 2,
                                 "condition_end_date": [None, None],
                                 "condition_source_value": ["E11", "local"],
                                 "visit_occurrence_id": [7, 7]},
        "measurement": {"measurement_id": [1], "person_id": [1], "measurement_concept_id": [3004410],
                        "measurement_datetime": [datetime(2020, 1, 2, 3, 4, 5)],
                        "value_as_number": [6.5], "unit_source_value": ["%"],
                        "visit_occurrence_id": [7]},
        "death": {"person_id": [1], "death_date": [date(2021, 1, 1)]},
    }  # fmt: skip
    if concepts:
        tables["concept"] = {
            "concept_id": [201826, 3004410, 0],
            "vocabulary_id": ["SNOMED", "LOINC", "None"],
            "concept_code": ["44054006", "4548-4", "No matching concept"],
        }
    for name, columns in tables.items():
        frame = pl.DataFrame(columns)
        if parquet:
            frame.write_parquet(tmp_path / f"{name}.parquet")
        else:
            frame.write_csv(tmp_path / f"{name.upper()}.csv")
    made = read(tmp_path, mapping="omop")
    rows = {row["code"]: row for row in made.frame.to_dicts()}
    names = ["SNOMED//44054006", "LOINC//4548-4"] if concepts else ["OMOP//201826", "OMOP//3004410"]
    assert set(rows) == {
        "MEDS_BIRTH", "GENDER//F", "MEDS_DEATH", "ENCOUNTER//IMP", "local", *names,
    }  # fmt: skip
    assert rows["MEDS_BIRTH"]["time"] == datetime(1980, 5, 2, tzinfo=UTC)
    assert rows[names[1]]["time"] == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert rows["ENCOUNTER//IMP"]["end"] == datetime(2020, 1, 9, tzinfo=UTC)
    absent = made.rejected.filter(pl.col("reason") == rejection.NO_TABLE)
    assert set(absent["source"]) == {"drug_exposure", "procedure_occurrence"}


def test_what_a_row_lacks_is_counted(tmp_path: Path) -> None:
    rows = [
        "who,code,time,value,unit",
        "1,a,2020-01-01 10:00:00,1.5,g",
        ",a,2020-01-01,1,g",
        "1,,2020-01-01,1,g",
        "1,a, ,1,g",
        "1,a,01/02/2020,1,g",
        "1,a,2020-01-02,<2,g",
        "1,a,2020-01-03,inf,g",
        "1,a,2020-01-04,,",
    ]
    made = read(table(tmp_path, "\n".join(rows)), mapping=mapping())
    told = dict(made.rejected.select("reason", "count").iter_rows())
    assert told == {
        rejection.NO_PATIENT: 1,
        rejection.NO_CODE: 1,
        rejection.NO_TIME: 1,
        rejection.BAD_TIME: 1,
        rejection.NAIVE: 1,
        f"{rejection.BAD_VALUE}: kept as text": 2,
    }
    assert made.frame["value"].to_list() == [1.5, None, None, None]
    assert made.frame["text"].to_list() == [None, "<2", "inf", None]
    places = dict(made.rejected.select("reason", "place").iter_rows())
    assert places[rejection.BAD_TIME] == 5


def test_an_offset_that_is_no_number_is_no_date(tmp_path: Path) -> None:
    clock = {"zero": "{zero}", "unit": "hours"}
    text = "who,code,time,value,unit,zero\n1,a,36,1,g,2020-01-01\n1,a,2020,1,g,soon\n1,a,x,1,g,2020-01-01\n"
    made = read(table(tmp_path, text), mapping=mapping(clock=clock))
    assert made.frame["time"].to_list() == [datetime(2020, 1, 2, 12, tzinfo=UTC)]
    assert made.rejected["count"].sum() == 2


def test_ids_tell_copies_from_repeated_measurements(tmp_path: Path) -> None:
    rows = "1,a,2020-01-01,1,g,5\n" * 2 + "1,a,2020-01-01,1,g,6\n"
    folder = table(tmp_path, "who,code,time,value,unit,n\n" + rows)
    assert len(read(folder, mapping=mapping()).frame) == 3
    assert len(read(folder, mapping=mapping(id="{n}")).frame) == 2


def test_a_mapping_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(mapping().model_dump(mode="json")))
    folder = table(tmp_path, "who,code,time,value,unit\n1,a,2020-01-01,1,g\n")
    assert len(read(folder, mapping=path).frame) == 1


@pytest.mark.parametrize("preset", ["eicu", "mimic3", "omop", "physionet2012"])
def test_every_preset_is_a_mapping(preset: str) -> None:
    assert load(preset).about


def test_bad_tables_are_errors_of_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'unit'(.|\n)*t\.csv"):
        read(table(tmp_path, "who,code,time,value,units\n1,a,2020,1,g\n"), mapping=mapping())
    with pytest.raises(DataError, match="None of the tables"):
        read(tmp_path, mapping="omop")
    for content in (b"", b"a,b\n1,2,3,4\n", b"\xff\xfe\x00,\x81\n\x00", b'"who,code\n1'):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DataError):
            read(tmp_path, mapping=mapping())
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, mapping=mapping())


def test_a_wrong_mapping_names_the_key() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'omop'"):
        load("ompo")


def test_a_wrong_time_zone_is_named(tmp_path: Path) -> None:
    for zone in ("Mars/Olympus", "", "../etc"):
        with pytest.raises(ConfigError, match="no time zone"):
            read(tmp_path, mapping=mapping(), timezone=zone)
