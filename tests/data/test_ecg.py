"""Tracings: leads by name, faults, the preset of ECGFounder, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, filtfilt, iirnotch, medfilt

from galenic.core.errors import DataError
from galenic.core.inputs import STANDARD_LEADS, EcgSpec, InputSpec
from galenic.data import readers
from galenic.data.augment import AugmentConfig
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.data.ecg import at_rate, ecgfounder, prepare
from galenic.data.leads import canonical, choose, oddities, rotate_limb
from galenic.data.readers import _wfdb16
from galenic.data.transforms import Transform
from galenic.data.values import Signal

RATE = 500.0
TRACING = EcgSpec(leads=STANDARD_LEADS, preset="ecgfounder")
SPEC = InputSpec("signal", "signal", 12, (5000,), rate_hz=RATE, ecg=TRACING)


def tracing(seconds: float = 10, rate: float = RATE, seed: int = 0) -> Signal:
    """A made heart: one vector, six limb leads that are projections of it, six chest leads."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    beat = np.exp(-60 * np.sin(np.pi * 1.2 * time) ** 2)
    wave = np.sin(2 * np.pi * 5 * time)
    one, two = 0.7 * beat + 0.05 * wave, beat - 0.02 * wave
    three = two - one
    limb = [one, two, three, -(one + two) / 2, (one - three) / 2, (two + three) / 2]
    chest = [rng.uniform(-1, 1) * beat + rng.uniform(0.01, 0.1) * wave for _ in range(6)]
    samples = np.stack([*limb, *chest]) + rng.normal(0, 1e-3, (12, len(time)))
    return Signal(samples.astype(np.float32), rate, STANDARD_LEADS)


def tone(hz: float, seconds: float = 10, rate: float = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)[None]


def middle_rms(samples: np.ndarray) -> float:
    """Without the ends, where a filter has no past or future."""
    length = samples.shape[-1]
    return float(np.sqrt((samples[..., length // 5 : -length // 5] ** 2).mean()))


def published(signal: np.ndarray, fs: float) -> np.ndarray:
    """The filters a lead at a time, with the coefficients of one quotient."""
    cleaned = np.zeros_like(signal)
    window = int(0.4 * fs) + 1
    window += window % 2 == 0
    for lead, samples in enumerate(signal):
        one = filtfilt(*iirnotch(50, 30, fs), samples)
        two = filtfilt(*butter(4, [0.67, 40], "bandpass", fs=fs), one)
        cleaned[lead] = two - medfilt(two, window)
    return cleaned


# The preset ---------------------------------------------------------------------------------


def test_the_preset_is_the_published_filter() -> None:
    samples = tracing().samples.astype(np.float64)
    np.testing.assert_allclose(ecgfounder(samples, RATE), published(samples, RATE), atol=1e-6)


@pytest.mark.parametrize("rate", [250.0, 500.0, 1000.0, 4000.0])
def test_mains_are_30_db_lower_and_drift_is_gone(rate: float) -> None:
    mains, drift = tone(50, rate=rate), tone(0.1, rate=rate)
    assert middle_rms(ecgfounder(mains, rate)) < middle_rms(mains) * 10 ** (-30 / 20)
    assert middle_rms(ecgfounder(drift, rate)) < 0.01 * middle_rms(drift)
    kept = tone(10, rate=rate)
    assert middle_rms(ecgfounder(kept, rate)) == pytest.approx(middle_rms(kept), rel=0.1)


def test_the_notch_follows_the_power_line() -> None:
    wide = tone(60) + tone(10)
    quiet = ecgfounder(wide, RATE, mains_hz=60)
    loud = ecgfounder(wide, RATE, mains_hz=50)
    spectra = [np.abs(np.fft.rfft(part[0])) for part in (quiet, loud)]
    assert spectra[0][600] < 0.1 * spectra[1][600]


def test_mains_beyond_the_record_need_no_notch() -> None:
    assert np.isfinite(ecgfounder(tone(10, rate=100), 100.0)).all()
    with pytest.raises(DataError, match="80 Hz"):
        ecgfounder(tone(10, rate=80), 80.0)


def test_resampling_is_by_rate() -> None:
    half = prepare(tracing(seconds=5, rate=100), SPEC)
    assert half.shape == (12, 5000)
    assert not half[:, :1250].any() and not half[:, -1250:].any()
    assert half[:, 1250:-1250].std() == pytest.approx(1, abs=1e-4)
    slow = np.sin(2 * np.pi * 3 * np.arange(1000) / 100)[None]
    np.testing.assert_allclose(at_rate(slow, 100, 500)[0, :4990], tone(3)[0, :4990], atol=5e-3)
    long = tracing(seconds=14)
    np.testing.assert_allclose(
        prepare(long, SPEC)[0, 2000:3000], prepare(long, replace(SPEC, size=(7000,)))[0, 3000:4000],
        atol=0.1,
    )  # fmt: skip


def test_leads_are_standardised_together() -> None:
    signal = tracing()
    before = signal.samples.copy()
    made = prepare(signal, SPEC)
    assert made.dtype == np.float32
    assert made.mean() == pytest.approx(0, abs=1e-5)
    assert made.std() == pytest.approx(1, abs=1e-5)
    cleaned = ecgfounder(signal.samples, RATE)
    ratios = cleaned.std(axis=1) / cleaned[0].std()
    np.testing.assert_allclose(made.std(axis=1) / made[0].std(), ratios, rtol=1e-4)
    assert np.ptp(made.std(axis=1)) > 0.1
    np.testing.assert_array_equal(signal.samples, before)
    loud = prepare(replace(signal, samples=signal.samples * 1000), SPEC)
    np.testing.assert_allclose(loud, made, atol=1e-4)


# Leads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aVR", "AVR", "Lead aVR", "MDC_ECG_LEAD_AVR", "ECG aVR", " avr (Goldberger)"])  # fmt: skip
def test_one_lead_has_many_spellings(name: str) -> None:
    assert canonical(name) == "avr"


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(12)))
def test_the_order_of_a_file_does_not_matter(order: list[int]) -> None:
    signal = tracing(seconds=2)
    mixed = Signal(
        signal.samples[order], RATE, tuple(STANDARD_LEADS[place].upper() for place in order)
    )
    np.testing.assert_array_equal(prepare(mixed, SPEC), prepare(signal, SPEC))


def test_one_lead_of_twelve() -> None:
    signal = tracing()
    single = replace(SPEC, channels=1, ecg=replace(TRACING, leads=("V2",)))
    alone = Signal(signal.samples[7:8], RATE, ("V2",))
    nameless = replace(SPEC, channels=1, ecg=EcgSpec(preset="ecgfounder"))
    np.testing.assert_array_equal(prepare(signal, single), prepare(alone, nameless))
    with pytest.raises(DataError, match=r"has 12 leads, the network reads 1") as error:
        prepare(signal, nameless)
    assert "input.ecg.leads" in error.value.next_step


def test_names_that_are_not_there_are_refused_or_masked() -> None:
    signal = tracing()
    strange = Signal(signal.samples, RATE, tuple(f"ch{place}" for place in range(12)))
    for kind in ("refuse", "mask"):
        with pytest.raises(DataError, match="I is missing"):
            prepare(strange, replace(SPEC, ecg=replace(TRACING, faults=kind)))
    part = Signal(signal.samples[:10], RATE, STANDARD_LEADS[:10])
    with pytest.raises(DataError, match="V5 is missing, V6 is missing"):
        prepare(part, SPEC)
    masked = prepare(part, replace(SPEC, ecg=replace(TRACING, faults="mask")))
    assert not masked[10:].any()
    assert masked[:10].std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("fault", "word"), [("flat", "flat"), ("high", "clipped"), ("low", "clipped")])  # fmt: skip
def test_flat_and_clipped_leads_are_refused_or_masked(fault: str, word: str) -> None:
    signal = tracing()
    samples = signal.samples.copy()
    lead = samples[8]
    if fault == "flat":
        lead[:] = 0.3
    elif fault == "high":
        lead[1000:1100] = lead.max()
    else:
        np.clip(lead, np.median(lead), None, out=lead)
    bad = replace(signal, samples=samples)
    with pytest.raises(DataError, match=f"V3 is {word}"):
        prepare(bad, SPEC)
    masked = prepare(bad, replace(SPEC, ecg=replace(TRACING, faults="mask")))
    assert [bool(row.any()) for row in masked] == [place != 8 for place in range(12)]
    assert f"A lead is {word}." in oddities(bad)


def test_other_faults_of_a_record() -> None:
    signal = tracing()
    with pytest.raises(DataError, match=r"0\.80 s"):
        prepare(tracing(seconds=0.8), SPEC)
    mixed = signal.samples.copy()
    mixed[6:] *= 1000
    with pytest.raises(DataError, match="times below") as error:
        prepare(replace(signal, samples=mixed), SPEC)
    assert "mV" in error.value.expected
    double = replace(signal, channels=("I", "i", *STANDARD_LEADS[2:]))
    with pytest.raises(DataError, match="several leads 'i'"):
        choose(double, TRACING)


def test_swapped_names_are_noticed() -> None:
    signal = tracing()
    assert oddities(signal) == []
    swapped = replace(signal, channels=("II", "I", *STANDARD_LEADS[2:]))
    assert any("I + III" in text for text in oddities(swapped))


# Augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0])
def test_a_turned_heart_keeps_einthoven_and_its_length(degrees: float) -> None:
    signal = tracing()
    turned = rotate_limb(signal, degrees)
    one, two, three, avr, avl, avf = turned.samples[:6]
    np.testing.assert_allclose(two, one + three, atol=1e-5)
    np.testing.assert_allclose(avr + avl + avf, 0, atol=1e-5)
    np.testing.assert_array_equal(turned.samples[6:], signal.samples[6:])

    def square(samples: np.ndarray) -> np.ndarray:
        return samples[0] ** 2 + ((2 * samples[1] - samples[0]) / np.sqrt(3)) ** 2

    np.testing.assert_allclose(square(turned.samples), square(signal.samples), atol=1e-4)
    back = rotate_limb(turned, -degrees)
    np.testing.assert_allclose(back.samples[:2], signal.samples[:2], atol=1e-5)
    if degrees == 0:
        np.testing.assert_allclose(turned.samples, signal.samples, atol=1e-2)


def test_a_quarter_turn_brings_the_first_lead_down() -> None:
    heart = Signal(np.array([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]], np.float32), RATE, ("I", "II", "aVF"))  # fmt: skip
    turned = rotate_limb(heart, 90)
    np.testing.assert_allclose(turned.samples[0], 0, atol=1e-6)
    np.testing.assert_allclose(turned.samples[2], np.sqrt(3) / 2, atol=1e-6)
    with pytest.raises(DataError, match="I and II"):
        rotate_limb(replace(heart, channels=("V1", "V2", "V3")), 10)


def test_augmentation_is_drawn_then_applied() -> None:
    signal = tracing()
    config = AugmentConfig(shift=0, intensity=0, one_channel=1.0, rotate_limb=45)
    transform = Transform(SPEC, "ecg", config)
    drawn = transform.draw(np.random.default_rng(1), signal)
    assert drawn is not None
    assert drawn == transform.draw(np.random.default_rng(1), signal)
    assert 0 < abs(drawn["rotation"]) <= 45
    first = transform.apply(signal, drawn)
    np.testing.assert_array_equal(first, transform.apply(signal, drawn))
    assert sum(bool(row.any()) for row in first) == 1
    plain = Transform(SPEC, "ecg", AugmentConfig(shift=0, intensity=0))
    drawn = plain.draw(np.random.default_rng(1), signal)
    np.testing.assert_allclose(plain.apply(signal, drawn), prepare(signal, SPEC), atol=1e-6)


def test_a_network_of_one_lead_is_fed_any_lead() -> None:
    signal = tracing()
    signal.samples[3] = 0
    single = replace(SPEC, channels=1, ecg=replace(TRACING, leads=("I",)))
    config = AugmentConfig(shift=0, intensity=0, one_channel=1.0)
    transform = Transform(single, "ecg", config)
    drawn = [transform.draw(np.random.default_rng(seed), signal) for seed in range(60)]
    assert {params["lead"] for params in drawn if params} == set(range(12)) - {3}
    params = next(params for params in drawn if params and params["lead"] == 7)
    wanted = prepare(signal, replace(single, ecg=replace(TRACING, leads=("V2",))))
    np.testing.assert_allclose(transform.apply(signal, params), wanted, atol=1e-6)


def test_only_a_heart_has_an_axis() -> None:
    sound = Transform(InputSpec("x", "signal", 1, (800,), rate_hz=8000.0), "audio", AugmentConfig(rotate_limb=9))  # fmt: skip
    value = Signal(np.ones((1, 800), np.float32), 8000.0)
    with pytest.raises(DataError, match="audio"):
        sound.apply(value, sound.draw(np.random.default_rng(0), value))


# Files --------------------------------------------------------------------------------------


def written(folder: Path, signal: Signal, units: str = "mV", fmt: str = "16") -> Path:
    wfdb = pytest.importorskip("wfdb")
    factor = {"mV": 1, "uV": 1000}[units]
    wfdb.wrsamp(
        "a", fs=signal.rate_hz, units=[units] * 12, sig_name=list(signal.channels),
        p_signal=signal.samples.T.astype(np.float64) * factor, fmt=[fmt] * 12, write_dir=str(folder),
    )  # fmt: skip
    return folder / "a.hea"


@pytest.mark.parametrize("fmt", ["16", "212"])
def test_a_plain_record_is_read_as_the_library_reads_it(fmt: str, tmp_path: Path) -> None:
    wfdb = pytest.importorskip("wfdb")
    path = written(tmp_path, tracing(), fmt=fmt)
    samples, fields = wfdb.rdsamp(str(path.with_suffix("")))
    assert (_wfdb16.plain(path) is not None) == (fmt == "16")
    value = readers.read(path)
    np.testing.assert_array_equal(value.samples, samples.T.astype(np.float32))
    assert (value.channels, value.rate_hz) == (tuple(fields["sig_name"]), fields["fs"])
    assert readers.header(path).shape == (12, 5000)


@pytest.mark.parametrize(
    "line",
    ["a/2 12 500 5000", "a 12 500 5000\na.dat 16x2 1(0)/mV 16 0 0 0 0 I", "a 12", "", "# nothing"],
)
def test_what_is_not_plain_is_left_to_the_library(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.hea").write_text(line)
    assert _wfdb16.plain(tmp_path / "a.hea") is None


def test_a_record_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, tracing())
    data = path.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        readers.read(path)


def test_a_missing_sample_is_counted(tmp_path: Path) -> None:
    signal = tracing()
    signal.samples[3, 7] = np.nan
    with pytest.raises(DataError, match="1 of 60000"):
        readers.read(written(tmp_path, signal))


def test_microvolts_become_millivolts(tmp_path: Path) -> None:
    edfio = pytest.importorskip("edfio")
    signal = tracing()
    np.testing.assert_allclose(
        readers.read(written(tmp_path, signal, "uV")).samples, signal.samples, atol=1e-3
    )
    leads = [
        edfio.EdfSignal(1000 * row.astype(float), RATE, label=name, physical_dimension="uV")
        for row, name in zip(signal.samples, signal.channels, strict=True)
    ]
    edfio.Edf(leads).write(tmp_path / "b.edf")
    value = readers.read(tmp_path / "b.edf")
    np.testing.assert_allclose(value.samples, signal.samples, atol=1e-3)
    np.testing.assert_allclose(prepare(value, SPEC), prepare(signal, SPEC), atol=0.02)


def test_a_table_of_times_is_a_tracing(tmp_path: Path) -> None:
    signal = tracing(seconds=2)
    columns = {"time_ms": np.arange(1000) * 2.0}
    columns |= {f"{name} (uV)": row * 1000 for name, row in zip(STANDARD_LEADS, signal.samples, strict=True)}  # fmt: skip
    pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False)
    value = readers.read(tmp_path / "a.csv")
    assert (value.rate_hz, value.channels) == (500.0, STANDARD_LEADS)
    np.testing.assert_allclose(value.samples, signal.samples, atol=1e-5)
    cohort = Cohort.open(pd.DataFrame({"ecg": ["a.csv"] * 2, "label": [0, 1]}), root=tmp_path)
    assert cohort.inputs == {"ecg": "ecg"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,I\n0,1\n0.1,2\n0.5,3\n", "not even"),
        ("time,I\n0,1\n0,2\n", "not even"),
        ("time,I\n0,1\n", "size"),
        ("time,I\n0,x\n1,2\n", "cannot be read"),
        ("time,I\n0,nan\n1,2\n", "1 of 2"),
        ("time,I\n0,1,2\n1,2,3\n", "cannot be read"),
        ("I,II\n0,1\n1,2\n", "No reader"),
    ],
)
def test_a_broken_table_is_an_error(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        readers.read(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.hea", "a.dat", "b.csv"])
def test_mutated_files_give_a_tracing_or_a_data_error(name: str, tmp_path: Path) -> None:
    signal = tracing(seconds=1)
    written(tmp_path, signal)
    table = pd.DataFrame(signal.samples.T, columns=list(STANDARD_LEADS))
    table.assign(time=np.arange(500) / 500).to_csv(tmp_path / "b.csv", index=False)
    good = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(len(name))
    for turn in range(60):
        data = bytearray(good[: int(rng.integers(0, len(good)))] if turn % 3 == 0 else good)
        for place in rng.integers(0, max(min(len(data), 700), 1), 3 if data else 0):
            data[place] = int(rng.integers(0, 256))
        (tmp_path / name).write_bytes(bytes(data))
        try:
            value = readers.read(tmp_path / name)
        except DataError as error:
            assert error.found
        else:
            assert isinstance(value, Signal) and np.isfinite(value.samples).all()


def test_check_lists_odd_tracings(tmp_path: Path) -> None:
    flat = tracing(seconds=2)
    flat.samples[4] = 0
    written(tmp_path, flat)
    table = pd.DataFrame({"ecg": ["a.hea"] * 2, "label": [0, 1], "patient_id": [1, 2]})
    found = check(Cohort.open(table, root=tmp_path)).findings
    assert [f.message for f in found if f.code == "tracing"] == ["A lead is flat. (2 row(s))"]
