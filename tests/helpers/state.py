"""All that a call could leave changed: a model, what transformers registered, and torch's state."""

from __future__ import annotations

import copy
import gc
import random
import signal
import warnings
from contextvars import copy_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from captum_lig.model.attention_call import AttentionCall

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

DEFAULTS = (None, False, frozenset(), AttentionCall.eager)
"""Of the variables of a context: as good as not set."""

SAYS_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
"""Whether torch says which hooks on saved tensors are on: 2.6 does not."""

OF_ALL_MODULES = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a caller could notice, by name."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for hooks in HOOKS:
            state[f"{name}: {hooks}"] = list(getattr(module, hooks, {}).items())
        state[f"{name}: training"] = module.training
        state[f"{name}: forward"] = vars(module).get("forward")  # replaced on the instance
        state[f"{name}: class"] = type(module), type(module).forward
        state[f"{name}: attributes"] = list(vars(module))
        for held in ("_parameters", "_buffers", "_modules"):
            state[f"{name}: {held}"] = [(k, id(v)) for k, v in vars(module)[held].items()]
        config = getattr(module, "config", None)
        if config is not None:
            state[f"{name}: config"] = id(config), _of_config(config)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[f"{name}: tensor"] = id(tensor), tensor.dtype, tensor.device, tensor.data_ptr()
        state[f"{name}: bits"] = tensor.detach().contiguous().numpy().tobytes()
        state[f"{name}: version"] = tensor._version
        state[f"{name}: requires_grad"] = tensor.requires_grad
        state[f"{name}: has a gradient"] = tensor.grad is not None
    return state


def _level_is_open() -> bool:
    """Whether torch's forward mode is in use, whatever Python has counted."""
    try:
        torch._C._enter_dual_level()
    except RuntimeError:  # levels are not nested
        return True
    torch._C._exit_dual_level(level=0)
    return False


def _hooks_on_saved_tensors() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False) if SAYS_HOOKS else None


def _batched_gradients() -> int:
    """How many calls of ``grad(..., is_grads_batched=True)`` torch takes this thread to be in."""
    inside: int = torch._C._vmapmode_increment_nesting()
    torch._C._vmapmode_decrement_nesting()
    return inside - 1


def _of_config(config: Any) -> dict[str, Any]:
    found = {k: copy.deepcopy(v) for k, v in vars(config).items() if not hasattr(v, "to_dict")}
    found["_attn_implementation"] = config._attn_implementation
    for name in getattr(config, "sub_configs", {}):
        found[name] = _of_config(getattr(config, name))
    return found


def global_state() -> dict[str, Any]:
    """What all models of the process, or of this thread, share."""
    backends = torch.backends.cuda
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ],
        "anomaly mode": torch.is_anomaly_enabled(),
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "levels of torch.func": torch._C._functorch.get_dynamic_layer_stack_depth(),
        "forward mode": (forward_ad._current_level, _level_is_open()),
        "torch.func.jvp in itself": eager_transforms.JVP_NESTING,
        "batched gradients": _batched_gradients(),
        "hooks on saved tensors": _hooks_on_saved_tensors(),
        "forward mode is on": torch._C._is_fwd_grad_enabled(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(np.random.get_state()),
        "python's random state": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "attention": functional.scaled_dot_product_attention,
        "what configs say": [
            vars(PreTrainedConfig)[name]
            for name in ("_attn_implementation", "_experts_implementation")
        ],
        "attention functions": dict(ALL_ATTENTION_FUNCTIONS),
        "mask functions": dict(ALL_MASK_ATTENTION_FUNCTIONS),
        "attention kernels": (
            backends.flash_sdp_enabled(),
            backends.mem_efficient_sdp_enabled(),
            backends.math_sdp_enabled(),
            backends.cudnn_sdp_enabled(),
            torch._C._get_sdp_priority_order(),
        ),
        "fused encoder layers": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.get_deterministic_debug_mode(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "the compiler's stance": eval_frame._stance,
        "hooks of all modules": [dict(getattr(modules, name)) for name in OF_ALL_MODULES],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "transformers' messages": (logging.get_verbosity(), logging.is_progress_bar_enabled()),
        "signals": signal.getsignal(signal.SIGINT),
        "of this context": {
            var.name: value
            for var, value in copy_context().items()
            if var.name.startswith("captum_lig") and value not in DEFAULTS
        },
    }


class Snapshot:
    """A model and all global state at one moment.

    Tensors are kept by what identifies them and by their bits, functions and hooks themselves.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._state = state_of(model), global_state()

    def changes(self) -> list[str]:
        """Names of what is no longer as it was."""
        return self._changes() and (gc.collect(), self._changes())[1]

    def _changes(self) -> list[str]:
        now = state_of(self._model), global_state()
        return [
            name
            for before, after in zip(self._state, now, strict=True)
            for name in before | after
            if name not in before or name not in after or before[name] != after[name]
        ]


def snapshot(model: nn.Module) -> Snapshot:
    """All that a call of the library could leave changed, as it is now."""
    return Snapshot(model)


def outputs_of(model: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    with torch.no_grad():
        found = model(**inputs)
    tensors = [value for value in found.values() if isinstance(value, Tensor)]
    return b"".join(value.contiguous().numpy().tobytes() for value in tensors)


class Unchanged:
    """A context at whose end, whatever happened inside, all is as it was."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        self._model, self._inputs = model, inputs

    def __enter__(self) -> None:
        self._outputs = outputs_of(self._model, self._inputs)
        self._before = snapshot(self._model)

    def __exit__(self, *_: object) -> None:
        changes = self._before.changes()
        assert changes == [], changes
        assert outputs_of(self._model, self._inputs) == self._outputs
