// One plain sentence for each thing that is shown. Tokens are untrusted: they become text alone.

/** A part with its sign: `+12.7`. */
export function signed(value) {
  if (Number.isNaN(value)) return "n/a";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size >= 999.5 ? size.toFixed(0) : Number(size.toPrecision(3)).toString();
  return `${value < 0 ? "−" : "+"}${digits.replace("e-", "e−")}`;
}

/** A share without decimals: `96 %`. */
export function rounded(share) {
  if (Number.isNaN(share)) return "n/a";
  const percent = 100 * share;
  const text = Math.abs(percent) < 1 && percent !== 0 ? percent.toPrecision(1) : percent.toFixed(0);
  return `${text.replace("-", "−")}\u00a0%`;
}

/** A token as the text that it stands for, its direction its own. */
export function word(labels, at) {
  return `\u2068${labels[at].replaceAll("␣", " ")}\u2069`;
}

/** A token in a sentence, with its position. */
export function quoted(data, at) {
  return `“${word(data.page.tokens, at)}” (${at})`;
}

export function nodeName(node) {
  return node.head === null ? `MLP ${node.index}` : `Head ${node.index}.${node.head}`;
}

export function nodeTitle(data, node) {
  return `${nodeName(node)} at ${quoted(data, node.at)}`;
}

function ofTheChange(data, value) {
  const share = data.share(value);
  return Number.isNaN(share) ? signed(value) : `${signed(value)} (${rounded(share)} of the change)`;
}

export function nodeSentence(data, node) {
  const part = ofTheChange(data, node.value);
  if (node.head === null) return `${mlpSentence(data, node, part)}.`;
  const to = quoted(data, node.at);
  const edges = mainEdges(data, node);
  if (edges.length === 0) return `${nodeName(node)} brings ${part} to ${to}.`;
  return `${takenSentence(data, node, part, to, edges)}${throughSentence(data.throughPattern(node), node.value)}.`;
}

function mlpSentence(data, node, part) {
  const layer = data.page.layers[node.place];
  const token = layer.mlp_token[node.at];
  const heads = node.value - token;
  const where = quoted(data, node.at);
  const said = `${nodeName(node)} brings ${part} at ${where}`;
  if (!layer.heads.length) return said;
  return `${said}; ${signed(token)} of it comes from what was there below, ${signed(heads)} from the heads of its layer`;
}

/** `Head 2.1 takes +3 from A to B`, where A brings all of it; else how much A brings. */
function takenSentence(data, node, part, to, edges) {
  const name = nodeName(node);
  const [first] = edges;
  const brought = edges.reduce((sum, { value }) => sum + value, 0);
  if (Math.abs(brought - node.value) <= NEARLY_ALL * Math.abs(node.value)) {
    if (edges.length === 1 && first.source === node.at)
      return `${name} brings ${part} to ${to}, which it takes from there`;
    return `${name} takes ${part} from ${edges.map(({ source }) => quoted(data, source)).join(" and ")} to ${to}`;
  }
  const each = edges.map(({ source, value }) => `${signed(value)} from ${quoted(data, source)}`);
  const others = `${signed(node.value - brought)} from the others`;
  return `${name} brings ${part} to ${to}: ${each.join(", ")} and ${others}`;
}

/** What is missing or over of a head's part, where a sentence names its sources without amounts. */
const NEARLY_ALL = 0.05;

/** The edges that bring most of a head's part, of its sign: one, or the two that it takes to 80 %. */
export function mainEdges(data, node) {
  const edges = data.edgesInto(node).filter(({ value }) => value * node.value > 0);
  return edges.slice(0, edges[0]?.value / node.value >= 0.8 ? 1 : 2);
}

/** `; 95 % of it through what it reads there`. */
function throughSentence(pattern, whole) {
  if (pattern === null || !whole) return "";
  const share = pattern / whole;
  if (share < 0)
    return `; what it reads brings ${signed(whole - pattern)}, where it looks ${signed(pattern)}`;
  if (share > 1)
    return `; where it looks brings ${signed(pattern)}, what it reads ${signed(whole - pattern)}`;
  return share <= 0.5
    ? `; ${rounded(1 - share)} of it through what it reads there`
    : `; ${rounded(share)} of it through where it looks`;
}

export function edgeSentence(data, edge) {
  const { node, source, value, read } = edge;
  const said = `Through ${nodeName(node).replace("Head", "head")} ${quoted(data, node.at)} gets ${ofTheChange(data, value)} from ${quoted(data, source)}`;
  if (read === null)
    return `${said}. Whether through what it reads or where it looks is not known.`;
  return `${said}: ${signed(read)} through what is read there (value), ${signed(value - read)} through where the head looks (query and key).`;
}

export function depthName(data, depth) {
  const { layers } = data.page;
  return depth < layers.length ? `entering layer ${layers[depth].index}` : "at the end";
}

export function tokenSentence(data, at) {
  const spans = spansOf(data, at);
  const [below, above] = [data.relevance(0, at), data.relevance(data.layers, at)];
  const first = data.page.layers[0].index;
  const parts = `It brings ${ofTheChange(data, below)} ${first ? `into layer ${first}` : "into the first layer"}, and holds ${signed(above)} at the end`;
  if (spans.length === 0) return `${quoted(data, at)}: ${parts.replace("It", "it")}.`;
  const holds = spans.map(({ from, to }) => {
    const until = to === data.layers ? "to the end" : `until layer ${data.page.layers[to].index}`;
    return from === 0 ? until : `from layer ${data.page.layers[from]?.index ?? "the end"} ${until}`;
  });
  return `${quoted(data, at)} holds more than half of the change ${holds.join(" and ")}. ${parts}.`;
}

/** Depths from which to which a token holds more than half, alone or with others. */
function spansOf(data, at) {
  return joined(data.held, ({ all }) => all.includes(at)).filter(({ who }) => who);
}

/** Neighbours of which the same is true. */
function joined(held, of) {
  const found = [];
  for (const one of held) {
    const who = of(one);
    if (found.at(-1)?.who === who) found.at(-1).to = one.to;
    else found.push({ from: one.from, to: one.to, who });
  }
  return found;
}

function holder(data, { at, all }) {
  if (at !== null) return quoted(data, at);
  return all.length ? "each of several tokens" : "no one token";
}

/** Where the change is held, over all tokens; null where it goes to and fro. */
export function heldSentence(data) {
  const held = joined(data.held, (one) => holder(data, one));
  if (held.length > 4) return null;
  const said = held.map(({ to, who }) => {
    const until = to === data.layers ? "to the end" : `until layer ${data.page.layers[to].index}`;
    return `${who} ${until}`;
  });
  return `More than half of it is held by ${said.join(", then by ")}.`;
}

export function endSentence(data) {
  const { page } = data;
  const { favours, change } = page;
  const for_ = favours
    ? `; + speaks for ${favours[0]} and − for ${favours[1]}`
    : "; + makes it larger and − smaller";
  return `The number: ${page.target}. From ${page.other} to the text it changes by ${signed(change)}${for_}.`;
}

/** How well sums converged, and what that does not say. */
export function sumsSentence({ sums, sums_of, change }) {
  const off =
    sums === null ? "How well sums converged is not known." : offBy(sums, sums_of, change);
  return `${off} That says that sums converged, not that the explanation is right: patching tests that.`;
}

/** Of the words' parts at the worst depth, or of what goes into the worst node. */
function offBy(sums, of, change) {
  const size = sums === 0 ? "0" : Number(sums.toPrecision(1)).toExponential(0).replace("e-", "e−");
  if (of === "nodes")
    return `What goes into a node adds up to its part, to within ${size} of the change (of the sizes of the parts where these cancel).`;
  return `Sums converged to ${size} of ${change ? "the change" : "the sizes of the parts"}.`;
}

export function edgesSentence({ edges }) {
  const all = edges.all.toLocaleString("en");
  if (edges.kept >= edges.all) return `All ${all} edges of attention are in this file.`;
  return `Of ${all} edges of attention the ${edges.kept.toLocaleString("en")} strongest are in this file, those of at least ${edges.cutoff.toPrecision(2)}: ${rounded(edges.share)} of the sizes of all.`;
}
