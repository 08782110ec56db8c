// What the page says in words and tables: for reading, for screen readers, for tests.

import { columnName, element, number, percent, plain, quoted, size, token } from "./words.js";

export const MOST_ROWS = 100;
/** As in captum_lig.flow.findings. */
const FAR = 0.5;

// --- head of the page -------------------------------------------------------------------------

export function settingsText({ page }) {
  const layers = page.layers.map((layer) => layer.index);
  const own =
    page.baseline === "target_token"
      ? ": each target's path starts at its own token, so a token owes itself nothing, and what " +
        "it carries leaves it in every layer. Across layers estimate the self term, or attribute " +
        "a target"
      : "";
  return (
    `${page.layers.length} layers (${layers[0]} to ${layers.at(-1)}), ${page.tokens.length} ` +
    `tokens, scalarization ${page.scalarization}, baseline ${page.baseline}${own}.`
  );
}

export function certificateText({ certificates, tolerance }) {
  const rows = certificates.reduce((sum, layer) => sum + layer.rows, 0);
  const missed = certificates.reduce((sum, layer) => sum + layer.missed, 0);
  const worst = Math.max(...certificates.map((layer) => layer.worst));
  if (rows === 0) return { good: false, text: "Nothing is known of the completeness errors." };
  if (missed === 0) {
    const text = `Sums converged to ${plain(worst)} of the total: each of the ${rows.toLocaleString("en")} rows adds up.`;
    return { good: true, text };
  }
  const text = `Not all sums converged: ${missed.toLocaleString("en")} of ${rows.toLocaleString("en")} rows miss their total by more than ${tolerance} of it, the worst by ${plain(worst)}. Their tokens are marked ◇.`;
  return { good: false, text };
}

/** How far the composed maps are off the direct ones, and what follows; good sums do not say it. */
export function distanceText({ offBy, rule, state }) {
  if (Number.isNaN(offBy)) return { far: false, text: "" };
  const text = `Maps composed by ${rule} are ${size(offBy)} off the direct maps (median layer)`;
  if (offBy <= FAR) return { far: false, text: `${text}.` };
  if (state.boundary === "direct")
    return { far: true, text: `${text}, so the page opens with the direct maps.` };
  if (state.boundary === "influence")
    return { far: true, text: `${text}; influence, which is shown, is of no composed map.` };
  return { far: true, text: `${text}: they do not say what the layers do.` };
}

/** The first token where it dominates. */
export function sinkText({ page, sink, state }) {
  if (sink === null) return "";
  const runs = [];
  for (const layer of sink.layers) {
    if (runs.length && runs.at(-1)[1] === layer - 1) runs.at(-1)[1] = layer;
    else runs.push([layer, layer]);
  }
  const spans = runs.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
  const hidden = state.hideFirst ? " (a sink); its lines are hidden here." : ": a sink.";
  const layers = sink.layers.length > 1 ? "layers" : "layer";
  return `The first token, ${quoted(page.tokens, 0)}, is ${size(sink.part)} of what reaches the others in ${layers} ${spans}${hidden}`;
}

// --- under the flow ---------------------------------------------------------------------------

export function summaryText(model, view) {
  const { state, page, rule } = model;
  const { pin, boundary, head, threshold } = state;
  const of = {
    composed: `the layers composed by ${rule}`,
    direct: "the direct layer maps",
    attention: "the attention boundary",
    influence: "influence, how much each source moves a target, whichever way",
  }[boundary];
  const part = head === null ? "" : `, head ${head}`;
  const count = view.lines.length.toLocaleString("en");
  const text = `${count} lines of ${of}${part}, from ${size(threshold)}`;
  const more = view.left ? ` ${view.left.toLocaleString("en")} weaker ones are left out.` : "";
  if (pin === null) return `${text} of ${model.whole}.${more}`;
  const at = `${quoted(page.tokens, pin.token)} ${columnName(page, pin.column)}`;
  if (boundary === "composed") return `${text}, measured by what they carry of ${at}.${more}`;
  return `${text} of ${model.whole}, into and out of ${at}; its routes are composed by ${rule}.`;
}

// --- tables -----------------------------------------------------------------------------------

export function linesTable(model, view) {
  const { page, state } = model;
  const shown = view.lines.slice(0, MOST_ROWS);
  const by = state.pin && state.boundary === "composed" ? "Part of the pinned token" : null;
  const what = model.signed ? "Attribution" : "Length";
  const head = ["Layer", "Target", "Source", "Share", what, ...(by ? [by] : [])];
  const rows = shown.map(({ layer, target, source, share, weight }) => {
    const value = model.value(layer, target, share);
    const figures = [number(share, model.said(share)), number(value, plain(value))];
    if (by) figures.push(number(weight, percent(weight)));
    return element(
      "tr",
      {},
      element("td", {}, String(page.layers[layer].index)),
      element("td", {}, token(page.tokens, target)),
      element("td", {}, token(page.tokens, source)),
      ...figures.map((figure) => element("td", { class: "figure" }, figure)),
    );
  });
  const all = view.lines.length.toLocaleString("en");
  const said =
    shown.length < view.lines.length
      ? `The ${shown.length} strongest of ${all} lines.`
      : `${all} lines.`;
  return [element("caption", {}, said), header(head, 3), element("tbody", {}, ...rows)];
}

export function layersTable(model, current, choose) {
  const { page, certificates } = model;
  const head = ["Layer", "Rows", "Not converged", "Worst error", "Distance", "Via heads"];
  const rows = page.layers.map((layer, place) => {
    const { rows: count, missed, worst } = certificates[place];
    const button = element("button", { type: "button" }, String(layer.index));
    button.setAttribute("aria-label", `Show the maps of layer ${layer.index}`);
    button.addEventListener("click", () => choose(place));
    const distance = model.distance(place);
    const heads = model.viaHeads(place);
    const verdict = missed ? { class: "figure bad" } : { class: "figure" };
    return element(
      "tr",
      { "aria-current": place === current && "true" },
      element("td", {}, button, " ", element("bdi", {}, layer.name)),
      element("td", { class: "figure" }, number(count, count.toLocaleString("en"))),
      element("td", verdict, number(missed, missed ? `◇ ${missed}` : "0")),
      element("td", verdict, number(worst, count ? plain(worst) : "n/a")),
      element("td", { class: "figure" }, number(distance, size(distance))),
      element("td", { class: "figure" }, number(heads, size(heads))),
    );
  });
  const caption = `Tolerance ${model.tolerance}; composed by ${model.rule}.`;
  return [element("caption", {}, caption), header(head, 1), element("tbody", {}, ...rows)];
}

function header(names, words) {
  const cells = names.map((name, place) =>
    element("th", { scope: "col", class: place < words ? null : "figure" }, name),
  );
  return element("thead", {}, element("tr", {}, ...cells));
}

// --- maps -------------------------------------------------------------------------------------

export function mapText(model, maps) {
  const mean = model.distance(maps.layer);
  const lengths = model.hasInfluence ? "; of influence, of the sum of all lengths" : "";
  const limit = `Colours end at ±${size(maps.limit)} of the target's total${lengths}.`;
  if (!model.hasDirect) {
    return [`${limit} These flows hold no direct map: attribute the boundary "layer" to compare.`];
  }
  return [
    "Composed by ",
    element("strong", {}, model.rule),
    ", off the direct map by ",
    element("strong", { id: "distance" }, number(mean, size(mean))),
    ` on average. ${limit}`,
  ];
}

export function cellParts(model, maps) {
  if (maps.cell === null) return ["Point at a cell for its numbers."];
  const { target, source } = maps.cell;
  const { page, tokens } = model;
  const values = maps.matrices().map((matrix) => matrix[target * tokens + source]);
  const ends = [];
  const parts = [
    token(page.tokens, target),
    " from ",
    token(page.tokens, source),
    ": composed ",
    number(values[0], percent(values[0])),
  ];
  if (model.hasInfluence) {
    const share = values.pop();
    ends.push("; influence ", number(share, size(share)), " of all lengths");
  }
  if (values.length > 1) {
    const { distance } = model.row(maps.layer, target);
    parts.push(
      ", direct ",
      number(values[1], percent(values[1])),
      ", difference ",
      number(values[2], percent(values[2])),
      "; the target's row is off by ",
      number(distance, size(distance)),
    );
  }
  return [...parts, ...ends, "."];
}
