// The composed map of one layer beside the direct one, and their difference.

import { channels, inks, sized } from "./ink.js";
import { element } from "./words.js";

const LABELS = 84;
const LEGIBLE = 13;

export class MapsView {
  /** @param {(cell: {target: number, source: number}|null) => void} pointed */
  constructor(root, model, pointed) {
    this.root = root;
    this.model = model;
    this.layer = 0;
    this.cell = null;
    this.pointed = pointed;
    const names = ["Composed", ...(model.hasDirect ? ["Direct", "Direct − composed"] : [])];
    if (model.hasInfluence) names.push("Influence: how much, whichever way");
    this.panels = names.map((name) => {
      const canvas = element("canvas");
      const caption = element("figcaption", {}, name);
      root.append(element("figure", {}, caption, canvas));
      canvas.addEventListener("pointermove", (event) => this.point(event, canvas));
      canvas.addEventListener("click", (event) => this.point(event, canvas));
      return { name, canvas, caption };
    });
    root.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shares of the layer as the panels show them. */
  matrices() {
    const { model, layer } = this;
    const maps = [model.matrices[layer]];
    if (model.hasDirect) {
      const direct = model.directMap(layer).matrix;
      maps.push(
        direct,
        direct.map((share, place) => share - maps[0][place]),
      );
    }
    if (model.hasInfluence) maps.push(model.influenceMap(layer).matrix);
    return maps;
  }

  draw() {
    const { tokens } = this.model;
    this.ink = inks();
    const matrices = this.matrices();
    const difference = 2;
    this.limit = limitOf(
      matrices.filter((_, number) => number !== difference),
      tokens,
    );
    this.panels.forEach(({ canvas }, number) => {
      const room = Math.min(canvas.parentElement.clientWidth - 1, 560);
      this.margin = (room - LABELS) / tokens >= LEGIBLE ? LABELS : 0;
      this.pitch = Math.max(2, Math.min(28, Math.floor((room - this.margin) / tokens)));
      const side = this.pitch * tokens;
      const context = sized(canvas, side + this.margin, side + this.margin);
      if (this.margin) this.drawLabels(context, side);
      context.translate(this.margin, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.picture(matrices[number], tokens), 0, 0, side, side);
      context.strokeStyle = this.ink.rule;
      context.strokeRect(0.5, 0.5, side - 1, side - 1);
      if (this.cell) this.drawCross(context, side);
    });
  }

  /** Targets at the left, sources below. */
  drawLabels(context, side) {
    context.fillStyle = this.ink.ink;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    const width = this.margin - 6;
    this.model.page.tokens.forEach((label, token) => {
      const text = shortened(context, label, width);
      const middle = (token + 0.5) * this.pitch;
      context.fillText(text, width, middle);
      context.save();
      context.translate(this.margin + middle, side + 6);
      context.rotate(-Math.PI / 2);
      context.fillText(text, 0, 0);
      context.restore();
    });
  }

  picture(matrix, tokens) {
    const small = element("canvas", { width: tokens, height: tokens });
    const context = small.getContext("2d");
    const image = context.createImageData(tokens, tokens);
    const paper = channels(this.ink.paper);
    const positive = channels(this.ink.positive);
    const negative = channels(this.ink.negative);
    const faint = channels(this.ink.faint);
    matrix.forEach((share, place) => {
      const [target, source] = [Math.floor(place / tokens), place % tokens];
      const grey = share !== 0 && this.model.unlisted(this.layer, target, source);
      const part = grey ? 1 : Math.min(1, Math.abs(share) / this.limit);
      const full = grey ? faint : share < 0 ? negative : positive;
      for (let channel = 0; channel < 3; channel++) {
        image.data[4 * place + channel] = paper[channel] + part * (full[channel] - paper[channel]);
      }
      image.data[4 * place + 3] = 255;
    });
    context.putImageData(image, 0, 0);
    return small;
  }

  drawCross(context, side) {
    const { target, source } = this.cell;
    context.strokeStyle = this.ink.focus;
    context.lineWidth = 1.5;
    context.strokeRect(0.75, target * this.pitch, side - 1.5, this.pitch);
    context.strokeRect(source * this.pitch, 0.75, this.pitch, side - 1.5);
  }

  point(event, canvas) {
    const box = canvas.getBoundingClientRect();
    const { tokens } = this.model;
    const at = (offset) => Math.max(0, Math.min(tokens - 1, Math.floor(offset / this.pitch)));
    const source = at(event.clientX - box.left - this.margin);
    this.show({ target: at(event.clientY - box.top), source });
  }

  key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") this.show(null);
    else if (event.key in moves) {
      const [down, right] = moves[event.key];
      const most = this.model.tokens - 1;
      const within = (value) => Math.max(0, Math.min(most, value));
      const { target, source } = this.cell ?? { target: -down, source: -right };
      this.show({ target: within(target + down), source: within(source + right) });
    } else return;
    event.preventDefault();
  }

  show(cell) {
    this.cell = cell;
    this.draw();
    this.pointed(cell);
  }
}

/** As much of a label as fits. */
function shortened(context, label, width) {
  if (context.measureText(label).width <= width) return label;
  const characters = [...label];
  const text = () => `${characters.join("")}…`;
  while (characters.length > 1 && context.measureText(text()).width > width) characters.pop();
  return text();
}

/** The strongest shares between different tokens but for one in a hundred. */
function limitOf(matrices, tokens) {
  const others = matrices.flatMap((matrix) =>
    Array.from(matrix, Math.abs).filter((_, place) => place % (tokens + 1) !== 0),
  );
  others.sort((a, b) => b - a);
  return others[Math.floor(others.length / 100)] || 1;
}
