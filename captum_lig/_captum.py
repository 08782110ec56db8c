"""Every private import from Captum, in one place, so that a change there is met here."""

from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _format_output as format_output
from captum._utils.common import _format_tensor_into_tuples as format_tensor_into_tuples
from captum._utils.common import _select_targets as select_targets
from captum._utils.typing import BaselineType, TargetType
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage

__all__ = [
    "BaselineType",
    "GradientAttribution",
    "TargetType",
    "format_additional_forward_args",
    "format_output",
    "format_tensor_into_tuples",
    "log_usage",
    "select_targets",
]
