"""Relevances over a picture and over time: each where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, WhisperConfig, WhisperModel

from captum_lig import FlowGraph, LayerFlowIG, LigError
from captum_lig.graph import Trace
from captum_lig.prediction import state
from captum_lig.views.plots import plot_picture, plot_sound

FRAME = 124
"""Of the spectrogram, the one that has a sound."""
ROW, COLUMN = 1, 3
"""Of the patch that is not as in the baseline."""


@pytest.fixture(scope="module")
def seen() -> tuple[Trace, Tensor]:
    """A class of a picture of 2 x 4 patches; all but one are those of the baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=(16, 32),
            patch_size=8,
            num_labels=3,
        )
        model = ViTForImageClassification(config).eval()
        picture = torch.rand(16, 32, 3)
    pixels = picture.permute(2, 0, 1)[None]
    other = pixels.clone()
    other[..., 8 * ROW : 8 * ROW + 8, 8 * COLUMN : 8 * COLUMN + 8] = 0.5
    flows = LayerFlowIG(model).attribute(pixels, other, 1)
    return FlowGraph(flows).relevance(), picture


@pytest.fixture(scope="module")
def heard() -> tuple[Trace, Tensor]:
    """Of a spectrogram of which one frame is not silent, what reads the token at that time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = WhisperConfig(
            vocab_size=20,
            num_mel_bins=8,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_source_positions=100,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        encoder = WhisperModel(config).encoder.eval()
    silence = torch.zeros(1, 8, 200)
    features = silence.clone()
    features[..., FRAME] = 1.0
    flows = LayerFlowIG(encoder).attribute(features, silence, state(FRAME // 2))
    return FlowGraph(flows).relevance(), features[0]


def mesh(axes: Any) -> QuadMesh:
    return next(one for one in axes.collections if isinstance(one, QuadMesh))


def test_a_patch_is_drawn_where_it_is(seen: tuple[Trace, Tensor]) -> None:
    trace, picture = seen
    figure, axes = plot_picture(trace, picture, special=["[CLS]"])
    names = ["into layer 0", "into layer 1", "out of layer 1"]
    assert [one.get_title().split("\n")[0] for one in axes] == ["the picture", *names]
    shown = np.asarray(axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, picture.numpy(), atol=1e-6)
    for row, one in enumerate(axes[1:]):
        grey, heat = (np.asarray(image.get_array()) for image in one.images)
        np.testing.assert_allclose(grey, picture.mean(-1).numpy(), atol=1e-6)
        np.testing.assert_allclose(heat, trace.tokens[row, 1:].view(2, 4).numpy())
        assert all(list(image.get_extent()) == [0, 4, 2, 0] for image in one.images)
        assert f"[CLS] {float(trace.tokens[row, 0]):+.3g}" in one.get_title()
    below = np.asarray(axes[1].images[1].get_array())
    assert [tuple(place) for place in np.argwhere(below)] == [(ROW, COLUMN)]
    limits = {image.norm.vmax for one in axes[1:] for image in one.images[1:]}
    assert limits == {float(trace.tokens[:, 1:].abs().max())}
    figure.canvas.draw()


def test_values_and_pictures_of_other_shapes(seen: tuple[Trace, Tensor]) -> None:
    trace, picture = seen
    whole = (255 * picture).round().to(torch.uint8)
    for given in (whole, whole.permute(2, 0, 1), whole.numpy(), picture):
        _, axes = plot_picture(trace.tokens[0], given, (8, 8))
        assert len(axes) == 2
        np.testing.assert_allclose(
            np.asarray(axes[0].images[0].get_array()), picture.numpy(), atol=2 / 255
        )
    _, axes = plot_picture(trace.tokens.float(), picture[..., 0], depths=[2, 0], limit=0.5)
    assert [one.get_title().split("\n")[0] for one in axes[1:]] == ["row 2", "row 0"]
    assert axes[1].images[1].norm.vmax == 0.5
    _, axes = plot_picture(trace.tokens[:, 1:], picture, depths=[0])  # without special tokens
    assert axes[1].get_title() == "row 0"
    # Patches that are not square: 4 x 4 of 4 x 8 pixels, and three special tokens.
    _, axes = plot_picture(torch.arange(19.0), picture, (4, 8))
    expected = torch.arange(3.0, 19).view(4, 4).numpy()
    np.testing.assert_allclose(np.asarray(axes[1].images[1].get_array()), expected)
    assert axes[1].get_title().split("\n")[1:] == ["token 0 +0", "2 more +3"]


def test_what_does_not_fit_a_picture(seen: tuple[Trace, Tensor]) -> None:
    trace, picture = seen
    refused = {
        r"no square patches of a picture of 16 x 32 pixels are 300 tokens": (
            torch.ones(300),
            picture,
            {},
        ),
        r"1 names, and 0 of the 8 tokens": (torch.ones(8), picture, {"special": ["[CLS]"]}),
        r"patches of 4 x 4 pixels are 4 x 8 = 32": (trace, picture, {"patch": 4}),
        r"patch=5 does not divide": (trace, picture, {"patch": 5}),
        r"depths=\[3\]: there are 0 to 2": (trace, picture, {"depths": [3]}),
        r"picture has shape \(16, 32, 4\)": (trace, torch.ones(16, 32, 4), {}),
        r"picture has numbers from -1 to 1": (trace, 2 * (picture > 0.5).float() - 1, {}),
        r"values have shape \(1, 2, 9\)": (torch.ones(1, 2, 9), picture, {}),
        r"not finite": (torch.full((9,), float("nan")), picture, {}),
    }
    for message, (values, shown, settings) in refused.items():
        with pytest.raises(LigError, match=message):
            plot_picture(values, shown, **settings)


def test_a_sound_is_drawn_when_it_was(heard: tuple[Trace, Tensor]) -> None:
    """Two convolutions of width 3, the second with steps of 2: a frame reaches tokens beside it."""
    trace, features = heard
    _, (upper, lower) = plot_sound(trace, features)
    drawn = mesh(lower)
    heat, places = np.asarray(drawn.get_array()), drawn.get_coordinates()[0, :, 0]
    np.testing.assert_allclose(heat, trace.tokens.numpy())
    np.testing.assert_allclose(places, 0.02 * np.arange(101))
    labels = [label.get_text() for label in lower.get_yticklabels()]
    assert labels == ["into layer 0", "into layer 1", "out of layer 1"]
    reached = {FRAME // 2 - 1, FRAME // 2, FRAME // 2 + 1}
    assert set(heat[0].nonzero()[0]) <= reached
    strongest = np.abs(heat[0]).argmax()
    assert strongest == FRAME // 2
    assert places[strongest] <= 0.01 * FRAME < places[strongest + 1]
    assert set(heat[-1].nonzero()[0]) == {FRAME // 2}
    above = mesh(upper)
    band = np.asarray(above.get_array())
    assert set(band.nonzero()[1]) == {FRAME}
    assert above.get_coordinates()[0, FRAME, 0] == pytest.approx(0.01 * FRAME)
    assert lower.get_xlim() == (0, 2.0)


def test_a_wave_and_what_comes_after_it(heard: tuple[Trace, Tensor]) -> None:
    trace, _ = heard
    wave = torch.sin(torch.arange(8_000) / 10)  # half a second of 16,000 a second
    figure, (upper, lower) = plot_sound(trace, wave, depths=[0, 2])
    times, shown = upper.lines[0].get_data()
    np.testing.assert_allclose(shown, wave.numpy(), atol=1e-6)
    assert (times[0], times[-1]) == (0, pytest.approx(0.5, abs=1e-3))
    np.testing.assert_allclose(mesh(lower).get_array(), trace.tokens[[0, 2], :25].numpy())
    rest = float(trace.tokens[2, 25:].sum())
    caption = figure._supxlabel.get_text()
    assert "75 tokens after the end of the sound" in caption
    assert f"{rest:+.3g}" in caption
    assert lower.get_xlim() == (0, pytest.approx(0.5))
    slower = plot_sound(torch.ones(4), torch.zeros(8_000), seconds_per_token=0.125)[1][1]
    np.testing.assert_allclose(
        mesh(slower).get_coordinates()[0, :, 0], [0, 0.125, 0.25, 0.375, 0.5]
    )


def test_what_does_not_fit_a_sound(heard: tuple[Trace, Tensor]) -> None:
    trace, features = heard
    plot_sound(torch.ones(49), torch.zeros(15_900))  # what does not fill a token has none
    with pytest.raises(LigError, match=r"the sound has 2\.500 s, and 100 tokens of 0\.02 s"):
        plot_sound(trace, torch.zeros(40_000))
    with pytest.raises(LigError, match=r"sound has shape \(1, 8, 200\)"):
        plot_sound(trace, features[None])
    with pytest.raises(LigError, match=r"depths=\[\]"):
        plot_sound(trace, features, depths=[])
    with pytest.raises(LigError, match="sound holds numbers"):
        plot_sound(trace, features / 0)
