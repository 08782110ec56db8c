"""Cutting a model's blocks open without touching its code. Knows models and no mathematics."""

from captum_lig.block.cut import QKV, BlockCall, BlockCut
from captum_lig.block.discovery import block_candidates, record_blocks
from captum_lig.block.interface import use_interface

__all__ = ["QKV", "BlockCall", "BlockCut", "block_candidates", "record_blocks", "use_interface"]
