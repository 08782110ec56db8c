"""Batches: every text once, little padding, the same ones whatever is done with them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from captum_lig.corpus.batches import batches_of
from captum_lig.corpus.texts import Text

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


def texts_of(lengths: list[int]) -> list[Text]:
    """Texts of so many letters; those of none have a problem."""
    return [
        Text(n, str(n), "x" * size, problem=None if size else "the line is empty")
        for n, size in enumerate(lengths)
    ]


@given(LENGTHS, st.integers(1, 20), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_every_text_is_in_one_batch(lengths: list[int], window: int, most: int) -> None:
    texts = texts_of(lengths)
    batches = list(batches_of(texts, len, window, most))
    assert [one.number for one in batches] == list(range(len(batches)))
    assert sorted(text.number for one in batches for text in one.texts) == list(range(len(texts)))
    for one in batches:
        assert {text.number // window for text in one.texts} == {one.window}
        good = [len(text.text) for text in one.texts if text.problem is None]
        assert len(good) <= most
        assert max(good, default=0) <= 1.25 * min(good, default=0)


@given(LENGTHS, st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_a_window_s_batches_do_not_depend_on_what_follows(lengths: list[int], window: int) -> None:
    texts = texts_of(lengths)
    whole = list(batches_of(texts, len, window, 4))
    cut = len(texts) // window // 2 * window
    first = list(batches_of(texts[:cut], len, window, 4))
    assert whole[: len(first)] == first


def test_it_reads_no_further_than_it_is_asked() -> None:
    read: list[int] = []

    def source() -> object:
        for text in texts_of([3] * 100):
            read.append(text.number)
            yield text

    batches = batches_of(source(), len, window=10, batch_size=5)  # type: ignore[arg-type]
    next(batches)
    assert len(read) == 10


def test_a_digest_is_of_everything_that_a_text_holds() -> None:
    (one,) = batches_of(texts_of([3]), len, 1, 1)
    changes: list[dict[str, str]] = [{"text": "yyy"}, {"target": "a"}, {"id": "x"}]
    changed = [replace(one, texts=(replace(one.texts[0], **change),)) for change in changes]
    assert len({one.digest, *(other.digest for other in changed)}) == 4
    assert replace(one, number=7).digest == one.digest
