"""Flows and graphs as files, tables and networkx graphs. Knows flow and graph."""
