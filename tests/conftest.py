"""Settings of the whole suite, and what several rooms' tests are given."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tests.helpers.saved import save_tiny_bert

# The models of the tests are so small that a second thread only slows them down.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of three layers for at most 16 tokens, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_bert(folder)
    return folder


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights can be loaded."""

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the weights were loaded before everything was looked at")

    monkeypatch.setattr(AutoModel, "from_pretrained", never)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, object, object]:
    """Say at the end, in one line, how to get what tests were skipped for want of."""
    done = yield
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    without = sum("Chromium" in reason for reason in skipped)
    if without:
        terminalreporter.write_line(
            f"{without} tests of the page in a browser were skipped: install Chromium "
            "(apt-get install chromium) and run them again.",
            red=True,
            bold=True,
        )
    return done
