"""Writes docs/licences.md: what is installed with the package, and under which licence.

    python docs/licences.py

Read off the installed distributions, from what the package declares down to what they need.
"""

from __future__ import annotations

import configparser
import re
from collections import deque
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = ("corpus", "graph", "ray", "notebook")
HEAD = """# Licences of what is installed with it

captum_lig is under the BSD 3-Clause licence. What `pip install captum-lig` brings, and its extras,
by what the distributions say of themselves (`python docs/licences.py` writes this page again). On a
machine with a GPU torch brings NVIDIA's libraries, under licences of their own.

| distribution | licence | with |
| :-- | :-- | :-- |
"""
SHORT = re.compile(r"^[^\n]{1,60}$")


def licence(found: Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the field."""
    about = found.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    classified = [
        text.rpartition(" :: ")[2]
        for text in about.get_all("Classifier") or []
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    if classified:
        return ", ".join(classified)
    field = (about.get("License") or "").strip().split("\n")[0]
    return field if SHORT.match(field) else "see its files"


def name_of(text: str) -> str:
    """In the form that packages are compared in."""
    return re.sub(r"[-_.]+", "-", text).lower()


def needed() -> dict[str, tuple[str, str]]:
    """Name to licence, and to the extra or the distribution that brings it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    own = setup["options"]["install_requires"]
    waiting: deque[tuple[Requirement, str]] = deque()
    for extra in ("", *EXTRAS):
        of = setup["options.extras_require"][extra] if extra else own
        brought = f"`captum-lig[{extra}]`" if extra else "`captum-lig`"
        waiting.extend((Requirement(line), brought) for line in of.split("\n") if line.strip())
    found: dict[str, tuple[str, str]] = {}
    while waiting:
        asked, brought = waiting.popleft()
        name = name_of(asked.name)
        if name in found or name == "captum-lig":
            continue
        try:
            one = distribution(asked.name)
        except PackageNotFoundError:
            if brought.startswith("`"):
                raise SystemExit(f"{asked.name} is not installed: install {brought}.") from None
            continue
        found[name] = licence(one), brought
        for line in one.requires or []:
            inner = Requirement(line)
            sets = [{"extra": extra} for extra in asked.extras or {""}]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in sets):
                waiting.append((inner, name))
    return found


def main() -> None:
    """Write the page."""
    rows = [
        f"| {name} | {held} | {brought} |" for name, (held, brought) in sorted(needed().items())
    ]
    (ROOT / "docs" / "licences.md").write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
