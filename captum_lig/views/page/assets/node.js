// What is known of one token or one line: for the tip at the pointer, and for the pinned token.

import { columnName, element, number, percent, plain, size, token } from "./words.js";

const MOST_NAMED = 5;
const BOUNDARIES = {
  attention: "attention",
  mlp: "mlp",
  chain: "chain",
  layer: "direct layer",
  influence: "influence",
  attention_influence: "influence by head",
};

// --- what the pointer is on -------------------------------------------------------------------

/** Parts of the tip about a token, and the sentence for who hears it. */
export function aboutToken(model, { column, token: place }) {
  const { page, state } = model;
  const lines = [element("p", {}, token(page.tokens, place), ` ${columnName(page, column)}`)];
  const value = model.carried?.[column][place];
  if (value !== undefined && !(state.pin.column === column && state.pin.token === place)) {
    const below = column < state.pin.column;
    const said = below ? "carries" : "owes";
    const end = below ? " of the pinned token" : " to the pinned token";
    lines.push(element("p", {}, `${said} `, number(value, percent(value)), end));
  }
  if (column > state.first) {
    lines.push(...certificateLines(model, column - 1, place), ...sources(model, column - 1, place));
  }
  return lines;
}

function certificateLines(model, layer, place) {
  const row = model.row(layer, place);
  if (!row.known) return [element("p", {}, "was no target of the attribution")];
  const worst = row.errors.length ? Math.max(...row.errors.map(({ error }) => error)) : Number.NaN;
  const verdict = row.flagged ? "◇ not converged" : "sums converged";
  const error = Number.isNaN(worst) ? "completeness error not known" : null;
  const moved = element("p", {}, "moved by ", number(row.total, plain(row.total)), " (its total)");
  return [
    moved,
    error === null
      ? element(
          "p",
          { class: row.flagged ? "bad" : "good" },
          `${verdict}, error `,
          number(worst, plain(worst)),
        )
      : element("p", {}, error),
  ];
}

function sources(model, layer, target) {
  const { matrix } = model.map(layer);
  const row = matrix.slice(target * model.tokens, (target + 1) * model.tokens);
  const order = strongest(row, MOST_NAMED);
  if (order.length === 0) return [];
  const from = model.signed ? "from:" : "from, whichever way:";
  return [element("p", {}, from), shareTable(model, order, row, (share) => model.said(share))];
}

export function aboutLine(model, { layer, target, source, share, weight }) {
  const { page, state } = model;
  const { boundary, pin } = state;
  const value = model.value(layer, target, share);
  const lines = [
    element(
      "p",
      {},
      `layer ${page.layers[layer].index}: `,
      token(page.tokens, source),
      " → ",
      token(page.tokens, target),
    ),
    element(
      "p",
      {},
      number(share, model.said(share)),
      ` of ${model.whole}, `,
      number(value, plain(value)),
    ),
  ];
  if (boundary === "influence") {
    const what = "length of the source's own contribution, whichever way it points; lengths do not";
    lines.push(element("p", {}, `${what} add up to a total`));
  }
  if (pin && boundary === "composed") {
    lines.push(element("p", {}, number(weight, percent(weight)), " of the pinned token"));
  }
  if (boundary === "composed" && state.head === null) {
    const heads = model.heads(layer, target, source).filter(({ share: part }) => part !== 0);
    for (const part of heads.slice(0, 3)) {
      lines.push(element("p", {}, `head ${part.head}: `, number(part.share, percent(part.share))));
    }
    const past = source === target ? model.shares[layer].residual[target] : 0;
    if (past) lines.push(element("p", {}, "residual: ", number(past, percent(past))));
  }
  if (boundary === "composed" && state.head === null && page.layers[layer].direct) {
    const direct = model.directMap(layer).matrix[target * model.tokens + source];
    lines.push(element("p", {}, "direct map: ", number(direct, percent(direct))));
  }
  if (boundary !== "attention" && model.signed && state.head === null && model.hasInfluence) {
    const share = model.influenceMap(layer).matrix[target * model.tokens + source];
    lines.push(element("p", {}, "influence: ", number(share, size(share)), " of all lengths"));
  }
  return lines;
}

// --- the pinned token -------------------------------------------------------------------------

export function pinnedTitle({ page, state }) {
  if (state.pin === null) return ["Nothing pinned"];
  const { column, token: place } = state.pin;
  return [token(page.tokens, place), ` ${columnName(page, column)}`];
}

export function pinnedParts(model, choose) {
  const { page, state } = model;
  const { rule } = model;
  const { pin, first, last } = state;
  if (pin === null) {
    return [
      element(
        "p",
        {},
        "Click a token, or choose a target above, to see where it comes from, where ",
        "it goes, and its strongest routes through the layers.",
      ),
    ];
  }
  const parts = [];
  if (pin.column > first) parts.push(...rowParts(model, pin.column - 1, pin.token));
  const columns = [];
  if (pin.column > first) {
    columns.push(part(`From tokens ${columnName(page, first)}`, model, first, "comes-from"));
  }
  if (pin.column <= last) {
    columns.push(
      part(`Its share in tokens ${columnName(page, last + 1)}`, model, last + 1, "goes-to"),
    );
  }
  parts.push(element("div", { class: "pair" }, ...columns));
  parts.push(element("h3", {}, `Strongest routes, by ${rule}`), routeList(model, choose));
  return parts;
}

function rowParts(model, layer, place) {
  const row = model.row(layer, place);
  if (!row.known) {
    const { index } = model.page.layers[layer];
    return [
      element(
        "p",
        { class: "bad" },
        `It was no target in layer ${index}: nothing is known of what `,
        "is below it.",
      ),
    ];
  }
  const errors = row.errors.flatMap(({ name, error }, at) => [
    at ? ", " : "",
    `${BOUNDARIES[name] ?? name} `,
    number(error, plain(error)),
  ]);
  const verdict = row.flagged
    ? element("strong", { class: "bad" }, "◇ Not converged")
    : element("strong", { class: "good" }, "Sums converged");
  const parts = [element("p", {}, "Moved by ", number(row.total, plain(row.total)), ".")];
  if (model.page.layers[layer].one_source?.[place]) {
    parts.push(
      element("p", {}, "It has one possible source: all is that token's by construction."),
    );
  }
  if (errors.length)
    parts.push(element("p", {}, verdict, "; completeness errors: ", ...errors, "."));
  if (!Number.isNaN(row.distance)) {
    parts.push(
      element(
        "p",
        {},
        "Composed row off the direct one by ",
        number(row.distance, size(row.distance)),
        ".",
      ),
    );
  }
  return parts;
}

function part(title, model, column, id) {
  const row = model.carried[column];
  const sum = row.reduce((total, value) => total + value, 0);
  const below = column < model.state.pin.column;
  const total = below
    ? element("p", { class: "help" }, "All tokens together: ", number(sum, percent(sum)))
    : "";
  return element(
    "div",
    { id },
    element("h3", {}, title),
    shareTable(model, strongest(row, 8), row),
    total,
  );
}

function strongest(values, count) {
  return [...values.keys()]
    .filter((place) => values[place] !== 0)
    .sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]))
    .slice(0, count);
}

function shareTable({ page }, order, values, said = percent) {
  const rows = order.map((place) =>
    element(
      "tr",
      {},
      element("td", {}, token(page.tokens, place)),
      element("td", { class: "figure" }, number(values[place], said(values[place]))),
    ),
  );
  return element("table", {}, element("tbody", {}, ...rows));
}

function routeList(model, choose) {
  const { routes, state } = model;
  if (routes.length === 0) return element("p", {}, "No route carries anything.");
  const items = routes.map((route, place) => {
    const button = element(
      "button",
      { type: "button", "aria-pressed": String(state.route === place) },
      number(route.share, percent(route.share)),
      " ",
      ...routeParts(model, route),
    );
    button.addEventListener("click", () => choose(place));
    return element("li", {}, button);
  });
  return element("ol", { id: "routes" }, ...items);
}

/** A route in words; layers in which a token only stays are told together. */
function routeParts({ page, state }, route) {
  const parts = [token(page.tokens, route.tokens[0])];
  let stays = [];
  const told = () => {
    if (stays.length === 0) return;
    const [from, to] = [stays[0], stays.at(-1)];
    parts.push(element("small", {}, ` stays in ${from === to ? from : `${from}–${to}`}`));
    stays = [];
  };
  route.heads.forEach((head, step) => {
    const { index } = page.layers[state.first + step];
    if (head < 0) {
      stays.push(index);
      return;
    }
    told();
    parts.push(
      element("small", {}, ` → layer ${index} head ${head} → `),
      token(page.tokens, route.tokens[step + 1]),
    );
  });
  told();
  return parts;
}
