"""The interactive page: one flow graph in one HTML file that needs nothing else."""

from captum_lig.views.page.write import page, write_page

__all__ = ["page", "write_page"]
