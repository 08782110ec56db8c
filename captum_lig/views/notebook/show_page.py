"""The page inside a notebook, as a widget."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from captum_lig._arguments import whole_number
from captum_lig.errors import LigError

__all__ = ["show_page"]

HEIGHT = 720
"""Pixels."""
STILL = "<p><em>The interactive page: it is shown here while the notebook runs.</em></p>"
"""In place of the page where no kernel runs, as on a web page."""


def show_page(document: str, height: int = HEIGHT) -> Any:
    """A page as a widget of a notebook.

    It has the traits ``height``, in pixels, and ``state``: the fragment of the page's address,
    which says what is chosen in it. Both can be set. ``selected`` is the name of what is selected
    in the page, or None.

    Args:
        document: the page, as :func:`captum_lig.views.page.page` gives it.
        height: of the widget.

    Raises:
        LigError: if anywidget is not installed.
    """
    whole_number("height", height, 1)
    return _widget()(document=document, height=height)


@cache
def _widget() -> Any:
    """The class of the widget: anywidget is not installed everywhere."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise LigError(
            "anywidget is not installed, which shows the page in a notebook: install it with pip "
            "install 'captum-lig[notebook]', or write the page to a file with to_html."
        ) from error

    class PageWidget(anywidget.AnyWidget):
        """See :func:`show_page`."""

        _esm = files("captum_lig.views.notebook").joinpath("assets", "widget.js").read_text("utf-8")
        document = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int().tag(sync=True)
        state = traitlets.Unicode().tag(sync=True)

        @property
        def selected(self) -> str | None:
            """What is selected in the page, as the page calls it."""
            found = re.search(r"(?:^|&)s=([^&]+)", self.state)
            return None if found is None else found[1]

        def _repr_mimebundle_(self, **asked: Any) -> Any:
            bundle = super()._repr_mimebundle_(**asked)
            data, *rest = bundle if isinstance(bundle, tuple) else (bundle,)
            data = {**(data or {}), "text/html": STILL, "text/plain": repr(self)}
            return (data, *rest) if rest else data

        def __repr__(self) -> str:
            return f"PageWidget(a page of {len(self.document):,} characters)"

    return PageWidget
