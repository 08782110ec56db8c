// The graph: columns of tokens, the stream of each, and nodes that stand on it, bottom to top.

import { element } from "../words.js";
import { arrange, NODE } from "./layout.js";
import { edgeSentence, nodeSentence, quoted, signed, word } from "./said.js";
import { edgeName } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";
const STREAM = 18;
const EDGE = 9;

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

export class Drawing {
  /** @param act {select(name), open(tokens)} */
  constructor(root, data, act) {
    this.root = root;
    this.data = data;
    this.act = act;
    root.addEventListener("keydown", (event) => this.move(event));
    root.addEventListener("focusin", ({ target }) => this.only(target));
  }

  draw(state, nodes, chosen, marked) {
    const { data, root } = this;
    const width = Math.max(160, root.clientWidth);
    const made = arrange(data, state, chosen, nodes, width);
    this.made = made;
    const focused = root.contains(document.activeElement)
      ? document.activeElement.dataset.key
      : null;
    const height = made.bottom + 112;
    const svg = shape("svg", { width: made.width, height, "aria-hidden": "true" });
    svg.append(this.pattern(), ...this.layers(state), ...this.streams(state));
    svg.append(...this.lines(state, marked), ...this.intoEnd(state));
    const items = [...made.columns.map((column) => this.column(state, column))];
    items.push(
      ...[...made.nodes].sort((a, b) => b.y - a.y).map((n) => this.node(state, n, marked)),
    );
    items.push(this.end(state));
    root.replaceChildren(svg, ...items);
    root.style.height = `${height}px`;
    const again = items.find((item) => item.dataset.key === focused) ?? null;
    this.only(again ?? items.find((item) => item.dataset.key === this.last) ?? items.at(-1));
    if (focused !== null) (again ?? items.at(-1)).focus({ preventScroll: true });
  }

  // --- lines --------------------------------------------------------------------------------

  /** Stripes: what is negative is told by more than its colour. */
  pattern() {
    const stripe = shape("path", { d: "M-1 4L4 -1M2 7L7 2", class: "stripe" });
    const pattern = shape(
      "pattern",
      { id: "stripes", width: 6, height: 6, patternUnits: "userSpaceOnUse" },
      stripe,
    );
    return shape("defs", {}, pattern);
  }

  /** A line and a number at some of the layers. */
  layers(state) {
    const { levels, width } = this.made;
    const found = [];
    let free = Number.POSITIVE_INFINITY;
    for (let place = state.first; place <= state.last; place++) {
      const y = (levels[place - state.first] + levels[place - state.first + 1]) / 2;
      const line = levels[place - state.first];
      found.push(shape("line", { x1: 30, x2: width, y1: line, y2: line, class: "level" }));
      if (y > free - 14) continue;
      free = y;
      const text = shape("text", { x: 26, y: y + 4, class: "layer" });
      text.append(String(this.data.page.layers[place].index));
      found.push(text);
    }
    return found;
  }

  /** Of each column how much its token has at each depth. */
  streams(state) {
    const { data, made } = this;
    return made.columns.flatMap(({ at, x }) => {
      if (at === undefined) return [];
      const top = made.levels.at(-1);
      const stem = { x1: x, x2: x, y1: made.bottom, y2: top, class: "stem" };
      const sides = [1, -1].map((sign) => {
        const out = made.levels.map((y, step) => {
          const part = Math.max(0, sign * data.relevance(state.first + step, at));
          return [(STREAM / 2) * (part / data.largest), y];
        });
        const points = [
          ...out.map(([half, y]) => [x + half, y]),
          ...out.reverse().map(([half, y]) => [x - half, y]),
        ];
        const there = out.some(([half]) => half > 0.05);
        return (
          there &&
          shape("polygon", {
            points: points.map(([a, b]) => `${a.toFixed(2)},${b.toFixed(2)}`).join(" "),
            class: `stream ${sign > 0 ? "positive" : "negative"}`,
          })
        );
      });
      return [shape("line", stem), ...sides.filter(Boolean)];
    });
  }

  lines(state, marked) {
    const { data, made } = this;
    const most = Math.max(...made.edges.map(({ value }) => Math.abs(value)), data.unit / 4);
    return made.edges.flatMap((edge) => {
      const { to, from, value } = edge;
      const y0 = made.levels[edge.node.place - state.first];
      const y1 = to.y + NODE.height / 2;
      const bend = (y0 - y1) * 0.75;
      const d =
        from.at === edge.node.at && from.x === to.x
          ? `M${from.x} ${y0}L${to.x} ${y1}`
          : `M${from.x} ${y0}C${from.x} ${y0 - bend} ${to.x} ${y1 + bend} ${to.x} ${y1}`;
      const name = edgeName(edge);
      const on = state.selected === name || state.selected === edge.node.name;
      const off = !on && state.selected !== null && !marked.has(edge.node.name);
      const line = shape("path", {
        d,
        class: `edge ${value < 0 ? "negative" : "positive"}${on ? " on" : ""}${off ? " off" : ""}`,
        "stroke-width": (1 + (EDGE * Math.abs(value)) / most).toFixed(1),
      });
      const area = shape(
        "path",
        { d, class: "area" },
        shape("title", {}, edgeSentence(data, edge)),
      );
      area.addEventListener("click", () => this.act.select(name));
      const mark = [];
      if (edge.read !== null && Math.abs(edge.value - edge.read) > Math.abs(edge.read)) {
        const [x, y] = [(from.x + to.x) / 2, (y0 + y1) / 2];
        mark.push(shape("path", { d: `M${x - 5} ${y}l5 -5l5 5l-5 5z`, class: "looks" }));
      }
      return [line, ...mark, area];
    });
  }

  /** From the tops of the streams to the prediction. */
  intoEnd(state) {
    const { data, made } = this;
    if (state.last !== data.layers - 1) return [];
    const y = 36;
    return made.columns.flatMap((column) => {
      if (column.at === undefined) return [];
      const value = data.relevance(data.layers, column.at);
      if (Math.abs(value) < 0.02 * data.largest) return [];
      const top = made.levels.at(-1);
      const x = Math.min(Math.max(column.x, this.endX() - 60), this.endX() + 60);
      return shape("path", {
        d: `M${column.x} ${top}C${column.x} ${top - 14} ${x} ${y + 14} ${x} ${y}`,
        class: `edge ${value < 0 ? "negative" : "positive"}`,
        "stroke-width": (1 + (STREAM - 1) * (Math.abs(value) / data.largest)).toFixed(1),
      });
    });
  }

  // --- buttons ------------------------------------------------------------------------------

  button(key, x, y, about, attributes, ...children) {
    const made = element(
      "button",
      { type: "button", tabindex: "-1", "aria-label": about, title: about, ...attributes },
      ...children,
    );
    made.dataset.key = key;
    made.style.left = `${x}px`;
    made.style.top = `${y}px`;
    return made;
  }

  column(state, column) {
    const { data, made } = this;
    if (column.at === undefined) return this.gap(column);
    const name = `t${column.at}`;
    const about = `token ${quoted(data, column.at)}`;
    const text = element("bdi", {}, word(data.page.tokens, column.at).trim() || "␣");
    const { differs, other } = data.page;
    const mark = other === "the other text" && differs.includes(column.at) ? " differs" : "";
    const pressed = String(state.selected === name);
    const button = this.button(
      name,
      column.x,
      made.bottom + 6,
      about,
      { class: `column${mark}`, "aria-pressed": pressed },
      text,
    );
    button.style.maxWidth = `${Math.max(22, column.width - 4)}px`;
    if (column.width < 64) button.classList.add("upright");
    button.addEventListener("click", () => this.act.select(name));
    return button;
  }

  gap({ from, to, x }) {
    const count = to - from + 1;
    const words = count === 1 ? "1 token" : `${count} tokens`;
    const about = `${words} that are folded, ${from} to ${to}: show`;
    const button = this.button(
      `gap${from}`,
      x,
      this.made.bottom + 6,
      about,
      { class: "gap" },
      `… ${words}`,
    );
    button.addEventListener("click", () => {
      const tokens = [...Array(count).keys()].map((n) => from + n);
      tokens.sort((a, b) => this.data.most(b) - this.data.most(a));
      this.act.open(tokens.slice(0, 4));
    });
    return button;
  }

  node(state, node, marked) {
    const { data } = this;
    const strength = Math.min(1, Math.abs(node.value) / data.unit);
    const kind = node.head === null ? "mlp" : "head";
    const sign = node.value < 0 ? "negative" : "positive";
    const classes = `node ${kind} ${sign}${marked.has(node.name) ? " marked" : ""}`;
    const label = node.head === null ? `M${node.index}` : `${node.index}.${node.head}`;
    const about = nodeSentence(data, node);
    const pressed = String(state.selected === node.name);
    const button = this.button(
      node.name,
      node.x,
      node.y,
      about,
      { class: classes, "aria-pressed": pressed },
      label,
    );
    button.style.setProperty("--strength", `${Math.round(12 + 34 * strength)}%`);
    button.addEventListener("click", () => this.act.select(node.name));
    return button;
  }

  endX() {
    const { made, data } = this;
    const x = made.byToken.get(data.end)?.x ?? made.width / 2;
    const half = Math.min(170, (made.width - 12) / 2);
    return Math.min(Math.max(x, half + 4), made.width - half - 4);
  }

  end(state) {
    const { page } = this.data;
    const text = page.favours
      ? `${signed(page.change)} for ${page.favours[0]}, not ${page.favours[1]}`
      : `${signed(page.change)}, the number`;
    const pressed = String(state.selected === "end");
    const about = `the prediction, ${text}`;
    const attributes = { class: "end", "aria-pressed": pressed };
    const button = this.button("end", this.endX(), 20, about, attributes, element("bdi", {}, text));
    button.style.maxWidth = `${Math.min(340, this.made.width - 8)}px`;
    button.addEventListener("click", () => this.act.select("end"));
    return button;
  }

  // --- keys ---------------------------------------------------------------------------------

  /** Go to the button that Tab reaches. */
  focus() {
    this.root.querySelector("button[tabindex='0']").focus();
  }

  /** One button of the graph is reached by Tab, the others from it by arrows. */
  only(item) {
    if (!item?.dataset?.key) return;
    for (const one of this.root.querySelectorAll("button[tabindex='0']")) one.tabIndex = -1;
    item.tabIndex = 0;
    this.last = item.dataset.key;
  }

  move(event) {
    const way = {
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
    }[event.key];
    if (event.key === "Escape") this.act.select(null);
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const from = middle(document.activeElement);
    let best = null;
    for (const item of this.root.querySelectorAll("button")) {
      const to = middle(item);
      const [dx, dy] = [to.x - from.x, to.y - from.y];
      const ahead = dx * way[0] + dy * way[1];
      if (ahead < 2) continue;
      const away = ahead + 3 * Math.abs(dx * way[1] + dy * way[0]);
      if (best === null || away < best.away) best = { item, away };
    }
    best?.item.focus();
  }
}

function middle(item) {
  const { left, top, width, height } = item.getBoundingClientRect();
  return { x: left + width / 2, y: top + height / 2 };
}

/** What the graph shows, in sentences. */
export function shownText(made, count) {
  const shown = made.nodes.length;
  const folded = made.columns.filter(({ at }) => at === undefined);
  const tokens = folded.reduce((sum, { from, to }) => sum + to - from + 1, 0);
  const first = made.left
    ? `${shown} of the ${count} strongest heads and MLPs, and their strongest edges: the columns of the others do not fit here, they stand in the table.`
    : `The ${shown} strongest heads and MLPs, and their strongest edges.`;
  if (!tokens) return first;
  return `${first} ${tokens} ${tokens === 1 ? "token is" : "tokens are"} folded.`;
}
