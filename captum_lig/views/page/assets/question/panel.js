// The panel at the side: what is known of the thing that is selected.

import { element, number } from "../words.js";
import {
  depthName,
  edgeSentence,
  endSentence,
  nodeName,
  nodeSentence,
  nodeTitle,
  quoted,
  rounded,
  signed,
  tokenSentence,
  word,
} from "./said.js";
import { edgeName } from "./state.js";

const FEW = 6;

/**
 * @param view {data, notes, select(name), changed(), noted(), promotes: "change" | "own", show(which)}
 * @returns the title and the parts of the panel
 */
export function panel(view, name, thing) {
  const { data } = view;
  if (thing === null) return { title: "Nothing selected", parts: nothing(view) };
  if (thing.kind === "end") return { title: "The prediction", parts: endParts(view) };
  if (thing.kind === "token") {
    return { title: `Token ${quoted(data, thing.at)}`, parts: tokenParts(view, name, thing.at) };
  }
  if (thing.kind === "node") {
    return { title: nodeTitle(data, thing.node), parts: nodeParts(view, name, thing.node) };
  }
  if (thing.kind === "edge") {
    const { node, source } = thing.edge;
    const title = `From ${quoted(data, source)} through ${nodeName(node).replace("Head", "head")}`;
    return { title, parts: edgeParts(view, name, thing.edge) };
  }
  return { title: `Group ${word([thing.group.name], 0)}`, parts: groupParts(view, thing.group) };
}

function sentence(text) {
  return element("p", { id: "sentence" }, text);
}

function nothing(view) {
  const strongest = view.data.strongest(0, view.data.layers - 1).slice(0, 5);
  return [
    element("h3", {}, "The strongest"),
    nodeList(view, strongest),
    element("p", { class: "help" }, "Click a word, a head, an MLP or an edge to see what it does."),
  ];
}

function endParts(view) {
  const { data } = view;
  const order = strongestTokens(data, data.layers);
  return [
    sentence(endSentence(data)),
    element("h3", {}, "It reads"),
    tokenList(view, order, (at) => data.relevance(data.layers, at)),
    element("h3", {}, "Words it came from"),
    tokenList(view, strongestTokens(data, 0), (at) => data.relevance(0, at)),
  ];
}

function strongestTokens(data, depth) {
  return [...Array(data.tokens).keys()]
    .filter((at) => data.relevance(depth, at) !== 0)
    .sort((a, b) => Math.abs(data.relevance(depth, b)) - Math.abs(data.relevance(depth, a)))
    .slice(0, FEW);
}

function tokenParts(view, name, at) {
  const { data } = view;
  const { page } = data;
  const there = data.strongest(0, data.layers - 1).filter((node) => node.at === at);
  const read = data.edgesFrom(at, FEW);
  const parts = [sentence(tokenSentence(data, at))];
  if (page.other_tokens && page.differs.includes(at) && page.other === "the other text") {
    const other = `“${word(page.other_tokens, at)}”`;
    parts.push(element("p", {}, `In the other text it is ${other}.`));
  }
  if (there.length)
    parts.push(element("h3", {}, "What writes here"), nodeList(view, there.slice(0, FEW)));
  if (read.length)
    parts.push(element("h3", {}, "What reads from here"), edgeList(view, read, "to"));
  const checked = data.checkedToken(at);
  if (checked.length) {
    const names = checked.map(({ layer }) =>
      depthName(data, data.places.get(layer) ?? data.layers),
    );
    parts.push(element("h3", {}, "Patched"), effectTable(checked, names));
  }
  const depths = [...Array(data.layers + 1).keys()];
  const rows = depths.map((depth) =>
    row(depthName(data, depth), [[data.relevance(depth, at), signed(data.relevance(depth, at))]]),
  );
  parts.push(
    element(
      "details",
      {},
      element("summary", {}, "Its part at each depth"),
      table(["Depth", "Part"], rows),
    ),
    ...noteParts(view, name),
  );
  return parts;
}

function nodeParts(view, name, node) {
  const { data } = view;
  const edges = data.edgesInto(node);
  const parts = [sentence(nodeSentence(data, node)), ...numbersOf(data, node)];
  if (edges.length)
    parts.push(element("h3", {}, "Reads from"), edgeList(view, edges.slice(0, FEW), "from"));
  parts.push(...goesTo(data, node));
  const checked = data.checked(node);
  if (checked) parts.push(element("h3", {}, "Patched"), effectTable([checked], ["it alone"]));
  parts.push(...promotes(view, node), ...groupChooser(view, node), ...noteParts(view, name));
  return parts;
}

function numbersOf(data, node) {
  const pattern = data.throughPattern(node);
  const rows = [
    row("part", [
      [node.value, signed(node.value)],
      [data.share(node.value), rounded(data.share(node.value))],
    ]),
  ];
  if (pattern !== null) {
    const read = node.value - pattern;
    rows.push(
      row("what it reads (value)", [
        [read, signed(read)],
        [data.share(read), rounded(data.share(read))],
      ]),
    );
    rows.push(
      row("where it looks (query, key)", [
        [pattern, signed(pattern)],
        [data.share(pattern), rounded(data.share(pattern))],
      ]),
    );
  }
  if (node.head === null) {
    const below = data.page.layers[node.place].mlp_token[node.at];
    const heads = node.value - below;
    rows.push(
      row("reads of what was below", [
        [below, signed(below)],
        [data.share(below), rounded(data.share(below))],
      ]),
    );
    rows.push(
      row("of its layer's heads", [
        [heads, signed(heads)],
        [data.share(heads), rounded(data.share(heads))],
      ]),
    );
  }
  return [table(["", "Part", "Of the change"], rows)];
}

/** Where a node's part goes on, as far as its layer says. */
function goesTo(data, node) {
  const layer = data.page.layers[node.place];
  const stream = `the stream of ${quoted(data, node.at)}, above layer ${node.index}`;
  if (node.head === null || !layer.mlp) {
    return [element("h3", {}, "Goes to"), element("p", {}, `${stream}: ${signed(node.value)}`)];
  }
  const heads = layer.heads.length / data.tokens;
  const mlp = layer.mlp_heads[node.at * heads + node.head];
  const text = `MLP ${node.index}: ${signed(mlp)}; past it to ${stream}: ${signed(node.value - mlp)}`;
  return [element("h3", {}, "Goes to"), element("p", {}, text)];
}

function edgeParts(view, name, edge) {
  const { data } = view;
  const head = link(view, edge.node.name, nodeTitle(data, edge.node));
  const source = link(view, `t${edge.source}`, `token ${quoted(data, edge.source)}`);
  const rows = [row("edge", [[edge.value, signed(edge.value)]])];
  if (edge.read !== null) {
    const pattern = edge.value - edge.read;
    rows.push(row("what is read (value)", [[edge.read, signed(edge.read)]]));
    rows.push(row("where it looks (query, key)", [[pattern, signed(pattern)]]));
  }
  return [
    sentence(edgeSentence(data, edge)),
    table(["", "Part"], rows),
    element("ul", { class: "links" }, element("li", {}, head), element("li", {}, source)),
    ...noteParts(view, name),
  ];
}

function groupParts(view, group) {
  const { data } = view;
  const nodes = group.nodes.map((name) => data.node(name)).filter(Boolean);
  const sum = nodes.reduce((total, { value }) => total + value, 0);
  return [
    sentence(
      `${nodes.length} ${nodes.length === 1 ? "node" : "nodes"} with ${signed(sum)} together. ` +
        "Where one reads what another writes, their parts overlap.",
    ),
    nodeList(view, nodes),
  ];
}

// --- what it promotes -------------------------------------------------------------------------

function promotes(view, node) {
  const { data, promotes: which } = view;
  const found = data.page.promotes.nodes[node.name];
  const title = element("h3", {}, "Promotes in the vocabulary");
  const { why_not: why } = data.page.promotes;
  if (!found) {
    const said = why
      ? `Not there: ${why.replace(/\.$/, "")}.`
      : "Not there: it was worked out for the strongest nodes of the whole text alone.";
    return [title, element("p", { class: "help", id: "promotes" }, said)];
  }
  const choices = [
    ["change", "more than in the other text"],
    ["own", "in the text"],
  ].map(([kind, text]) => {
    const attributes = { type: "button", "aria-pressed": String(kind === which) };
    const button = element("button", attributes, text);
    button.addEventListener("click", () => view.show(kind));
    return button;
  });
  const side = (name, pairs) => {
    const rows = pairs.map(([token, value]) =>
      row(element("bdi", {}, `“${word([token], 0)}”`), [[value, signed(value)]]),
    );
    return table([name, "logit"], rows);
  };
  const { at } = data.page.promotes;
  const where =
    node.at === at
      ? "What it adds, through the final norm as it is at this token, and the unembedding."
      : `As if it were added at ${quoted(data, at)}: through the final norm as it is there, and the unembedding. It is not read there directly.`;
  return [
    title,
    element("div", { class: "choices", role: "group", "aria-label": "which write" }, ...choices),
    element(
      "div",
      { class: "pair", id: "promotes" },
      side("up", found[which].up),
      side("down", found[which].down),
    ),
    element("p", { class: "help" }, where),
  ];
}

// --- notes and groups -------------------------------------------------------------------------

function groupChooser(view, node) {
  const { notes } = view;
  const parts = [element("h3", {}, "Groups")];
  const items = notes.of(node.name).map((number) => {
    const group = notes.groups[number];
    const out = element("button", { type: "button" }, "take out");
    out.addEventListener("click", () => {
      notes.take(number, node.name);
      view.changed();
    });
    return element("li", {}, link(view, `g${number}`, word([group.name], 0)), " ", out);
  });
  if (items.length) parts.push(element("ul", { class: "links" }, ...items));
  const known = notes.groups.map(({ name }) => element("option", { value: name }));
  const input = element("input", { id: "group", type: "text", list: "groups", maxlength: "100" });
  const add = element("button", { type: "submit" }, "Add");
  const form = element(
    "form",
    { class: "add" },
    element("label", { for: "group" }, "Put it into the group "),
    input,
    element("datalist", { id: "groups" }, ...known),
    add,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const number = notes.group(input.value);
    if (number < 0) return;
    notes.put(number, node.name);
    view.changed();
  });
  return [...parts, form];
}

function noteParts(view, name) {
  const field = element("textarea", { id: "note", rows: "3", maxlength: "4000", dir: "auto" });
  field.value = view.notes.notes.get(name) ?? "";
  field.addEventListener("change", () => {
    view.notes.note(name, field.value);
    view.noted();
  });
  const help = "Kept in the page: “Save a copy” writes a file with notes and groups.";
  return [
    element("h3", {}, element("label", { for: "note" }, "Note")),
    field,
    element("p", { class: "help" }, help),
  ];
}

// --- lists and tables -------------------------------------------------------------------------

export function link(view, name, ...children) {
  const made = element("button", { type: "button", class: "link" }, ...children);
  made.addEventListener("click", () => view.select(name));
  return made;
}

function nodeList(view, nodes) {
  const items = nodes.map((node) =>
    row(link(view, node.name, nodeTitle(view.data, node)), [[node.value, signed(node.value)]]),
  );
  return table(["", "Part"], items);
}

function tokenList(view, tokens, value) {
  const items = tokens.map((at) =>
    row(link(view, `t${at}`, quoted(view.data, at)), [[value(at), signed(value(at))]]),
  );
  return table(["", "Part"], items);
}

/** Edges into a head or out of a token; with how much of each comes through what is read. */
function edgeList(view, edges, end) {
  const { data } = view;
  const known = edges.some(({ read }) => read !== null);
  const rows = edges.map((edge) => {
    const text = end === "from" ? quoted(data, edge.source) : nodeTitle(data, edge.node);
    const figures = [[edge.value, signed(edge.value)]];
    if (known) figures.push([edge.read, signed(edge.read)]);
    return row(link(view, edgeName(edge), text), figures);
  });
  return table(["", "Part", ...(known ? ["by reading"] : [])], rows);
}

function effectTable(checked, names) {
  const rows = checked.map(({ part, out, into }, n) =>
    row(
      names[n],
      [part, out, into].map((value) => [value, signed(value)]),
    ),
  );
  return table(["", "Part", "taken out", "put in"], rows);
}

function row(first, figures) {
  const cells = figures.map(([value, text]) =>
    element("td", { class: "figure" }, number(value, text)),
  );
  return element("tr", {}, element("th", { scope: "row" }, first), ...cells);
}

export function table(names, rows) {
  const head = names.map((name, place) =>
    element("th", { scope: "col", class: place ? "figure" : null }, name),
  );
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
}
