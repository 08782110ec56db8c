"""Plots, the page, notebooks and terminal tables. Knows flow, graph, io and inspection."""
