"""The twins against the models, against themselves, and against Captum where it applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor
from transformers import PreTrainedModel

from tests.helpers import models, twin_blocks, twins

FAMILIES = tuple(models.MODELS)
BASELINES = ("zero", "target_token")
SCALARIZATIONS = ("l2", "projection")
LENGTHS = (5, 3)  # of the texts of the padded batch

GRADED = twins.gauss_legendre(48, power=2)
COARSE = twins.gauss_legendre(8, power=2)
# Pre-norm blocks with a zero baseline change at every scale of a: two panels a decade.
FINE = twins.panels([0.0, *(10.0 ** (k / 2) for k in range(-8, 1))], 8)

Maps = Callable[..., tuple[Tensor, ...]]


def nodes_for(family: str, baseline: str) -> tuple[twins.Nodes, twins.Nodes]:
    return FINE if family in models.CAUSAL and baseline == "zero" else GRADED


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only costs at these sizes, and a lot when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> PreTrainedModel:
    return models.MODELS[family]()


@pytest.fixture(scope="module")
def text(model: PreTrainedModel) -> tuple[twin_blocks.TwinBlock, Tensor]:
    """The second block and what enters it, for a text of 5 tokens without padding."""
    ids = models.tokens(model, 1, 5)
    z, _ = models.block_input_output(model, 1, input_ids=ids)
    return twin_blocks.twin_block(model, 1, torch.ones_like(ids[0])), z[0]


def assert_complete(summed: Tensor, totals: Tensor, tolerance: float = 1e-6) -> None:
    error = ((summed - totals).abs() / totals.clamp_min(1e-3)).max()
    assert error < tolerance, f"relative completeness error {error:.1e}"


# ---- forward ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_the_cut_block_equals_the_models_own(model: PreTrainedModel, layer: int) -> None:
    batch = models.padded_batch(model, LENGTHS)
    entering, leaving = models.block_input_output(model, layer, **batch)
    for z, expected, attention_mask in zip(entering, leaving, batch["attention_mask"], strict=True):
        block = twin_blocks.twin_block(model, layer, attention_mask)
        q, k, v = block.pre(z)
        assert q.shape == k.shape == v.shape == (models.HEADS, len(z), models.WIDTH // models.HEADS)
        torch.testing.assert_close(
            block.post(block.core(q, k, v, block.mask), z), expected, rtol=0, atol=1e-10
        )


def test_the_blocks_are_not_trivial(text: tuple[twin_blocks.TwinBlock, Tensor]) -> None:
    block, z = text
    q, k, _ = block.pre(z)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + block.mask).softmax(-1)
    uniform = (block.mask == 0).double() / (block.mask == 0).sum(-1, keepdim=True)
    assert (weights - uniform).abs().max() > 0.3
    assert (weights[0] - weights[1]).abs().max() > 0.1


def test_the_models_depend_on_the_seed_only(family: str) -> None:
    state = torch.get_rng_state()
    first = models.MODELS[family](seed=1).state_dict()
    torch.rand(3)
    second = models.MODELS[family](seed=1).state_dict()
    torch.set_rng_state(state)
    half = models.MODELS[family](seed=1, dtype=torch.float32).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = models.MODELS[family](seed=2).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        torch.testing.assert_close(half[name].double(), value.double(), rtol=1e-6, atol=1e-6)
        assert not value.dtype.is_floating_point or torch.equal(value, other[name]) == (
            "inv_freq" in name
        )
        if "bias" in name:
            assert (value != 0).all()


# ---- completeness ----------------------------------------------------------------------------


@pytest.mark.parametrize("scalarization", SCALARIZATIONS)
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_boundary_is_complete_and_compositions_conserve(
    family: str, text: tuple[twin_blocks.TwinBlock, Tensor], baseline: str, scalarization: str
) -> None:
    block, z = text
    setting = (block, z, baseline, scalarization, *nodes_for(family, baseline))
    c, attention_totals = twins.attention_map(*setting)
    direct, layer_totals = twins.layer_map(*setting)
    m, r, mlp_totals = twins.mlp_map(*setting)
    chained = twins.chain_map(*setting)

    assert_complete(c.sum(-1), attention_totals)
    assert_complete(direct.sum(-1), layer_totals)
    assert_complete(m.sum(-1) + r, mlp_totals)
    assert_complete(mlp_totals, layer_totals, 1e-12)
    torch.testing.assert_close(chained.sum(-1), m.T, rtol=0, atol=1e-6 * float(m.abs().max()))

    assert_complete(twins.conserve(c, attention_totals, m, r).sum(-1), layer_totals)
    assert_complete(twins.chain(chained, r).sum(-1), layer_totals)
    lost = twins.product(c, m).sum(-1) - layer_totals  # the paper's formula conserves nothing
    assert (lost.abs() / layer_totals.clamp_min(1e-3)).max() > 0.1
    if baseline == "target_token":
        assert torch.equal(r, torch.zeros_like(r))
    else:
        assert r.abs().max() > 1e-2


@pytest.mark.parametrize("boundary", [twins.attention_map, twins.layer_map])
@pytest.mark.parametrize("baseline", BASELINES)
def test_vectors_add_up_and_project_to_the_scalars(
    text: tuple[twin_blocks.TwinBlock, Tensor], baseline: str, boundary: Maps
) -> None:
    block, z = text
    if baseline == "target_token":
        vectors, change = boundary(block, z, baseline, "vector", *GRADED)
        torch.testing.assert_close(vectors.sum(-2), change, rtol=0, atol=1e-6)
    vectors, change = boundary(block, z, baseline, "vector", *COARSE)
    projected, totals = boundary(block, z, baseline, "projection", *COARSE)
    torch.testing.assert_close(torch.linalg.vector_norm(change, dim=-1), totals)
    direction = torch.nn.functional.normalize(change, dim=-1, eps=1e-300)
    torch.testing.assert_close((vectors @ direction[..., None])[..., 0], projected)


@pytest.mark.parametrize("target", [1, 4])
def test_captum_agrees_where_it_applies(
    text: tuple[twin_blocks.TwinBlock, Tensor], target: int
) -> None:
    """One target, one shared path, the scalarization inside the function: plain Captum."""
    block, z = text
    y0, y1 = block(torch.zeros_like(z))[target].detach(), block(z)[target].detach()
    direction = torch.nn.functional.normalize(y1 - y0, dim=0)

    def scalar(batch: Tensor) -> Tensor:
        return torch.stack([(block(x)[target] - y0) @ direction for x in batch])

    expected = IntegratedGradients(scalar).attribute(z[None], n_steps=16, method="gausslegendre")
    phi, _ = twins.layer_map(block, z, "zero", "projection", *twins.gauss_legendre(16))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(phi[target], expected[0].sum(-1), rtol=1e-5, atol=1e-5)


# ---- zeros -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scalarization", [*SCALARIZATIONS, "vector"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_what_cannot_flow_is_exactly_zero(
    family: str, text: tuple[twin_blocks.TwinBlock, Tensor], baseline: str, scalarization: str
) -> None:
    block, z = text
    later = torch.ones(len(z), len(z)).triu(1).bool()
    own = torch.eye(len(z)).bool()
    for boundary in (twins.attention_map, twins.layer_map):
        phi, totals = boundary(block, z, baseline, scalarization, *COARSE)
        if scalarization == "vector":
            phi, totals = phi.abs().sum(-1), totals.abs().sum(-1)
        if family in models.CAUSAL:
            assert (phi[..., later] == 0).all()
            assert (phi[..., later.T] != 0).all()
        else:
            assert (phi[..., later] != 0).all()
        assert (phi[..., own] == 0).all() == (baseline == "target_token")
        if family in models.CAUSAL and baseline == "target_token":
            assert (totals[..., 0] == 0).all()  # the first token sees itself only


def test_padding_changes_nothing(model: PreTrainedModel) -> None:
    batch = models.padded_batch(model, LENGTHS)
    length = LENGTHS[1]
    alone = {name: value[1:, :length] for name, value in batch.items()}
    z_padded = models.block_input_output(model, 0, **batch)[0][1]
    z_alone = models.block_input_output(model, 0, **alone)[0][0]
    for baseline in BASELINES:
        maps = [
            twins.layer_map(twin_blocks.twin_block(model, 0, mask), z, baseline, "l2", *COARSE)[0]
            for z, mask in (
                (z_padded, batch["attention_mask"][1]),
                (z_alone, alone["attention_mask"][0]),
            )
        ]
        real = maps[0][:length]
        torch.testing.assert_close(real[:, :length], maps[1], rtol=1e-9, atol=1e-9)
        assert (real[:, length:] == 0).all()


def test_a_path_that_does_not_move_gives_zeros() -> None:
    """RoPE, causal, one token twice at the start: u moves by rounding only, 1e-15."""
    model = models.tiny_llama()
    ids = torch.tensor([[7, 7, 9, 11]])
    z = models.block_input_output(model, 1, input_ids=ids)[0][0]
    block = twin_blocks.twin_block(model, 1, torch.ones(4))
    for boundary in (twins.attention_map, twins.layer_map):
        phi, totals = boundary(block, z, "target_token", "l2", *COARSE)
        assert (phi[..., 1, :] == 0).all()
        assert (totals[..., 1] == 0).all()
        assert (totals[..., 2:] > 1e-4).all()


# ---- paths and nodes -------------------------------------------------------------------------


def test_the_forms_of_a_baseline_agree(text: tuple[twin_blocks.TwinBlock, Tensor]) -> None:
    block, z = text
    own_paths = z[:, None].expand(-1, len(z), -1)  # for target j, z_j at every source
    equivalent: tuple[list[twins.Baseline], ...] = (
        ["zero", 0.0, torch.zeros_like(z), torch.zeros(len(z), *z.shape, dtype=z.dtype)],
        ["target_token", own_paths],
    )
    for forms in equivalent:
        maps: list[Any] = [twins.layer_map(block, z, form, "l2", *COARSE) for form in forms]
        for phi, totals in maps[1:]:
            assert torch.equal(phi, maps[0][0])
            assert torch.equal(totals, maps[0][1])


@pytest.mark.parametrize("baseline", BASELINES)
def test_at_the_start_the_norm_takes_its_limit(
    text: tuple[twin_blocks.TwinBlock, Tensor], baseline: str
) -> None:
    block, z = text
    one = np.ones(1)
    for boundary in (twins.attention_map, twins.layer_map, twins.mlp_map):
        at_zero = boundary(block, z, baseline, "l2", np.zeros(1), one)[0]
        close_by = boundary(block, z, baseline, "l2", np.full(1, 1e-9), one)[0]
        assert at_zero.isfinite().all()
        assert at_zero.abs().max() > 1e-3
        tolerance = 1e-3 * float(at_zero.abs().max())
        torch.testing.assert_close(at_zero, close_by, rtol=0, atol=tolerance)


@pytest.mark.parametrize("power", [1, 2, 3, 6])
def test_the_nodes_integrate_polynomials(power: int) -> None:
    for alphas, weights in (
        twins.gauss_legendre(12, power),
        twins.panels([0.0, 0.1, 0.4, 1.0], 4),
    ):
        assert ((alphas > 0) & (alphas < 1) & (weights > 0)).all()
        for degree in range(3):
            assert (weights * alphas**degree).sum() == pytest.approx(1 / (degree + 1), abs=1e-13)


# ---- these tests can fail --------------------------------------------------------------------


def test_wrong_weights_break_completeness(text: tuple[twin_blocks.TwinBlock, Tensor]) -> None:
    block, z = text
    alphas, weights = GRADED
    phi, totals = twins.layer_map(block, z, "target_token", "l2", alphas, weights)
    assert_complete(phi.sum(-1), totals)
    phi, totals = twins.layer_map(block, z, "target_token", "l2", alphas, weights * 31 / 32)
    with pytest.raises(AssertionError, match="completeness"):
        assert_complete(phi.sum(-1), totals, 1e-2)


def test_a_lost_mask_and_a_wrong_start_are_seen(text: tuple[twin_blocks.TwinBlock, Tensor]) -> None:
    block, z = text
    mask = block.mask.clone()
    mask[2, 1] = twin_blocks.FORBIDDEN
    broken = twin_blocks.TwinBlock(block.pre, block.core, block.post, mask)
    assert (broken(z) - block(z)).abs().max() > 1e-3
    phi, _ = twins.layer_map(block, z, "target_token", "l2", *GRADED)
    _, totals = twins.layer_map(block, z, 0.1, "l2", *GRADED)
    with pytest.raises(AssertionError, match="completeness"):
        assert_complete(phi.sum(-1), totals, 1e-2)


@pytest.mark.parametrize(
    ("baseline", "scalarization", "message"),
    [
        ("zeros", "l2", "baseline"),
        (torch.zeros(2, 2), "l2", "baseline"),
        ("zero", "L2", "scalarization"),
    ],
)
def test_misspelt_settings_are_refused(
    text: tuple[twin_blocks.TwinBlock, Tensor],
    baseline: twins.Baseline,
    scalarization: str,
    message: str,
) -> None:
    block, z = text
    with pytest.raises(ValueError, match=message):
        twins.layer_map(block, z, baseline, scalarization, *COARSE)
