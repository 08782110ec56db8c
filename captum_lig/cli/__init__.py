"""Command line: ``captum-lig``, one module a command. Heavy imports wait until there is work."""

from captum_lig.cli.commands import app, main
from captum_lig.cli.options import parse_baseline, parse_layers

__all__ = ["app", "main", "parse_baseline", "parse_layers"]
