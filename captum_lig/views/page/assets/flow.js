// The flow: tokens in rows, one column before and after each layer, lines between them.

import { inks, sized } from "./ink.js";

const TOP = 26;
const MARGIN = 18;
const LEVELS = 8;
const NARROWEST = 17;
const NEAR_TOKEN = 9;
const NEAR_LINE = 5;

export class FlowView {
  /** @param {(place: object|null, event: object) => void} pointed @param {Function} pinned */
  constructor(root, model, { pointed, pinned, released }) {
    this.root = root;
    this.model = model;
    this.cursor = null;
    this.at = null;
    this.linesCanvas = root.querySelector("#lines");
    this.marksCanvas = root.querySelector("#marks");
    this.names = [...root.querySelectorAll(".names")];
    for (const list of this.names) {
      for (const label of model.page.tokens) {
        const item = document.createElement("li");
        const text = document.createElement("bdi");
        text.textContent = label;
        item.title = label;
        item.append(text);
        list.append(item);
      }
    }
    const box = this.marksCanvas;
    box.addEventListener("pointermove", (event) => this.point(event, pointed));
    box.addEventListener("pointerleave", (event) => this.show(null, event, pointed));
    box.addEventListener("click", (event) => {
      const place = this.find(event);
      if (place?.token !== undefined) pinned(place);
    });
    root.addEventListener("keydown", (event) => this.key(event, pointed, pinned, released));
    root.addEventListener("blur", (event) => this.show(null, event, pointed));
    root.addEventListener("focus", () => {
      if (root.matches(":focus-visible")) this.move({}, pointed);
    });
  }

  // --- places -------------------------------------------------------------------------------

  layout() {
    const { model, root } = this;
    const { tokens } = model;
    this.row = Math.max(13, Math.min(34, Math.floor(720 / tokens)));
    this.height = TOP + tokens * this.row + 6;
    for (const list of this.names) {
      list.style.paddingTop = `${TOP}px`;
      list.style.lineHeight = `${this.row}px`;
    }
    const taken = this.names.reduce((sum, list) => sum + list.offsetWidth, 0);
    const room = root.clientWidth - taken - 6 - 2 * MARGIN;
    const gaps = model.columns - 1;
    this.pitch = Math.max(NARROWEST, Math.min(260, room / gaps));
    this.width = gaps * this.pitch + 2 * MARGIN;
    this.widest = Math.min(9, this.row * 0.45, Math.max(3, this.pitch * 0.12));
  }

  x(column) {
    return MARGIN + (column - this.model.state.first) * this.pitch;
  }

  y(token) {
    return TOP + (token + 0.5) * this.row;
  }

  /** What is under the pointer: {column, token} or {line}. */
  find(event) {
    const box = this.marksCanvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const { first, last } = this.model.state;
    const token = Math.floor((y - TOP) / this.row);
    const column = first + Math.round((x - MARGIN) / this.pitch);
    const inside = token >= 0 && token < this.model.tokens && column >= first && column <= last + 1;
    if (inside && Math.abs(x - this.x(column)) <= NEAR_TOKEN) return { column, token };
    const along = (x - MARGIN) / this.pitch;
    const layer = first + Math.floor(along);
    const t = along - Math.floor(along);
    const ease = t * t * (3 - 2 * t);
    let best = null;
    let nearest = NEAR_LINE;
    for (const line of this.byLayer?.get(layer) ?? []) {
      const from = this.y(line.source);
      const away = Math.abs(from + (this.y(line.target) - from) * ease - y);
      if (away < nearest - 0.5) [best, nearest] = [line, away];
    }
    return best && { line: best };
  }

  // --- drawing ------------------------------------------------------------------------------

  draw() {
    this.layout();
    this.ink = inks();
    const { shown, left } = this.model.lines();
    this.lines = shown;
    this.left = left;
    this.byLayer = grouped(shown);
    this.limit = limitOf(shown);
    const context = sized(this.linesCanvas, this.width, this.height);
    this.drawFrame(context);
    this.drawLines(context, shown);
    this.drawTokens(context);
    this.drawMarks();
  }

  drawFrame(context) {
    const { first, last } = this.model.state;
    context.fillStyle = this.ink.soft;
    context.strokeStyle = this.ink.faint;
    context.lineWidth = 1;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    const every = Math.ceil(20 / this.pitch);
    for (let column = first; column <= last + 1; column++) {
      const x = this.x(column);
      context.beginPath();
      context.moveTo(x, TOP);
      context.lineTo(x, this.height - 6);
      context.stroke();
      if (column > last || (column - first) % every) continue;
      const { index } = this.model.page.layers[column];
      context.fillText(this.pitch < 56 ? index : `layer ${index}`, x + this.pitch / 2, 16);
    }
  }

  /** By level of strength, the weakest first: lines cost no element, and few changes of style. */
  drawLines(context, lines) {
    const bins = Array.from({ length: LEVELS }, () => ({ own: [], positive: [], negative: [] }));
    for (const line of lines) {
      const kind = line.source === line.target ? "own" : line.weight < 0 ? "negative" : "positive";
      bins[this.level(line)][kind].push(line);
    }
    bins.forEach((kinds, level) => {
      for (const [kind, found] of Object.entries(kinds)) {
        if (found.length) this.stroke(context, found, kind, level);
      }
    });
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  /** A token's lines to itself are measured by the whole, all others by the strongest of them. */
  level(line) {
    const whole = line.source === line.target ? 1 : this.limit;
    return Math.min(LEVELS - 1, Math.floor((LEVELS * Math.abs(line.weight)) / whole));
  }

  stroke(context, lines, kind, level, more = 0) {
    context.strokeStyle = this.ink[kind];
    context.globalAlpha = more ? 1 : 0.35 + (0.6 * (level + 1)) / LEVELS;
    context.lineWidth = 0.7 + ((this.widest - 0.7) * level) / (LEVELS - 1) + more;
    context.setLineDash(kind === "negative" ? [6, 3] : []);
    for (const line of lines) {
      context.beginPath(); // a path of its own for each is faster than a long one
      this.trace(context, line.layer, line.source, line.target);
      context.stroke();
    }
  }

  /** A curve that moves evenly to the right, so that a pointer finds it without searching. */
  trace(context, layer, source, target) {
    const [x, end] = [this.x(layer), this.x(layer + 1)];
    const [y, to] = [this.y(source), this.y(target)];
    const third = (end - x) / 3;
    context.moveTo(x, y);
    context.bezierCurveTo(x + third, y, end - third, to, end, to);
  }

  drawTokens(context) {
    const { state, carried, certificates, tokens } = this.model;
    const most = Math.min(8, this.row / 2 - 1.5);
    for (let column = state.first; column <= state.last + 1; column++) {
      for (let token = 0; token < tokens; token++) {
        const value = carried?.[column][token] ?? 0;
        const radius = carried ? 1.2 + most * Math.sqrt(Math.min(1, Math.abs(value))) : 2;
        context.fillStyle = carried && value !== 0 ? this.sign(value) : this.ink.soft;
        context.beginPath();
        context.arc(this.x(column), this.y(token), radius, 0, 2 * Math.PI);
        context.fill();
        if (column > 0 && certificates[column - 1].flagged[token]) {
          this.diamond(context, column, token);
        }
      }
    }
  }

  diamond(context, column, token) {
    const [x, y, r] = [this.x(column), this.y(token), 5.5];
    context.strokeStyle = this.ink.bad;
    context.lineWidth = 1.8;
    context.beginPath();
    context.moveTo(x, y - r);
    context.lineTo(x + r, y);
    context.lineTo(x, y + r);
    context.lineTo(x - r, y);
    context.closePath();
    context.stroke();
  }

  sign(value) {
    return value < 0 ? this.ink.negative : this.ink.positive;
  }

  /** What changes with the pointer, on a canvas of its own. */
  drawMarks() {
    const context = sized(this.marksCanvas, this.width, this.height);
    const { state, routes } = this.model;
    const place = this.at;
    if (place !== null || state.route !== null) this.veil(context);
    if (place?.token !== undefined) this.drawOwnLines(context, place);
    if (place?.line) this.drawBright(context, [place.line]);
    if (place === null) {
      const drawn = state.route === null ? [...routes].reverse() : [routes[state.route]];
      for (const route of drawn) this.drawRoute(context, route, state.route !== null);
    }
    if (state.pin) this.ring(context, state.pin, this.ink.ink);
    if (this.cursor && document.activeElement === this.root) {
      this.ring(context, this.cursor, this.ink.focus);
    }
    this.markNames(place);
  }

  veil(context) {
    context.globalAlpha = 0.72;
    context.fillStyle = this.ink.paper;
    context.fillRect(0, TOP - 4, this.width, this.height);
    context.globalAlpha = 1;
  }

  drawOwnLines(context, { column, token }) {
    const before = (this.byLayer.get(column - 1) ?? []).filter((line) => line.target === token);
    const after = (this.byLayer.get(column) ?? []).filter((line) => line.source === token);
    this.drawBright(context, [...before, ...after]);
  }

  drawBright(context, lines) {
    for (const line of [...lines].reverse()) {
      const kind = line.source === line.target ? "own" : line.weight < 0 ? "negative" : "positive";
      this.stroke(context, [line], kind, this.level(line), 0.8);
    }
    context.setLineDash([]);
  }

  drawRoute(context, route, named) {
    const { first } = this.model.state;
    const strongest = Math.abs(this.model.routes[0].share);
    const width = 1.5 + 2 * Math.sqrt(Math.abs(route.share) / strongest);
    for (const [color, more] of [
      [this.ink.paper, 5],
      [this.ink.ink, 2],
      [this.sign(route.share), 0],
    ]) {
      context.beginPath();
      route.heads.forEach((_, step) => {
        this.trace(context, first + step, route.tokens[step], route.tokens[step + 1]);
      });
      context.strokeStyle = color;
      context.lineWidth = width + more;
      context.setLineDash(more === 0 && route.share < 0 ? [6, 3] : []);
      context.stroke();
    }
    context.setLineDash([]);
    if (!named || this.pitch < 30) return;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    route.heads.forEach((head, step) => {
      if (head < 0) return;
      const x = this.x(first + step) + this.pitch / 2;
      const y = (this.y(route.tokens[step]) + this.y(route.tokens[step + 1])) / 2;
      const width = context.measureText(`h${head}`).width + 6;
      context.fillStyle = this.ink.paper;
      context.fillRect(x - width / 2, y - 8, width, 16);
      context.fillStyle = this.ink.ink;
      context.fillText(`h${head}`, x, y + 4);
    });
  }

  /** Scroll sideways so far that a column can be seen. */
  reveal(column) {
    const x = this.x(column);
    const taken = this.names[0].offsetWidth;
    this.root.scrollLeft = clamp(this.root.scrollLeft, x + taken - this.root.clientWidth + 160, x);
  }

  ring(context, { column, token }, color) {
    context.strokeStyle = color;
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(this.x(column), this.y(token), Math.max(6, this.row / 2 - 1), 0, 2 * Math.PI);
    context.stroke();
  }

  markNames(place) {
    const marked = place?.line ? [place.line.source, place.line.target] : [place?.token];
    marked.push(this.model.state.pin?.token);
    for (const list of this.names) {
      [...list.children].forEach((item, token) => {
        item.classList.toggle("at", marked.includes(token));
      });
    }
  }

  // --- pointer and keys -----------------------------------------------------------------------

  point(event, pointed) {
    if (event.pointerType !== "touch") this.show(this.find(event), event, pointed);
  }

  show(place, event, pointed) {
    if (same(place, this.at) && event.type === "pointermove") {
      if (place) pointed(place, event);
      return;
    }
    this.at = place;
    this.drawMarks();
    pointed(place, event);
  }

  key(event, pointed, pinned, released) {
    const { first, last } = this.model.state;
    const moves = {
      ArrowLeft: { column: -1 },
      ArrowRight: { column: 1 },
      ArrowUp: { token: -1 },
      ArrowDown: { token: 1 },
      PageUp: { token: -8 },
      PageDown: { token: 8 },
      Home: { column: first - last - 1 },
      End: { column: last - first + 1 },
    };
    if (event.key in moves) this.move(moves[event.key], pointed);
    else if (["Enter", " ", "Escape"].includes(event.key)) {
      this.at = null;
      pointed(null, event);
      if (event.key === "Escape") released();
      else pinned(this.cursor ?? this.start());
    } else return;
    event.preventDefault();
  }

  start() {
    return this.model.state.pin ?? { column: this.model.state.last + 1, token: 0 };
  }

  move({ column = 0, token = 0 }, pointed) {
    const { state, tokens } = this.model;
    const from = this.cursor ?? this.start();
    this.cursor = {
      column: clamp(from.column + column, state.first, state.last + 1),
      token: clamp(from.token + token, 0, tokens - 1),
    };
    this.at = this.cursor;
    const [x, y] = [this.x(this.cursor.column), this.y(this.cursor.token)];
    this.reveal(this.cursor.column);
    const box = this.marksCanvas.getBoundingClientRect();
    if (box.top + y < 40) window.scrollBy(0, box.top + y - 120);
    else if (box.top + y > window.innerHeight - 40) {
      window.scrollBy(0, box.top + y - window.innerHeight + 120);
    }
    this.drawMarks();
    const now = this.marksCanvas.getBoundingClientRect();
    pointed(this.cursor, { type: "key", clientX: now.left + x, clientY: now.top + y });
  }
}

function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}

function same(a, b) {
  if (a === null || b === null) return a === b;
  return a.line === b.line && a.column === b.column && a.token === b.token;
}

function grouped(lines) {
  const found = new Map();
  for (const line of lines) {
    if (!found.has(line.layer)) found.set(line.layer, []);
    found.get(line.layer).push(line);
  }
  return found;
}

/** What full width and full colour mean: the strongest lines but for one in a hundred, 1 at most. */
function limitOf(lines) {
  const others = lines.filter((line) => line.source !== line.target);
  if (others.length === 0) return 1;
  return Math.min(1, Math.abs(others[Math.floor(others.length / 100)].weight));
}
