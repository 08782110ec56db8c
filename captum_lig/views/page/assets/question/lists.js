// All that is shown, as tables: for reading, for the keyboard, for screen readers.

import { element, number } from "../words.js";
import { link } from "./panel.js";
import { mainEdges, nodeName, quoted, rounded, signed, word } from "./said.js";

const MOST_TOKENS = 100;

function body(names, words, rows, caption) {
  const head = names.map((name, place) =>
    element("th", { scope: "col", class: classOf(name, place < words) }, name),
  );
  return [
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  ];
}

/** Shares are left out where there is little room: the panel has them. */
const ROOMY = ["Of the change", "by where it looks"];

function classOf(name, isWord) {
  return `${isWord ? "" : "figure"}${ROOMY.includes(name) ? " roomy" : ""}`;
}

function figure(value, text) {
  return element("td", { class: "figure" }, number(value, text));
}

/** The heads and MLPs that are shown. */
export function nodesTable(view, nodes) {
  const { data } = view;
  const { checked } = data.page;
  const rows = nodes.map((node) => {
    const [edge] = mainEdges(data, node);
    const pattern = data.throughPattern(node);
    const cells = [
      element("td", {}, link(view, node.name, nodeName(node))),
      element("td", {}, quoted(data, node.at)),
      element("td", {}, edge ? quoted(data, edge.source) : ""),
      figure(node.value, signed(node.value)),
      figure(data.share(node.value), rounded(data.share(node.value))),
      pattern === null ? element("td") : figure(pattern, signed(pattern)),
    ];
    for (const cell of cells.slice(4)) cell.classList.add("roomy");
    if (checked) {
      const found = data.checked(node);
      for (const key of ["out", "into"]) {
        cells.push(found ? figure(found[key], signed(found[key])) : element("td"));
      }
    }
    return element("tr", {}, ...cells);
  });
  const names = ["Node", "at", "reads most from", "Part", "Of the change", "by where it looks"];
  if (checked) names.push("taken out", "put in");
  return body(names, 3, rows, `${nodes.length} heads and MLPs, strongest first.`);
}

/** The tokens of the text, as they come into the first layer and as they leave the last. */
export function tokensTable(view) {
  const { data } = view;
  const { page } = data;
  const order = [...Array(data.tokens).keys()];
  if (data.tokens > MOST_TOKENS) order.sort((a, b) => data.most(b) - data.most(a));
  const shown = order.slice(0, MOST_TOKENS);
  const others = page.other_tokens !== null;
  const rows = shown.map((at) => {
    const own = data.relevance(0, at);
    const cells = [element("td", {}, link(view, `t${at}`, quoted(data, at)))];
    if (others) {
      const other = page.differs.includes(at) ? `“${word(page.other_tokens, at)}”` : "";
      cells.push(element("td", {}, other));
    }
    const end = data.relevance(data.layers, at);
    cells.push(figure(own, signed(own)), figure(data.share(own), rounded(data.share(own))));
    cells.at(-1).classList.add("roomy");
    cells.push(figure(end, signed(end)));
    return element("tr", {}, ...cells);
  });
  const names = ["Token", ...(others ? ["instead of"] : []), "Part", "Of the change", "At the end"];
  const said =
    data.tokens > MOST_TOKENS
      ? `The ${MOST_TOKENS} of ${data.tokens} tokens that have most at any depth.`
      : "All tokens, in the order of the text.";
  return body(names, others ? 2 : 1, rows, said);
}

/** Notes and groups, to find them again. */
export function notesList(view, nameOf) {
  const { notes } = view;
  const items = [...notes.notes].map(([name, text]) =>
    element("li", {}, link(view, name, nameOf(name)), ": ", element("bdi", {}, text)),
  );
  notes.groups.forEach((group, number) => {
    const made = link(view, `g${number}`, `group ${word([group.name], 0)}`);
    items.push(element("li", {}, made, `: ${group.nodes.length} nodes`));
  });
  if (items.length === 0) return [element("p", { class: "help" }, "There are none yet.")];
  return [element("ul", { class: "links" }, ...items)];
}
