"""The examples of docs/gallery.md, each a picture and a check on a model with real weights.

    python docs/pictures.py gallery

Every example returns its figure and the lines that the page shows below it. The models come with
Python packages, whose files are read and whose code is not run.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.prediction import logit, state, target_value
from captum_lig.pretrained.minilm import embedded_model_path
from captum_lig.views.plots import plot_graph, plot_map, plot_picture

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("docs", "tutorials", "")]
import biology
import models

from benchmarks.changed_inputs import entered, entering, patched

Example = tuple[Figure, list[str]]

# Some heads hardly move a token that two texts share, and such rows miss the tolerance.
warnings.filterwarnings("ignore", message=".*rows are not within tolerance")


# --- asking the model itself ----------------------------------------------------------------------


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of all numbers of two tensors."""
    ranks = [x.flatten().argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


class Swap:
    """Two texts that differ in one token, a number, and the graph of its change."""

    def __init__(self, model: Any, ids: Tensor, other: Tensor, target: Any, tokens: list[str]):
        self.model, self.ids, self.other, self.target = model, ids, other, target
        flows = LayerFlowIG(model).attribute({"input_ids": ids}, other, target)
        self.graph = FlowGraph(flows, tokens)
        self.trace = self.graph.relevance()
        self.value, self.other_value = self(ids), self(other)

    def __call__(self, ids: Tensor) -> float:
        """The target of a text."""
        with torch.no_grad():
            return float(target_value(self.model, self.target, {"input_ids": ids}))

    def patched(self, modules: Sequence[nn.Module], places: Sequence[Any]) -> Tensor:
        """`(modules, places)`: what it costs to take over what enters a module, at a place."""
        theirs = entered(modules, lambda: self(self.other))
        return patched(lambda: self(self.ids), modules, places, theirs)


# --- MiniLM ---------------------------------------------------------------------------------------


def minilm() -> Example:
    """Which word moves which through one head."""
    folder = embedded_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer("My credit card paid for ice cream in New York.", return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    flow = LayerFlowIG(model.eval(), 0).attribute(inputs)
    assert not isinstance(flow, list)
    total = flow.layer_total[0][:, None]
    head = flow.compose("chain", by_head=True)[0, 4] / total
    figure, _ = plot_map(head, tokens, percent=True, label="share of the target's total")

    # Set a head's output at a token back to what it is where the path starts: there every source is
    # this token, and the head says the token's own value.
    block = model.encoder.layer[0]
    dense, heads = block.attention.output.dense, model.config.num_attention_heads
    with torch.no_grad():
        (z,) = entered([block], lambda: model(**inputs))
        (u,) = entered([dense], lambda: block(z))
        values = block.attention.self.value(z)
        end = block(z)[0]
        start = torch.stack([block(z[:, j : j + 1].expand_as(z))[0, j] for j in range(len(tokens))])
        direction = nn.functional.normalize(end - start, dim=-1)
        width, lost = u.shape[-1] // heads, []
        for h in range(heads):
            part = slice(h * width, h * width + width)
            without = u.clone()
            without[..., part] = values[..., part]
            with entering(dense, lambda _, changed=without: changed):
                lost.append(((end - block(z)[0]) * direction).sum(-1) / total[:, 0])
    off = torch.stack(lost)
    lines = ["                     head 4, of all heads        head 4 switched off"]
    for target, source in (("cream", "ice"), ("card", "credit"), ("new", "york")):
        j, i = tokens.index(target), tokens.index(source)
        part, order = flow.mlp[0, j] / total[j], off[:, j].argsort(descending=True).tolist()
        lines.append(
            f"{source:6s} moves {target:6s} {head[j, i]:5.0%}, head {part[4]:4.0%}, rank "
            f"{1 + int((part > part[4]).sum())}      {target} moves {off[4, j]:4.0%} less, rank "
            f"{1 + order.index(4)}"
        )
    agree = [rank_correlation(flow.mlp[0, j], off[:, j]) for j in range(len(tokens))]
    lines.append(
        f"rank correlation of the heads' parts and the experiment, mean over the {len(tokens)} "
        f"tokens: {sum(agree) / len(agree):.2f}"
    )
    return figure, lines


# --- SmolLM2 --------------------------------------------------------------------------------------


def smollm2() -> Example:
    """How a capital finds its way to the last word."""
    tokenizer, model = models.smollm2()
    ids, other = (
        tokenizer(f"The capital of {country} is", return_tensors="pt")["input_ids"]
        for country in ("France", "Italy")
    )
    tokens = tokenizer.convert_ids_to_tokens(ids[0])
    swap = Swap(model, ids, other, logit(" Paris", minus=" Rome"), tokens)
    country, last = 3, 4
    title = f"Logit of “ Paris” less that of “ Rome”, {swap.graph.change:+.1f}"
    figure, _ = plot_graph(swap.graph, k=1, title=title)

    blocks = list(model.model.layers)
    patched = swap.patched(blocks, [(slice(None), place) for place in range(len(tokens))])
    lines = [
        f"Paris - Rome after France {swap.value:+.2f}, after Italy {swap.other_value:+.2f}",
        "                     relevance        Italy's vector there costs",
        "entering layer    France      is          France      is",
    ]
    for layer in (0, 12, 23, 24, 29):
        ours, theirs = swap.trace.tokens[layer], patched[layer]
        lines.append(
            f"{layer:14d} {ours[country]:9.2f} {ours[last]:7.2f}       {theirs[country]:9.2f} "
            f"{theirs[last]:7.2f}"
        )
    # The tokens before the country are the same in both texts, and can have no part.
    both = torch.stack([swap.trace.tokens[:-1, 3:].double().flatten(), patched[:, 3:].flatten()])
    lines.append(f"correlation over the 2 tokens in 30 layers: {torch.corrcoef(both)[0, 1]:.4f}")
    width = model.config.hidden_size // model.config.num_attention_heads
    outputs = [block.self_attn.o_proj for block in blocks]
    parts = [(..., slice(h * width, h * width + width)) for h in range(9)]
    heads, by_head = swap.patched(outputs, parts), swap.trace.by_head()
    for layer, head in _largest(by_head.abs(), 3):
        lines.append(
            f"head {head} of layer {layer}: carries {by_head[layer, head]:+.2f}, Italy's output "
            f"there costs {heads[layer, head]:+.2f}, rank {_rank(heads.abs(), layer, head)} of 270"
        )
    return figure, lines


def _largest(values: Tensor, count: int) -> list[tuple[int, int]]:
    found = values.flatten().argsort(descending=True)[:count].tolist()
    return [divmod(place, values.shape[1]) for place in found]


def _rank(values: Tensor, row: int, column: int) -> int:
    return 1 + int((values > values[row, column]).sum())


# --- MGM ------------------------------------------------------------------------------------------

GUT = "Bacteroides Faecalibacterium Roseburia Blautia Alistipes Ruminococcus Parabacteroides Dorea"
GUT += " Subdoligranulum Lachnospira"
MOUTH = "Streptococcus Veillonella Rothia Neisseria Haemophilus Actinomyces Gemella Granulicatella"
MOUTH += " Fusobacterium Leptotrichia"
LISTS = 40


def mgm() -> Example:
    """Which genus moves which through one head."""
    vocabulary, model = biology.mgm()
    draw = random.Random(0)
    block = model.transformer.h[0]
    width, chance, count = 32, 0.0, 0
    hits = {"map": 0, "experiment": 0, "attention weight": 0}
    agree: dict[str, list[float]] = {"map": [], "attention weight": []}
    model.set_attn_implementation("eager")  # so that the model returns its attention weights
    everyone = [*GUT.split(), *MOUTH.split()]
    total, pairs = torch.zeros(2, 20, 20)
    for _ in range(LISTS):
        genera = draw.sample(GUT.split(), 8) + draw.sample(MOUTH.split(), 8)
        draw.shuffle(genera)
        ids = torch.tensor([[vocabulary["<bos>"], *(vocabulary[f"g__{g}"] for g in genera)]])
        flow = LayerFlowIG(model, 0).attribute({"input_ids": ids}, boundaries=("attention",))
        assert not isinstance(flow, list)
        with torch.no_grad():
            weights = model(ids, output_attentions=True).attentions[0][0, 0]
            (z,) = entered([block], lambda ids=ids: model(ids))
        mouth = torch.tensor([genus in MOUTH.split() for genus in genera])
        for j in range(5, 17):  # with four genera and more before it
            before, same = slice(1, j), mouth[: j - 1] == mouth[j - 1]
            with torch.no_grad():  # each source set to the target's vector, one at a time
                each = z.repeat(j, 1, 1)
                each[range(1, j), range(1, j)] = z[0, j]
                (u,) = entered([block.attn.c_proj], lambda each=each: block(each))
            effect = (u[1:, j, :width] - u[:1, j, :width]).norm(dim=-1)
            claims = {
                "map": flow.attention[0, 0, j, before],
                "attention weight": weights[j, before],
            }
            for name, row in {**claims, "experiment": effect}.items():
                hits[name] += int(same[row.argmax()])
            for name, row in claims.items():
                agree[name].append(rank_correlation(row, effect))
            chance, count = chance + float(same.float().mean()), count + 1
        shares = flow.attention[0, 0] / flow.attention_total[0, 0][:, None]
        places = [everyone.index(genus) for genus in genera]
        for j in range(5, 17):
            total[places[j - 1], places[: j - 1]] += shares[j, 1:j]
            pairs[places[j - 1], places[: j - 1]] += 1
    figure, _ = plot_map(
        total / pairs.clamp_min(1),
        everyone,
        percent=True,
        label=f"share of the head's output, mean over {LISTS} lists",
    )
    lines = [f"{count} targets: the strongest source lives where the target lives"]
    lines += [f"  by the {name:16s} {hit / count:4.0%}" for name, hit in hits.items()]
    lines.append(f"  by chance               {chance / count:4.0%}")
    lines.append("rank correlation over sources with the experiment")
    lines += [f"  {name:16s} {sum(all_) / len(all_):.2f}" for name, all_ in agree.items()]
    return figure, lines


# --- Sapiens --------------------------------------------------------------------------------------

HEAVY = (  # the variable domain of trastuzumab's heavy chain
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
    "SRWGGDGFYAMDYWGQGTLVTVSS"
)


def sapiens() -> Example:
    """How a residue tells which gene the end of a chain comes from."""
    vocabulary, model = biology.sapiens()
    residue, asked = 109, 115  # counted from 1, as tokens are behind <s>
    tokens = ["<s>", *HEAVY, "</s>"]
    tokens[asked] = "<mask>"
    ids = torch.tensor([[vocabulary[token] for token in tokens]])
    other = ids.clone()
    other[0, residue] = vocabulary["V"]
    target = logit(vocabulary["L"], vocabulary["T"], position=asked)
    names = [f"{token}{place}" for place, token in enumerate(tokens)]
    swap = Swap(model, ids, other, target, names)
    part = swap.graph.subgraph(tokens=range(104, 121))
    title = f"Logit of L less that of T, {swap.graph.change:+.1f}"
    figure, _ = plot_graph(part, k=8, title=title)

    lines = []
    for name, text in (("Y", ids), ("V", other)):
        with torch.no_grad():
            chances = model(text).logits[0, asked].softmax(-1)
        l_, t_ = (float(chances[vocabulary[residue]]) for residue in "LT")
        lines.append(f"{name} before WGQG: L {l_:.2f}, T {t_:.2f}")
    # Every other residue, masked one at a time: does any of them matter as much?
    lost = torch.zeros(len(tokens))
    for place in range(1, len(tokens) - 1):
        text = ids.clone()
        text[0, place] = vocabulary["<mask>"]
        lost[place] = swap.value - swap(text)
    places = lost.abs().argsort(descending=True)[:3].tolist()
    lines.append(
        f"L - T is {swap.value:+.2f} (with V {swap.other_value:+.2f}); masking a residue costs "
        + ", ".join(f"{names[place]} {lost[place]:+.2f}" for place in places)
    )
    outputs = [block.attention.output.dense for block in model.roberta.encoder.layer]
    heads = swap.patched(outputs, [(..., slice(h * 16, h * 16 + 16)) for h in range(8)])
    by_head = swap.trace.by_head()
    for layer in (2, 3):
        ours, theirs = (x[layer].argsort(descending=True)[:2].tolist() for x in (by_head, heads))
        lines.append(
            f"layer {layer}: heads {ours[0]} and {ours[1]} carry {by_head[layer, ours[0]]:.2f} and "
            f"{by_head[layer, ours[1]]:.2f}; V's output costs most in heads {theirs[0]} and "
            f"{theirs[1]}, {heads[layer, theirs[0]]:.2f} and {heads[layer, theirs[1]]:.2f}"
        )
    lines.append(f"rank correlation over the 32 heads: {rank_correlation(by_head, heads):.2f}")
    return figure, lines


# --- a ViT ----------------------------------------------------------------------------------------


def vit() -> Example:
    """Which part of a picture moves an eye."""
    from skimage import data, transform

    model, photo = models.vit(), data.chelsea()
    middle = (photo.shape[1] - photo.shape[0]) // 2
    photo = photo[:, middle : middle + photo.shape[0]]
    picture = torch.tensor(transform.resize(photo, (224, 224), anti_aliasing=True)).float()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((picture - mean) / deviation).permute(2, 0, 1)[None]
    side, layer, (row, column) = 16, 6, (6, 5)  # of the eye
    eye = 1 + side * row + column
    flow = LayerFlowIG(model, layer).attribute(pixels, output_indices=[eye], boundaries=("layer",))
    assert not isinstance(flow, list)
    shares = (flow.layer[0, 0] / flow.layer_total[0, 0])[1:].view(side, side)

    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    box = {"extent": (0, side, side, 0)}
    left, right = figure.subplots(1, 2)
    left.imshow(picture, **box)
    right.imshow(picture.mean(-1), cmap="gray", **box)
    limit = float(shares.abs().max())
    drawn = right.imshow(shares, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6, **box)
    bar = figure.colorbar(drawn, ax=right, shrink=0.8)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:+.2g} %" if share else "0 %")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("share of the target's total", fontsize=8)
    for axes in (left, right):
        axes.plot(column + 0.5, row + 0.5, "x", color="lime", markersize=7, markeredgewidth=2)
        axes.set_axis_off()

    # Hide a box of 3 x 2 patches, as large as the other eye, four patches or more away.
    def leaving(hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return model(hidden, output_hidden_states=True).hidden_states[layer + 1][0, eye]

    whole, moved, claimed, other = leaving(pixels), [], [], -1
    for top in range(side - 2):
        for first in range(0, side - 1, 2):
            if max(abs(top + 1 - row), abs(first + 0.5 - column)) < 4:
                continue
            if (top, first) == (6, 12):
                other = len(moved)
            hidden = pixels.clone()
            place = (slice(14 * top, 14 * top + 42), slice(14 * first, 14 * first + 28))
            hidden[:, :, place[0], place[1]] = pixels.mean((2, 3), keepdim=True)
            moved.append(float((leaving(hidden) - whole).norm()))
            claimed.append(float(shares[top : top + 3, first : first + 2].sum()))
    effect, claim = torch.tensor(moved), torch.tensor(claimed)
    lines = [
        f"the other eye, 6 of 256 patches, is {claim[other]:.1%} of what moved the eye; of "
        f"{len(claim)} boxes of 6 far patches rank {1 + int((claim > claim[other]).sum())}",
        f"hiding it moves the eye's token {effect[other] / effect.median():.0f} times as far as "
        f"hiding the median box does; rank {1 + int((effect > effect[other]).sum())}",
        f"rank correlation over the {len(claim)} boxes: {rank_correlation(claim, effect):.2f}",
    ]
    return figure, lines


def picture() -> Example:
    """Which parts of a picture, against a blurred one, made the class token what it is."""
    from skimage import data, filters, transform

    model, photo = models.vit(), data.chelsea()
    middle = (photo.shape[1] - photo.shape[0]) // 2
    photo = transform.resize(
        photo[:, middle : middle + photo.shape[0]], (224, 224), anti_aliasing=True
    )
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def normalized(picture: Any) -> Tensor:
        return ((torch.tensor(picture).float() - mean) / deviation).permute(2, 0, 1)[None]

    pixels, blurred = map(normalized, (photo, filters.gaussian(photo, 6, channel_axis=-1)))
    flows = LayerFlowIG(model).attribute(pixels, blurred, state(0))
    graph = FlowGraph(flows)
    trace = graph.relevance()
    figure, _ = plot_picture(
        trace, photo, depths=[0, 6, 9], special=["[CLS]"], label="part of the change"
    )

    # Blur one box of 2 x 2 patches, and in the blurred picture make one sharp.
    def class_tokens(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [model(some).last_hidden_state[:, 0] for some in pictures.split(8)]
        return torch.cat(parts)

    sharp_end, blurred_end = class_tokens(torch.cat([pixels, blurred]))
    along = (sharp_end - blurred_end) / (sharp_end - blurred_end).norm()
    without, only = pixels.repeat(64, 1, 1, 1), blurred.repeat(64, 1, 1, 1)
    for box in range(64):
        top, left = 28 * (box // 8), 28 * (box % 8)
        place = (slice(None), slice(top, top + 28), slice(left, left + 28))
        without[box][place], only[box][place] = blurred[0][place], pixels[0][place]
    out = (sharp_end - class_tokens(without)) @ along
    into = (class_tokens(only) - blurred_end) @ along
    boxes = trace.tokens[0, 1:].view(8, 2, 8, 2).sum((1, 3)).flatten()

    def correlation(a: Tensor, b: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])

    part = float(boxes.sum())
    lines = [
        f"from the blurred picture to the sharp one the class token moves by {graph.change:.1f}; "
        f"all patches together have {part:.1f}",
        f"blurring one of 64 boxes: {correlation(boxes, out):.2f} with its part; all of them "
        f"together {out.sum():.1f}",
        f"one box made sharp in the blurred picture: {correlation(boxes, into):.2f}",
        f"the two effects with each other: {correlation(out, into):.2f}",
    ]
    return figure, lines


EXAMPLES: dict[str, Callable[[], Example]] = {
    example.__name__: example for example in (minilm, smollm2, mgm, sapiens, vit, picture)
}
