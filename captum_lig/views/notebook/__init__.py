"""What a notebook shows: results by themselves, and the page inside it."""

from captum_lig.views.notebook.pictures import flows_html, graph_html, rich_html
from captum_lig.views.notebook.show_page import show_page

__all__ = ["flows_html", "graph_html", "rich_html", "show_page"]
