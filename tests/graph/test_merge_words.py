"""Words in place of word pieces: which pieces make a word, and sums that are kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import FlowGraph, LigError
from captum_lig.flow.words import merge_map, word_groups, word_labels
from tests.helpers.embedded import minilm_folder
from tests.helpers.synthetic import flows, layer_flow, signed_flows, with_influence

SENTENCE = "Untokenizable naïveté, didn't I say? 1,024 e\u0301tudes: x_1 = ok."


# --- which pieces make a word ---------------------------------------------------------------------


def test_word_numbers() -> None:
    # [CLS] un ##token ##ize [SEP] another [SEP]: numbers start again in the second text
    assert word_groups([None, 0, 0, 0, None, 0, None]) == [0, 1, 1, 1, 2, 3, 4]
    assert word_groups([None, None, 3, 3, 4]) == [0, 1, 2, 2, 3]


def test_offsets() -> None:
    text = "unbelievable, 3rd x_y 中国"
    pieces = [
        (0, 0),  # [CLS]
        *((0, 2), (2, 9), (9, 12)),  # unbelievable
        (12, 13),  # ,
        *((13, 15), (15, 17)),  # " 3rd": a byte-level piece has the space in it
        *((18, 19), (19, 20), (20, 21)),  # x _ y
        *((22, 23), (23, 24)),  # a run of letters
        (0, 0),  # [SEP]
    ]
    assert word_groups(offsets=pieces, text=text) == [0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8]


def test_pieces_of_one_character_belong_together() -> None:
    # A byte-level tokenizer cuts characters, and gives each part the offset of the whole.
    pieces = [(0, 1), (1, 2), (1, 2), (2, 3), (4, 5), (4, 5), (4, 5)]
    assert word_groups(offsets=pieces, text="cés 😀") == [0, 0, 0, 0, 1, 1, 1]


def test_a_mark_belongs_to_its_letter() -> None:
    assert word_groups(offsets=[(0, 1), (1, 2), (2, 3)], text="e\u0301t") == [0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aé1 ,_\u0301中", min_size=1), st.data())
def test_words_of_offsets_are_the_runs_of_the_text(text: str, data: st.DataObject) -> None:
    """However a text is cut, its words are the runs of letters, digits and marks."""
    cuts = data.draw(st.sets(st.integers(1, len(text) - 1)) if len(text) > 1 else st.just(set()))
    for place in range(1, len(text)):
        letters = all(character not in " ,_" for character in text[place - 1 : place + 1])
        if not letters:
            cuts = cuts | {place}  # no piece holds more than one word
    ends = [0, *sorted(cuts), len(text)]
    pieces = list(itertools.pairwise(ends))
    groups = word_groups(offsets=pieces, text=text)
    labels = word_labels([text[a:b] for a, b in pieces], groups, offsets=pieces, text=text)
    found = [label for label in labels if label.strip(" ,_")]
    assert found == text.replace(",", " ").replace("_", " ").split()


def test_what_words_are_called() -> None:
    def joined(*pieces: str) -> str:
        (label,) = word_labels(pieces, [0] * len(pieces))
        return label

    assert joined("play", "##ing") == "playing"
    assert joined("▁play", "ing") == "playing"
    assert joined("Ġplay", "ing") == "playing"
    assert joined("Ġna", "Ã¯", "ve") == "naïve"
    assert joined("na", "Ã") == "naÃ"  # half of a character
    assert joined("play@@", "ing") == "playing"
    assert joined("play", "ing</w>") == "playing"
    assert joined("▁New", "▁York") == "New York"
    assert joined("[CLS]") == "[CLS]"
    assert joined("##ing") == "##ing"  # its beginning is not there
    assert [joined(piece) for piece in ("▁", "Ġ", "", "##")] == ["▁", "Ġ", "", "##"]


def test_offsets_of_the_embedded_model_find_its_words() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(minilm_folder()))
    text = "Untokenizable embeddings mattered; 1024 counterintuitive naïvetés."
    encoding = tokenizer(text, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    groups = word_groups(encoding.word_ids())
    assert max(groups) + 1 < len(groups) - 5  # there is something to merge
    assert word_groups(offsets=offsets, text=text) == groups
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    words = ["[CLS]", "Untokenizable", "embeddings", "mattered", ";", "1024", "counterintuitive"]
    words += ["naïvetés", ".", "[SEP]"]
    assert word_labels(tokens, groups, offsets=offsets, text=text) == words
    assert word_labels(tokens, groups)[1:3] == ["untokenizable", "embeddings"]


def test_words_are_called_what_the_text_has() -> None:
    """With the marks that a tokenizer takes off, and without a piece that is not there."""
    text = "e\u0301te\u0301 la"
    assert word_labels(["ete", "la"], [0, 1], offsets=[(0, 4), (6, 8)], text=text) == [
        "e\u0301te\u0301",
        "la",
    ]
    pieces = [(0, 2), (6, 8), (9, 12)]
    labels = word_labels(["un", "ly", "dog"], [0, 0, 1], offsets=pieces, text="unlikely dog")
    assert labels == ["un…ly", "dog"]


@pytest.mark.parametrize("trim", [False, True])
def test_offsets_of_a_byte_level_tokenizer(trim: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["untold tokens say"], trainers.BpeTrainer(vocab_size=265, initial_alphabet=alphabet)
    )
    text = "untold naïve 😀 tokens"
    encoding = tokenizer.encode(text)
    assert len(encoding.tokens) > 10
    groups = word_groups(offsets=encoding.offsets, text=text)
    labels = word_labels(encoding.tokens, groups, offsets=encoding.offsets, text=text)
    # A space alone is a token of its own where the tokenizer does not join it to the word.
    for found in (labels, word_labels(encoding.tokens, groups)):
        assert [label for label in found if label.strip(" Ġ")] == text.split()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: word_groups(), "give either word numbers or offsets"),
        (lambda: word_groups([0], offsets=[(0, 1)], text="a"), "not both"),
        (lambda: word_groups(offsets=[(0, 1)]), "offsets and text belong together"),
        (lambda: word_groups([0], text="a"), "offsets and text belong together"),
        (lambda: word_groups([]), "no tokens"),
        (lambda: word_groups([0, True]), "token 1 has the word number True"),
        (lambda: word_groups([0.5]), "token 0 has the word number 0.5"),  # type: ignore[list-item]
        (lambda: word_groups(offsets=[(0, 9)], text="abc"), r"\(0, 9\) is none of .* 3 char"),
        (lambda: word_groups(offsets=[(2, 1)], text="abc"), r"\(2, 1\) is none of"),
        (lambda: word_groups(offsets=[3], text="abc"), "offset 3: give pairs"),  # type: ignore[list-item]
        (
            lambda: word_groups(offsets=[(0, 2), (0, 0), (0, 1)], text="abc"),
            r"offset \(0, 1\) comes after \(0, 2\): give the offsets of one text",
        ),
        (lambda: merge_map(torch.ones(3, 2), [0, 1]), r"shape \(3, 2\) .* 2 targets and 2 sources"),
        (lambda: merge_map(torch.ones(2), [0, 1]), r"shape \(2,\)"),
        (
            lambda: merge_map(torch.ones(1, 3), [0, 1, 1], torch.tensor([2])),
            r"tokens \[1, 2\] make a word, and not all of them were targets",
        ),
    ],
)
def test_what_makes_no_words_says_so(make: Callable[[], object], message: str) -> None:
    with pytest.raises(LigError, match=message):
        make()


# --- maps -----------------------------------------------------------------------------------------

GROUPS = st.lists(st.integers(0, 1), min_size=1, max_size=7).map(
    lambda steps: [sum(steps[1 : place + 1]) for place in range(len(steps))]
)
"""0, then at each token the same word or the next."""


def twin_merge(matrix: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    merged = torch.zeros(*matrix.shape[:-2], max(rows) + 1, max(columns) + 1, dtype=torch.float64)
    for j, row in enumerate(rows):
        for i, column in enumerate(columns):
            merged[..., row, column] += matrix[..., j, i]
    return merged


@settings(max_examples=50, deadline=None)
@given(GROUPS, st.integers(0, 100))
def test_maps_are_added_up_by_word(groups: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(2, 3, len(groups), len(groups), generator=random, dtype=torch.float64)
    merged = merge_map(matrix, groups)
    torch.testing.assert_close(merged, twin_merge(matrix, groups, groups))
    torch.testing.assert_close(merged.sum((-2, -1)), matrix.sum((-2, -1)))
    assert merge_map(matrix.float(), groups).dtype == torch.float32


def test_maps_of_some_targets() -> None:
    matrix = torch.randn(3, 5, dtype=torch.float64)
    merged = merge_map(matrix, [0, 1, 1, 2, 3], torch.tensor([4, 2, 1]))
    torch.testing.assert_close(merged, twin_merge(matrix, [0, 1, 1], [0, 1, 1, 2, 3]))


# --- the graph ------------------------------------------------------------------------------------


def signed(tokens: int = 6, layers: int = 3, seed: int = 0) -> FlowGraph:
    return FlowGraph(signed_flows(layers, tokens, 2, seed=seed))


@settings(max_examples=30, deadline=None)
@given(GROUPS, st.integers(0, 100))
def test_edges_and_sums_of_pieces_add_up(groups: list[int], seed: int) -> None:
    graph = signed(max(len(groups), 2), seed=seed)
    groups = groups if len(groups) > 1 else [0, 0]
    merged = graph.merge_tokens(groups)
    single = [0] * len(groups)
    for layer, small in zip(graph.layers, merged.layers, strict=True):
        assert layer.chain is not None
        assert small.chain is not None
        attention = twin_merge(layer.attention, groups, groups)
        chain = twin_merge(layer.chain, groups, groups)
        mlp = twin_merge(layer.mlp, groups, [0, 1])
        residual = twin_merge(layer.residual[:, None], groups, [0])[:, 0]
        torch.testing.assert_close(small.attention, attention)
        torch.testing.assert_close(small.chain, chain)
        torch.testing.assert_close(small.mlp, mlp)
        torch.testing.assert_close(small.residual, residual)
        torch.testing.assert_close(
            small.attention_sum, twin_merge(layer.attention_sum, [0, 1], groups)
        )
        torch.testing.assert_close(small.mlp_sum, twin_merge(layer.mlp_sum[None], [0], groups)[0])
        # Of a whole graph the sizes are those of the merged edges, where opposite signs cancel.
        torch.testing.assert_close(small.attention_size, attention.abs().sum(-1))
        torch.testing.assert_close(small.mlp_size, mlp.abs().sum(-1) + residual.abs())
        torch.testing.assert_close(small.chain_size, chain.abs().sum((0, 2)) + residual.abs())
    total = sum(float(layer.residual.sum()) for layer in graph.layers)
    whole = graph.merge_tokens(single)
    assert sum(float(layer.residual.sum()) for layer in whole.layers) == pytest.approx(total)


@pytest.mark.parametrize("rule", ["conserve", "chain"])
@pytest.mark.parametrize("absolute", [False, True])
def test_relevance_of_words_is_conserved(rule: str, absolute: bool) -> None:
    merged = signed().merge_tokens([0, 0, 1, 2, 2, 2])
    sums = merged.rollout(rule=rule, absolute=absolute).sum(-1)
    torch.testing.assert_close(sums, torch.ones(3, dtype=torch.float64))
    assert merged.relevance(1, rule=rule).lost.abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:a prediction's relevance")
def test_one_layer_of_words_is_the_layer_of_pieces() -> None:
    """A word's relevance, shared out over its pieces by their totals, arrives the same."""
    graph, groups = signed(layers=1), [0, 0, 1, 2, 2, 2]
    by_word = graph.merge_tokens(groups).relevance(2, rule="chain").tokens[0]
    totals = graph.layers[0].mlp_sum[3:]
    by_piece = graph.relevance([3, 4, 5], start=totals / totals.sum(), rule="chain").tokens[0]
    torch.testing.assert_close(by_word, twin_merge(by_piece[None], [0], groups)[0])


def test_lengths_of_pieces_are_not_those_of_words() -> None:
    flow = with_influence(layer_flow(0, 4, baseline="zero"))
    given = FlowGraph([flow], list("abcd"))
    assert given.layers[0].influence is not None
    (layer,) = given.merge_tokens([0, 0, 1, 2]).layers
    assert (layer.influence, layer.influence_sum) == (None, None)


def test_of_a_pruned_graph_the_missing_edges_are_counted() -> None:
    groups = [0, 0, 1, 2, 2, 2]
    graph = signed()
    pruned = graph.prune(top_k=4)
    merged, whole = pruned.merge_tokens(groups), graph.merge_tokens(groups)
    for layer, small, full in zip(pruned.layers, merged.layers, whole.layers, strict=True):
        torch.testing.assert_close(small.mlp_sum, full.mlp_sum)
        torch.testing.assert_close(small.attention_sum, full.attention_sum)
        assert small.attention_size.ge(small.attention.abs().sum(-1)).all()
        pieces = twin_merge(layer.attention_size, [0, 1], groups)
        assert small.attention_size.le(pieces * (1 + 1e-12)).all()
        assert small.attention_size.ge(full.attention_size * (1 - 1e-12)).all()
    lost = merged.relevance(0).lost
    assert lost.abs().max() > 0.01


def test_words_of_one_token_change_nothing() -> None:
    graph = signed()
    merged = graph.merge_tokens([None] * 6)
    assert merged.tokens == graph.tokens
    for layer, same in zip(graph.layers, merged.layers, strict=True):
        for name, tensor in layer.tensors().items():
            torch.testing.assert_close(getattr(same, name), tensor, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.rollout(), graph.rollout())


def test_names_and_positions() -> None:
    valid = [False, True, True, True, True, False]
    tokens = ["[PAD]", "[CLS]", "play", "##ing", "[SEP]", "[PAD]"]
    graph = FlowGraph(flows(2, 6, valid=valid), tokens)
    wanted = (["[CLS]", "playing", "[SEP]"], [1, 2, 4])
    offsets = [(0, 0), (0, 0), (0, 4), (4, 7), (0, 0), (0, 0)]
    for merged in (
        graph.merge_tokens([None, 0, 0, None]),  # one a token of the graph
        graph.merge_tokens([None, None, 0, 0, None, None]),  # or of the text with its padding
        graph.merge_tokens(offsets=offsets[1:-1], text="playing"),
        graph.merge_tokens(offsets=offsets, text="playing"),
    ):
        assert (merged.tokens, merged.positions.tolist()) == wanted
        again = merged.merge_tokens([None, None, 0, 0, None, None])
        assert (again.tokens, again.positions.tolist()) == wanted
    assert graph.merge_tokens(offsets=offsets, text="Playing").tokens[1] == "Playing"


def test_words_of_a_part_of_the_text() -> None:
    part = signed().subgraph([5, 1, 0, 4])
    merged = part.merge_tokens([0, 0, 1, 1, 2, 2])  # of the whole text
    assert merged.positions.tolist() == [5, 1]
    attention = part.layers[0].attention
    torch.testing.assert_close(
        merged.layers[0].attention, twin_merge(attention, [0, 1, 1, 0], [0, 1, 1, 0])
    )


def test_completeness_errors_are_the_largest_of_the_pieces() -> None:
    made = [replace(flow, tolerance=1e-3) for flow in flows(1, 4, error=1e-4)]
    graph = FlowGraph(made)
    (layer,) = graph.layers
    (merged,) = graph.merge_tokens([0, 1, 1, 1]).layers
    assert merged.errors.keys() == layer.errors.keys() == {"attention", "mlp", "layer", "chain"}
    before, after = layer.errors["mlp"], merged.errors["mlp"]
    assert after.tolist() == [before[0], before[1:].max()]
    before, after = layer.errors["attention"], merged.errors["attention"]
    assert after[1].tolist() == [before[1, 0], before[1, 1:].max()]
    assert layer.direct is not None
    assert merged.direct is not None
    torch.testing.assert_close(
        merged.direct.double(), twin_merge(layer.direct.double(), [0, 1, 1, 1], [0, 1, 1, 1])
    )
    assert merged.tolerance == 1e-3


def test_a_word_that_partly_stays() -> None:
    flow = signed_flows(1, 4, 2)[0]
    assert flow.mlp is not None
    assert flow.residual is not None
    assert flow.layer_total is not None
    for place in (1, 3):
        for part in (flow.mlp, flow.residual, flow.mlp_total):
            part[:, place] = 0.0
    graph = FlowGraph(replace(flow, chain=None))
    assert graph.layers[0].stays.tolist() == [False, True, False, True]
    (merged,) = graph.merge_tokens([0, 0, 1, 2]).layers
    assert merged.stays.tolist() == [False, False, True]


def test_a_word_that_is_a_target_in_part_says_so() -> None:
    made = [flows(1, 4)[0], replace(flows(1, 4, targets=[3])[0], index=1)]
    graph = FlowGraph(made)
    with pytest.raises(LigError, match=r"tokens \[2, 3\] make a word, and not all of them were"):
        graph.merge_tokens([0, 1, 2, 2])
    merged = graph.merge_tokens([0, 1, 1, None])
    assert merged.layers[-1].known.tolist() == [False, False, True]


def test_too_few_entries_say_so() -> None:
    with pytest.raises(LigError, match=r"3 word numbers were given for a graph of 6 tokens"):
        signed().merge_tokens([0, 1, 2])
    with pytest.raises(LigError, match=r"1 offsets were given for a graph of 6 tokens"):
        signed().merge_tokens(offsets=[(0, 1)], text="a")
