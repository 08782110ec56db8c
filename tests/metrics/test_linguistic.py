"""Maps beside trees: words from CoNLL-U, strongest links in loops over words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from captum_lig import LigError
from captum_lig.metrics import (
    AttachmentOverTexts,
    Tree,
    attachment,
    cue_found,
    read_trees,
    strongest,
    word_map,
)

CONLLU = """\
# sent_id = first
# text = The keys don't open it.
1\tThe\tthe\tDET\t_\t_\t2\tdet\t_\t_
2\tkeys\tkey\tNOUN\t_\t_\t5\tnsubj\t_\t_
3-4\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
3\tdo\tdo\tAUX\t_\t_\t5\taux\t_\t_
4\tn't\tnot\tPART\t_\t_\t5\tadvmod\t_\t_
5\topen\topen\tVERB\t_\t_\t0\troot\t_\t_
5.1\tsaid\tsay\tVERB\t_\t_\t_\t_\t_\t_
6\tit\tit\tPRON\t_\t_\t5\tobj\t_\tSpaceAfter=No
7\t.\t.\tPUNCT\t_\t_\t5\tpunct\t_\t_

# sent_id = second
# text = Je vais au bois
1\tJe\tje\tPRON\t_\t_\t2\tnsubj:pass\t_\t_
2\tvais\taller\tVERB\t_\t_\t0\troot\t_\t_
3-4\tau\t_\t_\t_\t_\t_\t_\t_\t_
3\tà\tà\tADP\t_\t_\t5\tcase\t_\t_
4\tle\tle\tDET\t_\t_\t5\tdet\t_\t_
5\tbois\tbois\tNOUN\t_\t_\t2\tobl\t_\t_

"""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Tree]:
    path = tmp_path_factory.mktemp("trees") / "some.conllu"
    path.write_text(CONLLU, encoding="utf-8")
    return list(read_trees(path))


def test_words_of_a_treebank(trees: list[Tree]) -> None:
    first, second = trees
    assert first.name == "first"
    assert [first.text[a:b] for a, b in first.spans] == list(first.forms)
    assert first.forms == ("The", "keys", "do", "n't", "open", "it", ".")
    assert first.heads == (1, 4, 4, 4, -1, 4, 4)
    assert first.subjects == ((4, 1),)
    assert [second.text[a:b] for a, b in second.spans] == ["Je", "vais", "au", "au", "bois"]
    assert second.subjects == ((1, 0),)


def test_a_text_that_is_not_there_is_that_of_the_words(trees: list[Tree], tmp_path: Path) -> None:
    path = tmp_path / "bank.conllu"
    path.write_text(CONLLU.replace("# text = Je vais au bois\n", ""), encoding="utf-8")
    assert list(read_trees(path)) == trees


def test_what_is_no_treebank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.conllu"
    path.write_text("# text = a\n1\ta\n\n", encoding="utf-8")
    with pytest.raises(LigError, match="is no CoNLL-U"):
        list(read_trees(path))
    path.write_text(CONLLU.replace("text = Je", "text = Tu"), encoding="utf-8")
    with pytest.raises(LigError, match="'Je' does not stand"):
        list(read_trees(path))


def test_a_map_between_words(trees: list[Tree]) -> None:
    # [CLS] The key ##s don ' t open it . [SEP]
    offsets = [
        (0, 0), (0, 3), (4, 7), (7, 8), (9, 12), (12, 13), (13, 14), (15, 19), (20, 22), (22, 23),
        (0, 0),
    ]  # fmt: skip
    words = [[1], [2, 3], [4], [5, 6], [7], [8], [9]]
    assert trees[0].words_of_tokens(offsets) == [None, 0, 1, 1, 2, 3, 3, 4, 5, 6, None]
    matrix = torch.randn(2, 11, 11, generator=torch.Generator().manual_seed(0))
    found = word_map(matrix, trees[0], offsets)
    assert found.shape == (2, 7, 7)
    for layer in range(2):
        for j, targets in enumerate(words):
            for i, sources in enumerate(words):
                right = sum(float(matrix[layer, t, s]) for t in targets for s in sources)
                assert float(found[layer, j, i]) == pytest.approx(right, abs=1e-6)
    with pytest.raises(LigError, match="word 6"):
        word_map(matrix[:, :9, :9], trees[0], offsets[:9])


def test_words_that_share_a_token_are_joined(trees: list[Tree]) -> None:
    """ "à" and "le" stand on the same letters: the token goes to the first of them."""
    offsets = [(0, 2), (3, 7), (8, 10), (11, 15)]
    with pytest.raises(LigError, match="word 3, 'le': join"):
        word_map(torch.zeros(4, 4), trees[1], offsets)
    found = trees[1].joined(offsets)
    assert found.forms == ("Je", "vais", "au", "bois")
    assert found.heads == (1, -1, 3, 1)
    assert found.relations == ("nsubj:pass", "root", "case", "obl")
    matrix = torch.randn(4, 4)
    assert torch.equal(word_map(matrix, found, offsets), matrix)
    # The root and its object in one token, and what depends on either.
    offsets = [(0, 3), (4, 8), (9, 14), (15, 22), (22, 23)]
    found = trees[0].joined(offsets)
    assert found.forms == ("The", "keys", "don't", "open it", ".")
    assert found.heads == (1, 3, 3, -1, 3)
    assert found.subjects == ((3, 1),)
    every = [(a, b) for a, b in trees[0].spans]
    assert trees[0].joined(every) == trees[0]
    with pytest.raises(LigError, match="no token stands for word 2"):
        trees[1].joined(offsets[:2])


def expected(matrix: Tensor, heads: list[int]) -> dict[str, float]:
    """Of one map."""
    count = len(heads)
    link = [
        max((i for i in range(count) if i != j), key=lambda i, j=j: float(matrix[j, i]))  # type: ignore[misc]
        for j in range(count)
    ]
    words = [w for w in range(count) if heads[w] >= 0]
    down = [link[w] == heads[w] for w in words]
    up = [link[heads[w]] == w for w in words]
    either = [d or u for d, u in zip(down, up, strict=True)]
    return {
        "directed": sum(down) / len(words),
        "reversed": sum(up) / len(words),
        "undirected": sum(either) / len(words),
    }


@pytest.mark.parametrize("absolute", [False, True])
def test_links_beside_a_loop(trees: list[Tree], absolute: bool) -> None:
    heads = list(trees[0].heads)
    matrix = torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    kept = matrix.clone()
    found = attachment(matrix, heads, absolute)
    assert torch.equal(matrix, kept)
    assert found.words == 6
    assert found.next_or_last == pytest.approx(max(1 / 6, 2 / 6))
    used = matrix.abs() if absolute else matrix
    for layer in range(5):
        for head in range(3):
            for name, value in expected(used[layer, head], heads).items():
                assert float(getattr(found, name)[layer, head]) == pytest.approx(value)
    assert 0 < float(found.directed.mean()) < 1


def test_a_map_of_the_tree_itself_finds_every_head(trees: list[Tree]) -> None:
    heads = trees[0].heads
    matrix = torch.eye(7)
    for word, head in enumerate(heads):
        if head >= 0:
            matrix[word, head] = 0.5
    matrix[4, 1] = 0.5
    found = attachment(matrix, heads)
    assert float(found.directed) == 1
    assert float(found.undirected) == 1
    assert float(found.reversed) == pytest.approx(1 / 6)
    assert float(cue_found(matrix, trees[0].subjects)) == 1
    over = AttachmentOverTexts()
    over.update(matrix, trees[0])
    over.update(-matrix, trees[0])
    assert over.compute()["directed"].mean == pytest.approx(0.5)
    assert over.compute()["subject"].mean == pytest.approx(0.5)
    several = AttachmentOverTexts()
    several.update(torch.stack([matrix, -matrix])[None], trees[0])
    assert several.compute()["directed 0.0"].mean == 1
    assert several.compute()["subject 0.1"].mean == 0


def test_a_source_that_gives_nothing_is_none() -> None:
    """In a causal model the first word reads no other, and no word one that follows it."""
    matrix = torch.tensor([[3.0, 0, 0, 0], [0.5, 1, 0, 0], [-0.1, -0.2, 1, 0], [0.1, 0.2, 0, 1]])
    for absolute, wanted in ((False, [-1, 0, -1, 1]), (True, [-1, 0, 1, 1])):
        assert strongest(matrix, absolute).tolist() == wanted
    # The first word is not attached to the second because both are 0.
    assert float(attachment(matrix, [1, -1, 1, 1]).directed) == pytest.approx(1 / 3)
    assert float(attachment(matrix, [1, -1, 1, 1]).reversed) == pytest.approx(1 / 3)
    assert float(cue_found(matrix, [(0, 1), (1, 0)])) == 0.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LigError, match=r"\(1, 1\)"):
        strongest(torch.zeros(1, 1))
    with pytest.raises(LigError, match="heads of 2 words"):
        attachment(torch.zeros(3, 3), [1, -1])
    with pytest.raises(LigError, match="no word has a head"):
        attachment(torch.zeros(2, 2), [-1, -1])
    with pytest.raises(LigError, match="no pair"):
        cue_found(torch.zeros(2, 2), [])
