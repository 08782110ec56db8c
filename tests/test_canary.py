"""Names without a promise that the package uses: one that is gone, or was changed, is named.

A release of Captum, transformers or torch may move any of these without a word.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import captum_lig

PACKAGE = Path(captum_lig.__file__).parent


@dataclass(frozen=True)
class Borrowed:
    """A name of another package, and what the library does with it."""

    module: str
    name: str
    use: str
    parameters: tuple[str, ...] = ()
    """That it is called with."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


COMMON = "captum._utils.common"
BORROWED = (
    Borrowed(
        COMMON,
        "_format_additional_forward_args",
        "SetToSetIG and what models are called with: additional_forward_args as Captum takes them",
        ("additional_forward_args",),
    ),
    Borrowed(
        COMMON,
        "_format_output",
        "SetToSetIG: a tensor for a tensor, a tuple for a tuple",
        ("is_inputs_tuple", "output"),
    ),
    Borrowed(
        COMMON,
        "_format_tensor_into_tuples",
        "SetToSetIG: inputs in the form of Captum",
        ("inputs",),
    ),
    Borrowed(
        COMMON,
        "_select_targets",
        "targets that are indices, in LayerFlowIG, SetToSetIG and prediction",
        ("output", "target"),
    ),
    Borrowed("captum._utils.typing", "BaselineType", "annotations of SetToSetIG"),
    Borrowed("captum._utils.typing", "TargetType", "annotations of targets"),
    Borrowed(
        "captum.attr._utils.attribution",
        "GradientAttribution",
        "the base class of LayerFlowIG and SetToSetIG",
        ("forward_func",),
    ),
    Borrowed("captum.log", "log_usage", "attribute() of both classes is logged as Captum's are"),
    Borrowed(
        "transformers.masking_utils",
        "AttentionMaskInterface",
        "masks of models that run with our attention function; without it causality would be lost",
    ),
    Borrowed(
        "transformers.masking_utils",
        "eager_mask",
        "the same: the mask as a tensor to add to the logits",
        ("batch_size", "kv_length"),
    ),
    Borrowed("transformers", "AttentionInterface", "every model that attends at the interface"),
    Borrowed("transformers.pytorch_utils", "Conv1D", "linear layers of GPT-2's family"),
    Borrowed("transformers.utils", "logging", "progress bars of loading are switched off"),
    Borrowed(
        "torch.overrides",
        "_get_current_function_mode_stack",
        "function modes are as they were after an interrupted call; attention that calls torch",
    ),
    Borrowed("torch.overrides", "_pop_mode", "function modes are put back after an interrupt"),
    Borrowed("torch.overrides", "_push_mode", "function modes are put back after an interrupt"),
    Borrowed(
        "torch.nn.modules",
        "module",
        "hooks on all modules, while a function given to SetToSetIG runs for the first time",
    ),
    Borrowed(
        "torch._functorch",
        "eager_transforms",
        "levels of forward mode are put back after an interrupt",
    ),
    Borrowed(
        "torch.utils.checkpoint",
        "checkpoint",
        "capped logits and sinks on long texts: weights of some rows at a time",
    ),
    Borrowed(
        "torch.utils._pytree",
        "tree_leaves",
        "the tensors among what a call of torch, or of a model, gets",
    ),
    Borrowed(
        "torch.utils._pytree",
        "tree_map",
        "a copy of a block's output, for the hooks on it",
    ),
    Borrowed(
        "torch._dynamo",
        "eval_frame",
        "compiled models run as they were written while they are attributed",
    ),
)
IMPORTED = {str(one): one for one in BORROWED}


@pytest.mark.parametrize("one", BORROWED, ids=str)
def test_it_is_there(one: Borrowed) -> None:
    try:
        found = getattr(import_module(one.module), one.name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{one} moved ({error}). It is used for: {one.use}.")
    if one.parameters:
        there = inspect.signature(found).parameters
        missing = [name for name in one.parameters if name not in there]
        assert not missing, f"{one} no longer takes {missing}. It is used for: {one.use}."


# ---- what is read off objects ----------------------------------------------------------------


MODULE_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def test_hooks_of_a_module() -> None:
    gone = [name for name in MODULE_HOOKS if not hasattr(nn.Linear(1, 1), name)]
    assert gone == [], "our hooks are taken off by what they are"


def test_what_a_call_of_a_module_goes_through() -> None:
    module = nn.Linear(1, 1)
    module.register_forward_hook(lambda *_: pytest.fail("the hook is inside of what is replaced"))
    use = "a block or an MLP is given another output, past the hooks on it"
    assert callable(module._call_impl), f"nn.Module has no _call_impl: {use}"
    module._compiled_call_impl = lambda x: x + 1
    assert module(1) == 2, f"calls do not go through _compiled_call_impl any more: {use}"


def test_the_stance_of_the_compiler() -> None:
    eval_frame = vars(import_module("torch._dynamo.eval_frame"))
    use = "compiled models run as they were written while they are attributed"
    assert "_stance" in eval_frame, f"torch._dynamo.eval_frame has no _stance: {use}"
    with torch.compiler.set_stance("force_eager"):
        assert eval_frame["_stance"].stance == "force_eager", use
    assert eval_frame["_stance"].stance == "default"


def test_the_model_inside_a_compiled_one() -> None:
    model = nn.Linear(1, 1)
    compiled = torch.compile(model, backend="eager")
    assert vars(compiled)["_modules"].get("_orig_mod") is model, "torch.compile hides it elsewhere"


def test_versions_of_tensors() -> None:
    x = torch.zeros(1)
    x.add_(1)
    assert getattr(x, "_version", None) == 1, "that weights were written to is not seen any more"


def test_what_torch_counts() -> None:
    """It is put back after an interrupt: no call may leave torch inside of something."""
    c, func = import_module("torch._C"), import_module("torch._functorch.eager_transforms")
    forward_ad = vars(import_module("torch.autograd.forward_ad"))
    inside: list[tuple[int, int, int]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        depth = c._functorch.get_dynamic_layer_stack_depth()
        inside.append((depth, func.JVP_NESTING, forward_ad["_current_level"]))
        if depth:
            assert c._functorch.peek_interpreter_stack().key().name == "Jvp"
        return x

    look(torch.ones(1))
    torch.func.jvp(look, (torch.ones(1),), (torch.ones(1),))
    assert inside == [(0, 0, -1), (1, 1, 0)], "torch.func.jvp counts its levels elsewhere"
    for name in ("Jvp", "Vmap", "Grad"):
        assert hasattr(c._functorch.TransformType, name)
        assert hasattr(c._functorch, f"_{name.lower()}_decrement_nesting")
    with pytest.raises(RuntimeError):  # there is none
        c._exit_dual_level(level=0)
    assert not c._dispatch_tls_is_dispatch_key_included("VmapMode")
    c._vmapmode_increment_nesting()
    assert c._dispatch_tls_is_dispatch_key_included("VmapMode")
    c._vmapmode_decrement_nesting()


def test_hooks_on_saved_tensors() -> None:
    """They are taken off after an interrupt, where torch says which ones are on."""
    autograd = import_module("torch._C")._autograd
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        assert torch.__version__.startswith(("2.6", "2.7")), (
            "checkpoints that are interrupted leave hooks on"
        )
        pytest.skip("this torch does not say it")
    with torch.autograd.graph.saved_tensors_hooks(abs, abs):
        assert top(False) == (abs, abs)
        autograd._pop_saved_tensors_default_hooks()
        assert top(False) is None
        autograd._push_saved_tensors_default_hooks(abs, abs)
    assert top(False) is None


def test_multi_head_attention_calls_what_is_exchanged() -> None:
    """``model/sdpa.py`` runs torch's code with two other names in it."""
    names = functional.multi_head_attention_forward.__code__.co_names
    for name in ("scaled_dot_product_attention", "has_torch_function"):
        assert name in names, f"multi_head_attention_forward does not call {name} any more."


def test_what_configs_say_of_attention() -> None:
    """``model/hf_attention.py`` answers in place of these properties."""
    from transformers import BertConfig

    found = {
        name: next((vars(c)[name] for c in BertConfig.__mro__ if name in vars(c)), None)
        for name in ("_attn_implementation", "_experts_implementation")
    }
    # Releases before experts could be chosen have no second one.
    assert isinstance(found["_attn_implementation"], property), "attention is not reached any more"
    assert found["_experts_implementation"] is None or isinstance(
        found["_experts_implementation"], property
    ), "experts run in fused kernels, which know no float64"


def test_families_name_their_eager_function() -> None:
    """``model/hf_attention.py`` takes it for what a family adds (sinks, soft caps)."""
    for family in ("bert", "gpt2", "llama"):
        module = import_module(f"transformers.models.{family}.modeling_{family}")
        parameters = inspect.signature(vars(module)["eager_attention_forward"]).parameters
        assert list(parameters)[:5] == ["module", "query", "key", "value", "attention_mask"], family


# ---- nothing is left out ---------------------------------------------------------------------

PUBLIC = {
    "captum": {"captum.attr"},
    "torch": {"torch", "torch.nn", "torch.autograd", "torch.nn.utils.rnn", "torch.overrides"},
    "transformers": {"transformers"},
}
"""Modules that are documented: their names without an underscore are promised."""


def borrowed_by(code: str) -> Iterator[str]:
    """Names that code imports from the three without a promise."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.level:
            continue
        public = PUBLIC.get(node.module.partition(".")[0])
        if public is None:
            continue
        for alias in node.names:
            if node.module not in public or alias.name.startswith("_"):
                yield f"{node.module}.{alias.name}"


def test_all_imports_are_listed() -> None:
    found = {name for path in PACKAGE.rglob("*.py") for name in borrowed_by(path.read_text())}
    assert found
    assert found - IMPORTED.keys() == set(), "list them above, with what they are used for"
    documented = {"transformers.AttentionInterface"}
    assert IMPORTED.keys() - found - documented == set(), "nobody imports them any more"


def test_an_import_that_is_not_listed_would_be_seen() -> None:
    code = (
        "from torch._C import x\nfrom torch import Tensor, _y\nfrom transformers import AutoModel"
    )
    assert list(borrowed_by(code)) == ["torch._C.x", "torch._y"]
