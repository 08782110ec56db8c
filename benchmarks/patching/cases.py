"""What is asked: prompts of a decoder against counterfactuals, sentences against padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.texts import sentences

FEWEST, MOST = 8, 20
"""Tokens of a sentence, special ones included."""


@dataclass(frozen=True)
class Case:
    """An input, a baseline of the same length, and a number read from the model's output."""

    task: str
    text: str
    other: str
    inputs: dict[str, Tensor]
    baseline: dict[str, Tensor]
    read: Callable[[Any], Tensor]
    """Gives ``(B,)``."""
    words: tuple[int, ...] = ()
    """Of a decoder: the tokens whose logits at the last position are read."""


@dataclass(frozen=True)
class Prompt:
    """A text, its counterfactual, and the words that the model should say next to them."""

    text: str
    other: str
    word: str
    other_word: str


NOUNS = (
    "key book letter picture report teacher doctor friend dog car house window door student "
    "child boy girl player writer actor lawyer farmer guard machine tree road train ship table box "
    "ticket song film story paper lamp camera bird horse chair"
)
PLURALS = {"child": "children"}
PLACES = (
    "to the cabinet",
    "near the river",
    "from the city",
    "of the king",
    "behind the wall",
    "with the hat",
    "in the corner",
)


def agreement() -> Iterator[Prompt]:
    """The verb goes with the noun, whatever stands between: singular and plural in turns."""
    for shift in range(len(PLACES)):
        for number, noun in enumerate(NOUNS.split()):
            place = PLACES[(number + shift) % len(PLACES)]
            plural = PLURALS.get(noun, noun + "s")
            ends = (plural, " are"), (noun, " is")
            (first, word), (second, other) = ends if number % 2 == 0 else ends[::-1]
            yield Prompt(f"The {first} {place}", f"The {second} {place}", word, other)


NAMES = (
    "Mary John Tom James Sarah David Paul Anna Peter Emma Mark Lisa Jack Kate Michael Susan "
    "Robert Alice Daniel Laura"
)
SCENES = (
    "When {a} and {b} went to the store, {s} gave a drink to",
    "When {a} and {b} met at the park, {s} handed a ball to",
    "Then {a} and {b} had a long talk, and {s} gave a book to",
    "After {a} and {b} went to the school, {s} sent a letter to",
)


def objects() -> Iterator[Prompt]:
    """Who gives does not receive: the giver is the other one in the counterfactual."""
    names = NAMES.split()
    pairs = [(a, names[(i + step) % len(names)]) for step in (1, 7) for i, a in enumerate(names)]
    for step in range(len(SCENES)):
        for number, (a, b) in enumerate(pairs):
            scene = SCENES[(number + step) % len(SCENES)]
            yield Prompt(scene.format(a=a, b=b, s=b), scene.format(a=a, b=b, s=a), f" {a}", f" {b}")


CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "England": "London",
    "China": "Beijing",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Ireland": "Dublin",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Sweden": "Stockholm",
    "Turkey": "Ankara",
    "Canada": "Ottawa",
    "Portugal": "Lisbon",
    "Hungary": "Budapest",
    "India": "New",
    "Cuba": "Havana",
}
FRAMES = ("The capital of {} is", "The capital city of {} is called", "The government of {} is in")


def capitals() -> Iterator[Prompt]:
    """One country in the place of another."""
    pairs = list(permutations(CAPITALS.items(), 2))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    for number, at in enumerate(order):
        (country, city), (other, other_city) = pairs[at]
        frame = FRAMES[number % len(FRAMES)]
        yield Prompt(frame.format(country), frame.format(other), f" {city}", f" {other_city}")


TASKS = {"agreement": agreement, "objects": objects, "capitals": capitals}


@dataclass
class Dropped:
    """Prompts that were left out, by the reason."""

    length: int = 0
    """A word of several tokens, or a counterfactual of another length."""
    answer: int = 0
    """The model does not prefer the right word, or not in the counterfactual."""


def difference(word: int, other: int) -> Callable[[Any], Tensor]:
    """The logit of one token less that of another, at the last position."""
    return lambda output: output.logits[:, -1, word] - output.logits[:, -1, other]


def prompts(model: Any, tokenizer: Any, task: str, count: int, dropped: Dropped) -> Iterator[Case]:
    """The first `count` prompts of a task that can be used; what is passed over is counted."""
    found = 0
    for prompt in TASKS[task]():
        if found == count:
            return
        words = [tokenizer(word)["input_ids"] for word in (prompt.word, prompt.other_word)]
        inputs, baseline = (
            dict(tokenizer(text, return_tensors="pt")) for text in (prompt.text, prompt.other)
        )
        one_each = all(len(one) == 1 for one in words) and words[0] != words[1]
        if not one_each or inputs["input_ids"].shape != baseline["input_ids"].shape:
            dropped.length += 1
            continue
        ids = words[0][0], words[1][0]
        read = difference(*ids)
        with torch.no_grad():
            values = [float(read(model(**one))) for one in (inputs, baseline)]
        if not values[0] > 0 > values[1]:
            dropped.answer += 1
            continue
        found += 1
        yield Case(task, prompt.text, prompt.other, inputs, baseline, read, ids)


def similarity(other: Tensor) -> Callable[[Any], Tensor]:
    """The cosine of the mean of the tokens' vectors with a vector ``(1, D)``."""
    return lambda output: torch.cosine_similarity(output.last_hidden_state.mean(1), other)


def cosines(model: Any, tokenizer: Any, texts: Sequence[str], count: int) -> Iterator[Case]:
    """Sentences of 8 to 20 tokens: the cosine of each with the next, against
    padding, with the special tokens left where they are."""
    fitting: list[tuple[str, dict[str, Tensor]]] = []
    for text in texts:
        encoded = dict(tokenizer(text, return_tensors="pt"))
        if FEWEST <= encoded["input_ids"].shape[1] <= MOST:
            fitting.append((text, encoded))
        if len(fitting) > count:
            break
    for number, (text, inputs) in enumerate(fitting[:count]):
        following, encoded = fitting[(number + 1) % len(fitting)]
        with torch.no_grad():
            other = model(**encoded).last_hidden_state.mean(1)
        ids = inputs["input_ids"]
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        padding = torch.full_like(ids, tokenizer.pad_token_id)
        baseline = {**inputs, "input_ids": torch.where(special, ids, padding)}
        yield Case("sentences", text, following, inputs, baseline, similarity(other))


def treebank(corpus: Path | None) -> Sequence[str]:
    """Sentences of a CoNLL-U file, or none where there is no file."""
    return sentences(corpus) if corpus and corpus.exists() else []
