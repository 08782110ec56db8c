// What is chosen, as the fragment of the address: a view can be shared, and Back works.

export const FEW = 10;

export function opening(data) {
  return { selected: null, count: FEW, open: [], first: 0, last: data.layers - 1 };
}

/**
 * The state as a fragment; what is as it opens is left out.
 *
 * `s` what is selected: `t4` a token, `23.4.4` a node, `23.4.4<3` an edge, `end` the prediction,
 * `g0` a group; `n` how many nodes; `c` columns opened; `l` indices of the first and last layer.
 */
export function toFragment(data, state) {
  const parts = [];
  const { layers } = data.page;
  if (state.selected !== null) parts.push(`s=${state.selected}`);
  if (state.count !== FEW) parts.push(`n=${state.count}`);
  if (state.open.length) parts.push(`c=${state.open.join("_")}`);
  if (state.first !== 0 || state.last !== data.layers - 1) {
    parts.push(`l=${layers[state.first].index}-${layers[state.last].index}`);
  }
  return parts.join("&");
}

/** The state of a fragment; what does not make sense is as it opens. */
export function fromFragment(data, fragment, groups) {
  const state = opening(data);
  const asked = new Map(
    fragment
      .replace(/^#/, "")
      .split("&")
      .map((part) => part.split("=", 2).map(decoded)),
  );
  const count = Number(asked.get("n"));
  if (Number.isInteger(count) && count > 0) state.count = Math.min(count, data.page.most_nodes);
  const tokens = (asked.get("c") ?? "").split("_").filter(Boolean).map(Number);
  state.open = [...new Set(tokens)].filter((at) => isToken(data, at));
  const [, first, last] = /^(\d+)-(\d+)$/.exec(asked.get("l") ?? "") ?? [];
  const range = [data.places.get(Number(first)), data.places.get(Number(last))];
  if (range[0] <= range[1]) [state.first, state.last] = range;
  const selected = asked.get("s") ?? null;
  if (selected !== null && thing(data, selected, groups) !== null) state.selected = selected;
  return state;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function isToken(data, at) {
  return Number.isInteger(at) && at >= 0 && at < data.tokens;
}

/** What a name stands for: {kind, ...}, or null. */
export function thing(data, name, groups) {
  if (name === null) return null;
  if (name === "end") return { kind: "end" };
  const [, kind, number] = /^([tg])(\d+)$/.exec(name) ?? [];
  if (kind === "t") return isToken(data, Number(number)) ? { kind: "token", at: +number } : null;
  if (kind === "g") return groups[number] ? { kind: "group", group: groups[number] } : null;
  const [own, source] = name.split("<");
  const node = data.node(own);
  if (node === null) return null;
  if (source === undefined) return { kind: "node", node };
  const edge = data.edgesInto(node).find((one) => one.source === Number(source));
  return edge ? { kind: "edge", edge } : null;
}

export function edgeName({ node, source }) {
  return `${node.name}<${source}`;
}
