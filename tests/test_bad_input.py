"""What cannot be worked with is a LigError that repeats what was given and says what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from captum_lig import LayerFlowIG, SetToSetIG, patching
from captum_lig.prediction import direct_relevance, layer_baselines
from tests.helpers import models
from tests.helpers.refusals import named, refused

WIDTH, TOKENS = models.WIDTH, 5
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module", params=models.MODELS)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    built: PreTrainedModel = models.MODELS[request.param]()
    return built


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return models.tiny_bert()


def last(output: Any) -> Tensor:
    return output[0][:, -1, 3]  # type: ignore[no-any-return]


def refuses(model: nn.Module, inputs: Any, *says: str, layer: Any = None, **kwargs: Any) -> None:
    """LayerFlowIG does."""
    arguments = {"n_steps": 2, **kwargs}
    refused(lambda: LayerFlowIG(model, layer).attribute(inputs, **arguments), *says)


# ---- the model -------------------------------------------------------------------------------


class LinearLayers(nn.Module):
    """Blocks in a list, but no attention in them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("model", [None, "bert", torch.tanh, nn.Linear, {"model": 1}])
def test_not_a_module(model: Any) -> None:
    given = type(model).__name__
    refused(lambda: LayerFlowIG(model), given, "torch.nn.Module")


def test_training_mode(any_model: PreTrainedModel) -> None:
    ids = models.tokens(any_model, 1, TOKENS)
    any_model.train()
    try:
        refuses(any_model, ids, "training mode", ".eval()")
    finally:
        any_model.eval()


def test_one_submodule_in_training_mode(any_model: PreTrainedModel) -> None:
    ids = models.tokens(any_model, 1, TOKENS)
    dropouts = {n: m for n, m in any_model.named_modules() if n and not list(m.children())}
    name, module = list(dropouts.items())[-1]
    module.train()
    try:
        refuses(any_model, ids, "training mode", name, ".eval()")
    finally:
        any_model.eval()


@pytest.mark.parametrize("model", [LinearLayers(), nn.Sequential(nn.Linear(8, 8))], ids=str)
def test_blocks_without_attention(model: nn.Module) -> None:
    for layer in (None, 0):
        says = "no attention", type(model).__name__, "boundaries=('layer',)", "captum_lig.Block"
        refuses(model.eval(), torch.rand(1, 3, 8), *says, layer=layer)


@pytest.mark.parametrize("model", [nn.Linear(8, 8), nn.ModuleDict({"a": nn.Linear(8, 8)})], ids=str)
def test_no_blocks(model: nn.Module) -> None:
    if isinstance(model, nn.ModuleDict):
        model.forward = model["a"].forward
    says = "no blocks", type(model).__name__, "captum_lig.Block"
    refuses(model.eval(), torch.rand(1, 3, 8), *says)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("family", models.MODELS)
def test_activations_that_are_not_finite(family: str, value: float) -> None:
    """A parameter of the middle one of three blocks; the first is as good as ever."""
    model = models.MODELS[family](layers=3)
    last = list(models.blocks(model)[1].parameters())[-1]
    with torch.no_grad():
        last.view(-1)[0] = value
    ids = models.tokens(model, 1, TOKENS)
    for layer in (None, 1, 2):
        refuses(model, ids, "block", "finite", layer=layer)
    flow = LayerFlowIG(model, 0).attribute(ids, n_steps=2)
    assert bool(torch.isfinite(flow.layer).all())


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_attention_that_is_not_finite(part: str) -> None:
    model = models.tiny_bert(layers=3)
    projection = getattr(models.blocks(model)[1].attention.self, part)
    with torch.no_grad():
        projection.weight[0, 0] = NAN
    refuses(model, models.tokens(model, 1, TOKENS), "encoder.layer.1", "finite")


# ---- layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (2, ("2", "0 to 1")),
        (-3, ("-3", "0 to 1")),
        ([0, 99], ("99", "0 to 1")),
        ("encoder.layer.7", ("'encoder.layer.7'", "encoder.layer.0", "encoder.layer.1")),
        ("embeddings", ("'embeddings'", "encoder.layer.0")),
        ("", ("''", "encoder.layer.0")),
        (["encoder.layer.0", "nothing"], ("'nothing'", "encoder.layer.0")),
        (nn.Linear(2, 2), ("Linear", "encoder.layer.0")),
        (models.tiny_gpt2(layers=1).h[0], ("GPT2Block", "encoder.layer.0")),
        ([], ("empty list", "None")),
        ((), ("empty", "None")),
        (1.5, ("1.5",)),
        ([1.5], ("1.5",)),
        (True, ("True",)),
        ([None], ("None",)),
    ],
    ids=named,
)
def test_unknown_layer(bert: PreTrainedModel, layer: Any, says: tuple[str, ...]) -> None:
    refuses(bert, models.tokens(bert, 1, TOKENS), *says, layer=layer)


def test_modules_that_are_no_blocks(bert: PreTrainedModel) -> None:
    ids = models.tokens(bert, 1, TOKENS)
    for module in (bert, bert.embeddings, bert.encoder, bert.encoder.layer):
        refuses(bert, ids, type(module).__name__, "encoder.layer.0", layer=module)


# ---- baselines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "says"),
    [
        ("mean", ("'mean'", "'zero'", "'target_token'")),
        ("", ("''", "'zero'")),
        ("a text", ("'a text' is unknown", "'zero'", "only with target=", "layer_baselines")),
        ("padding", ("'padding' is unknown", "only with target=")),
        (True, ("True", "bool", "'zero'")),
        (torch.zeros(WIDTH + 1), ("(33,)", "(32,)")),
        (
            torch.zeros(TOKENS, WIDTH),
            ("(5, 32)", "use (32,) or (1, 5, 32), or (1, 5, 5, 32) for a baseline per"),
        ),
        (torch.zeros(1, TOKENS - 1, WIDTH), ("(1, 4, 32)", "5, 32)")),
        (torch.zeros(2, TOKENS, WIDTH), ("(2, 5, 32)", "5, 32)")),
        (
            torch.zeros(1, TOKENS - 1, TOKENS, WIDTH),
            ("(1, 4, 5, 32)", "(1, 5, 5, 32) for a baseline per target"),
        ),
        (torch.zeros(()), ("()", "(32,)")),
        ({"layer": "zero"}, ("dict", "'zero'")),
        (1j, ("complex", "'zero'")),
        ([], ("0 baselines", "2 layers")),
        (["zero"], ("1 baselines", "2 layers")),
        (("zero", 0, 0.5), ("3 baselines", "2 layers")),
        (["zero", "mean"], ("'mean'", "'target_token'")),
        ([["zero"], ["zero"]], ("list", "'zero'")),
        (NAN, ("nan", "finite")),
        (torch.full((WIDTH,), INF), ("finite",)),
        (torch.full((1, TOKENS, TOKENS, WIDTH), NAN), ("finite",)),
    ],
    ids=named,
)
def test_baseline_of_layers(bert: PreTrainedModel, baseline: Any, says: tuple[str, ...]) -> None:
    refuses(bert, models.tokens(bert, 1, TOKENS), *says, baselines=baseline)


def test_a_baseline_of_maps_where_the_input_has_one() -> None:
    model = models.tiny_gpt2()
    ids = models.tokens(model, 1, TOKENS)
    for baseline in ("zero", "target_token"):
        for asked in (
            lambda x: LayerFlowIG(model).attribute(ids, x, last),
            lambda x: LayerFlowIG(model).direct_edges(ids, x, last),
            lambda x: patching.effects(model, ids, x, last, "tokens"),
            lambda x: direct_relevance(model, last, ids, x),
            lambda x: layer_baselines(model, ids, x),
        ):
            refused(partial(asked, baseline), f"{baseline!r} is for maps without a target")


# ---- numbers and names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *[({"n_steps": n}, ("n_steps", repr(n), "at least 1")) for n in (0, -1, 2.5, True)],
        ({"n_steps": "16"}, ("n_steps", "'16'", "whole number")),
        ({"n_steps": 1, "method": "riemann_trapezoid"}, ("n_steps=1", "at least 2")),
        ({"method": "simpson"}, ("'simpson'", "gausslegendre", "riemann_trapezoid")),
        ({"method": None}, ("None", "gausslegendre")),
        ({"internal_batch_size": 0}, ("internal_batch_size=0", "at least 1")),
        ({"internal_batch_size": -4}, ("internal_batch_size=-4", "at least 1")),
        ({"internal_batch_size": 2.0}, ("internal_batch_size=2.0", "whole number")),
        ({"internal_batch_size": True}, ("internal_batch_size=True", "whole number")),
        ({"output_indices": [5]}, ("5", "out of range", "0 to 4")),
        ({"output_indices": [0, -6]}, ("-6", "out of range", "0 to 4")),
        ({"output_indices": torch.tensor([2, 77])}, ("77", "out of range", "0 to 4")),
        ({"output_indices": []}, ("output_indices", "[]")),
        ({"output_indices": [0.5]}, ("output_indices", "0.5")),
        ({"output_indices": "cls"}, ("output_indices", "'cls'")),
        ({"output_indices": [None]}, ("output_indices", "None")),
        ({"output_indices": [True, False, True, False, False]}, ("output_indices", "True")),
        ({"output_indices": torch.linspace(0, 1, 500)}, ("output_indices",)),
    ],
    ids=named,
)
def test_arguments_of_both(
    bert: PreTrainedModel, arguments: dict[str, Any], says: tuple[str, ...]
) -> None:
    refuses(bert, models.tokens(bert, 1, TOKENS), *says, **arguments)
    ig, arguments = SetToSetIG(lambda x: x.sin()), {"n_steps": 2, **arguments}
    refused(lambda: ig.attribute(torch.rand(1, TOKENS, 2), **arguments), *says)


@pytest.mark.parametrize("tolerance", [0, 1, -1e-3, 2.0, NAN, True, "1e-3", [1e-3]])
def test_tolerance(bert: PreTrainedModel, tolerance: Any) -> None:
    says = f"tolerance={tolerance!r}", "None"
    refuses(bert, models.tokens(bert, 1, TOKENS), *says, tolerance=tolerance)


@pytest.mark.parametrize("max_steps", [1, 0, 2.5, True, None, "64"])
def test_max_steps(bert: PreTrainedModel, max_steps: Any) -> None:
    says = f"max_steps={max_steps!r}", "whole number"
    refuses(bert, models.tokens(bert, 1, TOKENS), *says, max_steps=max_steps)


@pytest.mark.parametrize("name", ["L2", "", None, 2, ["l2"]])
def test_unknown_scalarization(bert: PreTrainedModel, name: Any) -> None:
    says = repr(name), "'l2'", "'projection'"
    refused(lambda: LayerFlowIG(bert, scalarization=name), *says)
    refused(lambda: SetToSetIG(torch.sin, scalarization=name), *says)


@pytest.mark.parametrize("boundaries", ["norm", ("attention", "norm"), ["norm"], (), "", 3, [None]])
def test_unknown_boundary(bert: PreTrainedModel, boundaries: Any) -> None:
    says = "boundaries", "'attention'", "'mlp'", "'layer'"
    refuses(bert, models.tokens(bert, 1, TOKENS), *says, boundaries=boundaries)


# ---- texts -----------------------------------------------------------------------------------


def test_no_tokens(any_model: PreTrainedModel) -> None:
    for empty in (torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 5, dtype=torch.long)):
        refuses(any_model, empty, str(tuple(empty.shape)), "empty")
        refuses(any_model, {"input_ids": empty}, str(tuple(empty.shape)), "empty")


def test_text_of_padding_only(any_model: PreTrainedModel) -> None:
    inputs = models.padded_batch(any_model, (TOKENS, 3, TOKENS))
    inputs["attention_mask"][1] = 0
    refuses(any_model, inputs, "text 1", "empty")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("extra", [(), ("attention_mask",), ("attention_mask", "token_type_ids")])
def test_text_longer_than_positions(family: str, extra: tuple[str, ...]) -> None:
    model = models.MODELS[family]()
    length = models.POSITIONS + 1
    inputs = {"input_ids": models.tokens(model, 1, length)}
    values = {"attention_mask": 1, "token_type_ids": 0}
    inputs |= {name: torch.full((1, length), values[name]) for name in extra}
    refuses(model, inputs, f"{length} tokens, and it has {models.POSITIONS} positions", "horten")
    fits = {name: value[:, : models.POSITIONS] for name, value in inputs.items()}
    LayerFlowIG(model, 0).attribute(fits, n_steps=2, output_indices=[-1], boundaries="attention")


@pytest.mark.parametrize("token", [models.VOCABULARY, 10**6, -1])
def test_token_ids_outside_the_vocabulary(any_model: PreTrainedModel, token: int) -> None:
    ids = models.tokens(any_model, 2, TOKENS)
    ids[1, 2] = token
    said = (f"token id {token} at position 2 of text 1", f"{models.VOCABULARY} words", "tokenizer")
    refuses(any_model, ids, *said)
    ids[0, 4] = token
    refuses(any_model, {"input_ids": ids}, "position 4 of text 0, the first of 2,", "tokenizer")


def test_token_ids_of_a_model_that_does_not_say_how_many_it_knows(bert: PreTrainedModel) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bert

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(ids)[0]  # type: ignore[no-any-return]

    refuses(Own().eval(), torch.tensor([[5, 60]]), "longer than its positions, or hold token ids")


@pytest.mark.parametrize(
    "inputs", [None, "a text", ["a", "text"], [[5, 6, 7]], 5, (torch.tensor([[5, 6]]), "text")]
)
def test_inputs_of_another_kind(bert: PreTrainedModel, inputs: Any) -> None:
    refuses(bert, inputs, type(inputs).__name__, "tensor", "tokenizer")


def test_texts_without_a_batch_dimension(any_model: PreTrainedModel) -> None:
    refuses(any_model, torch.tensor([5, 6, 7]), "(3,)")


def test_ids_where_vectors_are_expected(any_model: PreTrainedModel) -> None:
    ids = models.tokens(any_model, 1, TOKENS)
    refuses(any_model, {"inputs_embeds": ids}, "inputs_embeds")


def test_vectors_where_ids_are_expected(any_model: PreTrainedModel) -> None:
    refuses(any_model, torch.rand(1, TOKENS, WIDTH).double(), "float64")
    refuses(any_model, torch.tensor([[5.0, 6.0]]), "float32")


@pytest.mark.parametrize("inputs", [{}, {"input_idz": torch.tensor([[5, 6]])}, {"input_ids": None}])
def test_a_mapping_without_a_text(any_model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    refuses(any_model, inputs, type(any_model).__name__, "input_ids")


def test_mask_of_another_length(any_model: PreTrainedModel) -> None:
    inputs = models.padded_batch(any_model, (TOKENS,))
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    refuses(any_model, inputs, "attention_mask", "(1, 4)")


def test_additional_arguments_with_a_mapping(bert: PreTrainedModel) -> None:
    inputs = models.padded_batch(bert, (TOKENS,))
    mask = inputs["attention_mask"]
    refuses(bert, inputs, "additional_forward_args", "mapping", additional_forward_args=mask)
