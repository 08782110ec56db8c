"""All that an attribution could leave changed: a model, its config, and torch's global state."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a caller could notice, by name."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for hooks in HOOKS:
            state[f"{name}: {hooks}"] = list(getattr(module, hooks, ()))
        state[f"{name}: training"] = module.training
        state[f"{name}: forward"] = "forward" in vars(module)  # replaced on the instance
        state[f"{name}: class"] = type(module)
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


def _of_config(config: Any) -> dict[str, Any]:
    found = {k: copy.deepcopy(v) for k, v in vars(config).items() if not hasattr(v, "to_dict")}
    found["_attn_implementation"] = config._attn_implementation
    for name in getattr(config, "sub_configs", {}):
        found[name] = _of_config(getattr(config, name))
    return found


def global_state() -> dict[str, Any]:
    backends = torch.backends.cuda
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(np.random.get_state()),
        "python's random state": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "attention": functional.scaled_dot_product_attention,
        "what configs say": [
            vars(PreTrainedConfig)[name]
            for name in ("_attn_implementation", "_experts_implementation")
        ],
        "attention kernels": (
            backends.flash_sdp_enabled(),
            backends.mem_efficient_sdp_enabled(),
            backends.math_sdp_enabled(),
            backends.cudnn_sdp_enabled(),
        ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


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
        self._state, self._globals = state_of(self._model), global_state()

    def __exit__(self, *_: object) -> None:
        for before, after in (
            (self._state, state_of(self._model)),
            (self._globals, global_state()),
        ):
            changed = [name for name in before | after if before.get(name) != after.get(name)]
            assert not changed
        assert outputs_of(self._model, self._inputs) == self._outputs
