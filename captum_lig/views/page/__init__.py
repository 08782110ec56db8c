"""The interactive pages: one graph in one HTML file that needs nothing else."""

from captum_lig.views.page.question import Known, Promoted
from captum_lig.views.page.write import page, write_page

__all__ = ["Known", "Promoted", "page", "write_page"]
