"""Sound as networks of spectrograms want it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from galenic.data import transforms
from galenic.data.readers import read
from galenic.data.spectrogram import log_mel
from galenic.data.values import Signal
from galenic.models.backbone import open_backbone


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ast")
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_length=256,
    )  # fmt: skip
    ASTModel(config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("seconds", [0.6, 4.0])
def test_a_voice_is_read_as_ast_reads_it(seconds: float, ast: Path, real_data: Path) -> None:
    pytest.importorskip("soundfile")
    voice = read(sorted((real_data / "als_voice").rglob("*.flac"))[0])
    assert isinstance(voice, Signal)
    assert voice.rate_hz == 16_000
    samples = np.tile(voice.samples, 8)[:, : int(16_000 * seconds)]
    spec = open_backbone(str(ast)).inputs
    ours = transforms.build(spec, "audio").apply(Signal(samples, voice.rate_hz))
    extractor = ASTFeatureExtractor(max_length=256)
    theirs = extractor(samples[0], sampling_rate=16_000, return_tensors="np").input_values[0]
    assert ours.shape == theirs.shape == (256, 128)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_click_shorter_than_a_window_is_padded() -> None:
    table = log_mel(np.ones((2, 100), np.float32), 16_000, 4, 16)
    assert table.shape == (4, 16)
    assert np.isfinite(table).all()
