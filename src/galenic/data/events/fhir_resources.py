"""The events of one FHIR R4 resource, with the checks of the fields they come from.

Source: HL7 FHIR R4 (4.0.1), the pages of Patient, Encounter, Condition, Procedure,
MedicationRequest, Medication and Observation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from galenic.data.events import rejection
from galenic.data.events.schema import BIRTH, DEATH, ENCOUNTER, GENDER

Json = Mapping[str, Any]

SYSTEMS = {
    "http://loinc.org": "LOINC",
    "http://snomed.info/sct": "SNOMED",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RXNORM",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
    "http://hl7.org/fhir/sid/icd-9-cm": "ICD9CM",
    "http://www.cms.gov/Medicare/Coding/ICD10": "ICD10PCS",
    "http://www.ama-assn.org/go/cpt": "CPT",
    "http://hl7.org/fhir/sid/ndc": "NDC",
    "http://hl7.org/fhir/sid/cvx": "CVX",
    "http://www.whocc.no/atc": "ATC",
}
_GENDERS = {"female": "F", "male": "M", "other": "OTHER", "unknown": "UNKNOWN"}
_LAB, _VITAL = "lab", "vital"
_CATEGORIES = {"laboratory": _LAB, "vital-signs": _VITAL}

# Statuses of R4: those under which the thing happened, and those under which it did not.
_HAPPENED = {
    "Encounter": {"arrived", "triaged", "in-progress", "onleave", "finished", "unknown"},
    "Procedure": {"in-progress", "on-hold", "stopped", "completed", "unknown"},
    "MedicationRequest": {"active", "on-hold", "stopped", "completed", "unknown"},
    "Observation": {"preliminary", "final", "amended", "corrected", "unknown"},
}
_NOT = {"planned", "cancelled", "entered-in-error", "preparation", "not-done", "draft",
        "registered", "refuted"}  # fmt: skip


class NoEventError(Exception):
    """Why a resource, or a part of it, holds no event."""


class Row(NamedTuple):
    """One event, as it is written; the fields are those of the event table."""

    patient_id: str
    time: str | None
    code: str | None
    source: str
    value: float | None = None
    text: str | None = None
    unit: str | None = None
    encounter_id: str | None = None
    end: str | None = None
    medication: str | None = None


# Of what `Resources.rows` gives.
FIELDS = (*Row._fields, "kind", "record", "updated")


class Resources:
    """Turns resources into rows.

    Args:
        names: Filled with what the codes mean.
        medications: Filled with the code of each Medication, by its id.
    """

    def __init__(self, names: dict[str, str], medications: dict[str, str]) -> None:
        self._names = names
        self._medications = medications
        self._codes: dict[tuple[object, object, object], str] = {}
        # Logical ids by the `fullUrl` that a bundle gives them, where the two differ.
        self.aliases: dict[str, str] = {}
        self.readers: dict[str, Callable[[Json], Iterator[Row | NoEventError]]] = {
            "Patient": self._patient,
            "Encounter": self._encounter,
            "Condition": self._condition,
            "Procedure": self._procedure,
            "MedicationRequest": self._medication_request,
            "Observation": self._observation,
            "Medication": self._medication,
        }

    def rows(self, kind: str, resource: Json) -> tuple[list[tuple[Any, ...]], list[str]]:
        """The events of a resource of `kind`, each with the :data:`FIELDS`.

        Beside them: why parts of the resource hold none.

        Raises:
            NoEventError: If it holds none; the text is the reason.
        """
        try:
            if kind in _HAPPENED and resource.get("status") not in _HAPPENED[kind]:
                known = resource.get("status") in _NOT
                raise NoEventError(rejection.NOT_DONE if known else rejection.MALFORMED)
            updated = _text((resource.get("meta") or {}).get("lastUpdated"))
            origin = (kind, _text(resource.get("id")), updated)
            events, faults = [], []
            for found in self.readers[kind](resource):
                if isinstance(found, Row):
                    events.append(found + origin)
                else:
                    faults.append(str(found))
        except (AttributeError, TypeError, KeyError, IndexError, ValueError):
            # A list where an object should be, a number for a text, and so on.
            raise NoEventError(rejection.MALFORMED) from None
        return events, faults

    def _patient(self, node: Json) -> Iterator[Row]:
        patient = _text(node.get("id"))
        if patient is None:
            raise NoEventError(rejection.NO_PATIENT)
        if (birth := _text(node.get("birthDate"))) is not None:
            yield Row(patient, birth, BIRTH, "patient")
        if (gender := node.get("gender")) is not None:
            yield Row(patient, None, GENDER + _GENDERS[gender], "patient")
        if (death := _text(node.get("deceasedDateTime"))) is not None:
            yield Row(patient, death, DEATH, "patient")
        elif node.get("deceasedBoolean") is True:
            yield Row(patient, None, DEATH, "patient")

    def _encounter(self, node: Json) -> Iterator[Row]:
        period = node.get("period") or {}
        code = ENCOUNTER + (_text((node.get("class") or {}).get("code")) or "UNKNOWN")
        yield Row(
            self._subject(node),
            _when(period.get("start")),
            code,
            "encounter",
            encounter_id=_text(node.get("id")),
            end=_text(period.get("end")),
        )

    def _condition(self, node: Json) -> Iterator[Row]:
        for coding in (node.get("verificationStatus") or {}).get("coding") or ():
            if coding.get("code") in _NOT:
                raise NoEventError(rejection.NOT_DONE)
        # The day it was written down is when it was known; the onset may lie years before.
        time = (
            node.get("recordedDate")
            or node.get("onsetDateTime")
            or (node.get("onsetPeriod") or {}).get("start")
        )
        end = node.get("abatementDateTime") or (node.get("abatementPeriod") or {}).get("end")
        yield Row(
            self._subject(node),
            _when(time),
            self._coded(node.get("code")),
            "condition",
            encounter_id=self._encounter_of(node),
            end=_text(end),
        )

    def _procedure(self, node: Json) -> Iterator[Row]:
        time = node.get("performedDateTime") or (node.get("performedPeriod") or {}).get("start")
        yield Row(
            self._subject(node),
            _when(time),
            self._coded(node.get("code")),
            "procedure",
            encounter_id=self._encounter_of(node),
        )

    def _medication_request(self, node: Json) -> Iterator[Row]:
        reference = (node.get("medicationReference") or {}).get("reference")
        code = medication = None
        if reference is None:
            code = self._coded(node.get("medicationCodeableConcept"))
        elif reference.startswith("#"):
            inside = {item.get("id"): item for item in node.get("contained") or ()}
            code = self._coded(inside[reference[1:]].get("code"))
        else:
            medication = self._key(reference)
        yield Row(
            self._subject(node),
            _when(node.get("authoredOn")),
            code,
            "medication",
            encounter_id=self._encounter_of(node),
            medication=medication,
        )

    def _medication(self, node: Json) -> Iterator[Row]:
        # Of two with one id the smaller code wins, in whatever order they come.
        code = self._coded(node.get("code"))
        if (key := _text(node.get("id"))) is not None:
            self._medications[key] = min(code, self._medications.get(key, code))
        yield from ()

    def _observation(self, node: Json) -> Iterator[Row | NoEventError]:
        patient, encounter = self._subject(node), self._encounter_of(node)
        time = (
            node.get("effectiveDateTime")
            or (node.get("effectivePeriod") or {}).get("start")
            or node.get("effectiveInstant")
            or node.get("issued")
        )
        time, source = _when(time), _source(node)
        components = node.get("component") or ()
        for part in (node, *components):
            try:
                value, text, unit = self._value(part)
                if part is node and components and value is None and text is None:
                    continue
                code = self._coded(part.get("code"))
            except NoEventError as fault:
                yield fault
            else:
                yield Row(patient, time, code, source, value, text, unit, encounter)

    def _value(self, node: Json) -> tuple[float | None, str | None, str | None]:
        """`value[x]` as a number, words and a unit."""
        quantity = node.get("valueQuantity")
        if quantity is not None:
            number = quantity.get("value")
            unit = quantity.get("code") or quantity.get("unit")
            if number is not None and type(number) not in (int, float):
                raise NoEventError(rejection.BAD_VALUE)
            value = None if number is None else float(number)
            return value, _text(quantity.get("comparator")), _text(unit)
        concept = node.get("valueCodeableConcept")
        if concept is not None:
            return None, self._words(concept), None
        for name in ("valueInteger", "valueBoolean"):
            if (number := node.get(name)) is not None:
                if type(number) not in (int, bool):
                    raise NoEventError(rejection.BAD_VALUE)
                return float(number), None, None
        return None, _text(node.get("valueString") or node.get("valueDateTime")), None

    def _words(self, concept: Json) -> str | None:
        if (text := _text(concept.get("text"))) is not None:
            return text
        codings = concept.get("coding") or ()
        return next((_text(c.get("display") or c.get("code")) for c in codings), None)

    def _coded(self, concept: Json | None) -> str:
        """The code of a concept: the first of a known system, or else the first."""
        found: str | None = None
        for coding in (concept or {}).get("coding") or ():
            system, code = coding.get("system"), coding.get("code")
            if not code:
                continue
            key = (system, code, coding.get("display"))
            if key not in self._codes:
                self._codes[key] = self._learn(*key)
            if system in SYSTEMS:
                return self._codes[key]
            found = found or self._codes[key]
        if found is None:
            raise NoEventError(rejection.NO_CODE)
        return found

    def _learn(self, system: object, code: object, display: object) -> str:
        if type(code) is not str:
            raise TypeError(type(code).__name__)
        url = _text(system)
        short = "" if url is None else SYSTEMS.get(url) or last(url).upper()
        name = f"{short}//{code}" if short else code
        if isinstance(display, str):
            # Of several wordings the same one in whatever order they come.
            self._names[name] = min(display, self._names.get(name, display))
        return name

    def _subject(self, node: Json) -> str:
        reference = (node.get("subject") or {}).get("reference")
        if not reference:
            raise NoEventError(rejection.NO_PATIENT)
        # A subject may also be a group, a device or a place, or a search (`Patient?identifier=`).
        if "?" in reference or ("/" in reference and "Patient/" not in reference):
            raise NoEventError(rejection.NO_PATIENT)
        return self._key(reference)

    def _encounter_of(self, node: Json) -> str | None:
        reference = (node.get("encounter") or {}).get("reference")
        return self._key(reference) if reference else None

    def _key(self, reference: str) -> str:
        """The logical id behind `urn:uuid:ID`, `Type/ID`, a whole address, or one version of it."""
        if self.aliases and reference in self.aliases:
            return self.aliases[reference]
        return last(reference.partition("/_history/")[0])


def last(address: str) -> str:
    """What follows the last `/` or `:`."""
    return address.rpartition("/")[2].rpartition(":")[2]


def _source(observation: Json) -> str:
    for category in observation.get("category") or ():
        for coding in category.get("coding") or ():
            if coding.get("code") in _CATEGORIES:
                return _CATEGORIES[coding["code"]]
    return "other" if observation.get("category") else _LAB


def _text(node: object) -> str | None:
    """A text that is not empty, or None where there is none."""
    if node is None or node == "":
        return None
    if type(node) is not str:
        raise TypeError(type(node).__name__)
    return node


def _when(node: object) -> str:
    """A time, which must be there."""
    text = _text(node)
    if text is None:
        raise NoEventError(rejection.NO_TIME)
    return text
