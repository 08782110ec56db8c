"""Cutting a model's blocks open without touching its code. Knows models and no mathematics."""

from captum_lig.block.call import Attention, BlockCall, Spread
from captum_lig.block.core import MASKED
from captum_lig.block.cross import CrossCut, find_cross, without_cross
from captum_lig.block.cut import BlockCut
from captum_lig.block.discovery import elements, record_blocks
from captum_lig.block.interface import use_interface
from captum_lig.block.own import Block, record_own
from captum_lig.block.selftest import attach, compare_with_model

__all__ = [
    "MASKED",
    "Attention",
    "Block",
    "BlockCall",
    "BlockCut",
    "CrossCut",
    "Spread",
    "attach",
    "compare_with_model",
    "elements",
    "find_cross",
    "record_blocks",
    "record_own",
    "use_interface",
    "without_cross",
]
