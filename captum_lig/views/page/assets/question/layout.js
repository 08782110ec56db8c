// Where everything stands: one column a token, layers from the bottom to the top.

export const NODE = { width: 36, height: 24 };
const [LEFT, GAP, NARROW, WIDE] = [34, 32, 46, 240];
/** Heights: of a layer without nodes, of a row of nodes, of the lines into heads, of the top. */
const [EMPTY, ROW, LINES, TOP] = [9, 32, 26, 92];
/** Heads side by side at most, and how far apart. */
const [ABREAST, PITCH] = [6, 42];
/** The part of the width that is kept for them. */
const RESERVED = 0.35;
const LEAST_EDGE = 0.15;
const LEAST_HELD = 0.1;
const MOST_INTO = 4;

/** Edges that are drawn into the nodes that are shown: the largest of each. */
export function drawnEdges(data, nodes) {
  return nodes.flatMap((node) => {
    const edges = data.edgesInto(node).slice(0, MOST_INTO);
    const least = LEAST_EDGE * Math.abs(edges[0]?.value ?? 0);
    return edges.filter(({ value }) => value && Math.abs(value) >= least);
  });
}

/** Tokens whose columns are wanted, the most important first. */
function wantedColumns(data, state, chosen, nodes, edges) {
  const wanted = new Set([...chosen, ...[...state.open].reverse(), data.end]);
  for (const { at } of nodes) wanted.add(at);
  for (const { source } of edges) wanted.add(source);
  const tokens = [...Array(data.tokens).keys()].filter(
    (at) => data.most(at) >= LEAST_HELD * data.largest,
  );
  for (const at of tokens.sort((a, b) => data.most(b) - data.most(a))) wanted.add(at);
  return [...wanted];
}

/** Columns and, between them, gaps of tokens that are folded. */
function folded(data, shown) {
  const columns = [];
  let next = 0;
  for (const at of [...shown].sort((a, b) => a - b)) {
    if (at > next) columns.push({ from: next, to: at - 1 });
    columns.push({ at });
    next = at + 1;
  }
  if (next < data.tokens) columns.push({ from: next, to: data.tokens - 1 });
  return columns;
}

/** What is folded stands for its tokens: edges from them begin there. */
function gapOf(columns, token) {
  return columns.find(({ from, to }) => from <= token && token <= to);
}

function widthOf(columns, narrow) {
  return columns.reduce((sum, { at }) => sum + (at === undefined ? GAP : narrow), LEFT);
}

function columnsThatFit(data, wanted, width) {
  let shown = [];
  let columns = folded(data, shown);
  for (const at of wanted) {
    const more = folded(data, [...shown, at]);
    if (widthOf(more, NARROW) > width && shown.length) continue;
    shown = [...shown, at];
    columns = more;
  }
  return columns;
}

/** By how much columns should be wider, for the heads of a layer to stand side by side. */
function wishesOf(nodes) {
  const wish = new Map();
  const counts = new Map();
  for (const { place, head, at } of nodes) {
    if (head === null) continue;
    const count = (counts.get(`${place} ${at}`) ?? 0) + 1;
    counts.set(`${place} ${at}`, count);
    const wider = Math.max(0, Math.min(count, ABREAST) * PITCH - NARROW);
    wish.set(at, Math.max(wish.get(at) ?? 0, wider));
  }
  return wish;
}

/** Give columns their widths: room for the heads of a layer side by side, then all alike. */
function spread(columns, wish, width) {
  const tokens = columns.filter(({ at }) => at !== undefined);
  let free = Math.max(0, width - widthOf(columns, NARROW));
  const wishes = tokens.map(({ at }) => wish.get(at) ?? 0);
  const wished = wishes.reduce((sum, one) => sum + one, 0);
  const granted = wished > free ? free / wished : 1;
  free -= wished * granted;
  const more = Math.min(WIDE - NARROW, free / Math.max(1, tokens.length));
  for (const column of columns) column.width = GAP;
  tokens.forEach((column, n) => {
    column.width = NARROW + wishes[n] * granted + more;
  });
  const used = columns.reduce((sum, one) => sum + one.width, LEFT);
  let x = LEFT + Math.max(0, (width - used) / 2);
  for (const column of columns) {
    column.x = x + column.width / 2;
    x += column.width;
  }
}

/**
 * Place all that is shown.
 * @param chosen tokens that have to have a column
 * @returns {{columns, byToken, nodes, edges, levels, bottom, width, left}} `levels` is the y of
 *   each depth of the range, `left` the nodes whose columns do not fit
 */
export function arrange(data, state, chosen, nodes, width) {
  const edges = drawnEdges(data, nodes);
  const wanted = wantedColumns(data, state, chosen, nodes, edges);
  const wish = wishesOf(nodes);
  const wished = [...wish.values()].reduce((sum, one) => sum + one, 0);
  const columns = columnsThatFit(data, wanted, width - Math.min(wished, RESERVED * width));
  const byToken = new Map(columns.filter(({ at }) => at !== undefined).map((c) => [c.at, c]));
  const there = nodes.filter(({ at }) => byToken.has(at));
  spread(columns, wish, width);
  const slots = slotsOf(there, byToken);
  const heights = [];
  for (let place = state.first; place <= state.last; place++) {
    const rows = slots.rows.get(place);
    const lines = rows?.heads ? LINES : 0;
    heights.push(rows ? EMPTY + lines + ROW * (rows.heads + rows.mlp) : EMPTY);
  }
  const bottom = TOP + heights.reduce((sum, one) => sum + one, 0);
  const levels = [bottom];
  for (const one of heights) levels.push(levels.at(-1) - one);
  const placed = there.map((node) => {
    const { row, across, of } = slots.at.get(node.name);
    const column = byToken.get(node.at);
    const lines = slots.rows.get(node.place).heads ? LINES : 0;
    const y = levels[node.place - state.first] - EMPTY / 2 - lines - ROW * (row + 0.5);
    const pitch = Math.min(PITCH, column.width / of);
    return { ...node, x: column.x + (across - (of - 1) / 2) * pitch, y };
  });
  const at = new Map(placed.map((node) => [node.name, node]));
  const lines = edges
    .filter(({ node }) => at.has(node.name))
    .map((edge) => ({
      ...edge,
      to: at.get(edge.node.name),
      from: byToken.get(edge.source) ?? gapOf(columns, edge.source),
    }));
  const used = columns.reduce((sum, one) => sum + one.width, LEFT);
  return {
    columns,
    byToken,
    nodes: placed,
    edges: lines,
    levels,
    bottom,
    width: Math.max(width, used),
    left: nodes.length - there.length,
  };
}

/** Rows of each layer: heads, as many side by side as a column holds, and the MLP above them. */
function slotsOf(nodes, byToken) {
  const rows = new Map();
  const at = new Map();
  const cells = new Map();
  for (const node of [...nodes].sort((a, b) => (a.head ?? 0) - (b.head ?? 0))) {
    if (!rows.has(node.place)) rows.set(node.place, { heads: 0, mlp: 0 });
    if (node.head === null) {
      rows.get(node.place).mlp = 1;
      continue;
    }
    const key = `${node.place} ${node.at}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
  }
  for (const cell of cells.values()) {
    const [{ place, at: token }] = cell;
    const each = Math.max(1, Math.floor(byToken.get(token).width / (NODE.width + 2)));
    cell.forEach((node, number) => {
      const row = Math.floor(number / each);
      const of = Math.min(each, cell.length - row * each);
      at.set(node.name, { row, across: number % each, of });
      rows.get(place).heads = Math.max(rows.get(place).heads, row + 1);
    });
  }
  for (const node of nodes) {
    if (node.head === null)
      at.set(node.name, { row: rows.get(node.place).heads, across: 0, of: 1 });
  }
  return { rows, at };
}
