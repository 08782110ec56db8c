// What is shown: the state that the controls choose, and what follows from it.

import {
  attention,
  carried,
  certificate,
  composed,
  direct,
  distances,
  influence,
  partOfFirst,
  shares,
} from "./graph.js";
import { strongestRoutes } from "./routes.js";
import { percent, size, WHOLE } from "./words.js";

/** More lines than these are no picture any more, and slow to draw: the weaker ones are left out. */
const MOST_LINES = 6000;
/** The tolerance that rows are held to where the attribution had none, as in the library. */
const TOLERANCE = 1e-3;
const LINES_PER_TOKEN = 2;
/** The first token is a sink where it is more than this part of what the others get. */
const DOMINATES = 0.5;

export class Model {
  constructor(page) {
    this.page = page;
    this.tokens = page.tokens.length;
    this.tolerance = page.tolerance ?? TOLERANCE;
    this.certificates = page.layers.map((layer) => certificate(layer, this.tokens, this.tolerance));
    this.cache = new Map();
    this.reset();
  }

  reset() {
    this.state = {
      first: 0,
      last: this.page.layers.length - 1,
      boundary: this.page.opening ?? "composed",
      rule: this.page.rule,
      head: null,
      threshold: 0,
      own: true,
      hideFirst: this.page.hide_first_token ?? false,
      pin: null,
      source: null,
      count: 5,
      route: null,
    };
    this.state.threshold = this.usualThreshold();
  }

  /** Change the state; a pinned token stays within the range of layers. */
  set(change) {
    const state = Object.assign(this.state, { route: null }, change);
    if (!this.byHead) state.head = null;
    if (state.pin === null) return;
    const column = Math.max(state.first, Math.min(state.last + 1, state.pin.column));
    state.pin = { ...state.pin, column };
  }

  get columns() {
    return this.state.last - this.state.first + 2;
  }

  get hasDirect() {
    return this.page.layers.every((layer) => layer.direct);
  }

  get hasInfluence() {
    return this.page.layers.every((layer) => layer.influence);
  }

  /** Whether the boundary that is shown can be taken apart by head. */
  get byHead() {
    return !["direct", "influence"].includes(this.state.boundary);
  }

  /** Whether shares have a sign; lengths have none. */
  get signed() {
    return this.state.boundary !== "influence";
  }

  /** A share of the boundary that is shown, as a person reads it. */
  said(share) {
    return this.signed ? percent(share) : size(share);
  }

  /** The rule that is at work. */
  get rule() {
    return this.state.rule;
  }

  kept(key, make) {
    if (!this.cache.has(key)) this.cache.set(key, make());
    return this.cache.get(key);
  }

  /** Shares of every layer by the rule. */
  get shares() {
    const rule = this.page.rules.find(({ name }) => name === this.rule);
    return this.kept(`shares ${rule.name}`, () =>
      this.page.layers.map((layer) => shares(layer, this.tokens, rule)),
    );
  }

  /** The attribution of a line, signed. */
  value(layer, target, share) {
    return share * this.map(layer).size[target];
  }

  /** What a share is a share of. */
  get whole() {
    return WHOLE[this.state.boundary];
  }

  /** Composed maps of every layer by the rule, all heads. */
  get matrices() {
    return this.kept(`maps ${this.rule}`, () =>
      this.shares.map((share) => composed(share, this.tokens)),
    );
  }

  /** The direct map of one layer as shares. */
  directMap(number) {
    return this.kept(`direct ${number}`, () => direct(this.page.layers[number], this.tokens));
  }

  /** The lengths of one layer as shares. */
  influenceMap(number) {
    return this.kept(`influence ${number}`, () => influence(this.page.layers[number], this.tokens));
  }

  /** The map of one layer that the lines are drawn of: {matrix, size}. */
  map(number) {
    const { rule } = this;
    const { boundary, head } = this.state;
    if (boundary === "direct") return this.directMap(number);
    if (boundary === "influence") return this.influenceMap(number);
    if (boundary === "attention") {
      return this.kept(`attention ${number} ${head}`, () =>
        attention(this.page.layers[number], this.tokens, this.headOf(number)),
      );
    }
    const share = this.shares[number];
    if (head === null) return { matrix: this.matrices[number], size: share.size };
    return this.kept(`head ${rule} ${number} ${head}`, () => ({
      matrix: composed(share, this.tokens, this.headOf(number)),
      size: share.size,
    }));
  }

  /** The chosen head; a layer that has fewer shows none, through an index past the last. */
  headOf(number) {
    const { head } = this.state;
    return head === null ? null : Math.min(head, this.page.layers[number].heads);
  }

  /** Distance of the composed from the direct map of a layer, by target; null without one. */
  distances(number) {
    const layer = this.page.layers[number];
    if (!layer.direct) return null;
    return this.kept(`distances ${this.rule} ${number}`, () =>
      distances(layer, this.shares[number], this.matrices[number], this.tokens),
    );
  }

  /** Mean distance of a layer over the targets that have one. */
  distance(number) {
    const all = this.distances(number)?.filter((value) => !Number.isNaN(value)) ?? [];
    return all.length ? all.reduce((sum, value) => sum + value, 0) / all.length : Number.NaN;
  }

  /** The same over all layers: the median. */
  get offBy() {
    const all = this.page.layers
      .map((_, number) => this.distance(number))
      .filter((value) => !Number.isNaN(value))
      .sort((a, b) => a - b);
    const half = Math.floor(all.length / 2);
    return all.length % 2 ? all[half] : (all[half - 1] + all[half]) / 2;
  }

  /** Where the first token dominates: {part, layers}, the mean part there; null if nowhere. */
  get sink() {
    if (this.state.boundary === "attention") return null;
    const found = [];
    this.page.layers.forEach((layer, number) => {
      const part = partOfFirst(this.map(number).matrix, this.tokens, layer.one_source);
      if (part > DOMINATES) found.push({ index: layer.index, part });
    });
    if (found.length === 0) return null;
    const part = found.reduce((sum, one) => sum + one.part, 0) / found.length;
    return { part, layers: found.map(({ index }) => index) };
  }

  /** Whether a link is none to list: it has no other source, or the first token is hidden. */
  unlisted(layer, target, source) {
    if (target === source) return false;
    if (this.state.hideFirst && source === 0) return true;
    return this.page.layers[layer].one_source?.[target] === 1;
  }

  /** Part of the heads in what reached the targets of a layer. */
  viaHeads(number) {
    const { mlp, residual } = this.page.layers[number];
    const sum = (values) => values.reduce((total, value) => total + Math.abs(value), 0);
    const [heads, past] = [sum(mlp), sum(residual)];
    return heads + past > 0 ? heads / (heads + past) : 0;
  }

  /** What the pinned token carries, by column; null if none is pinned. */
  get carried() {
    const { pin, first, last } = this.state;
    if (pin === null) return null;
    return this.kept(`carried ${this.rule} ${pin.column} ${pin.token} ${first} ${last}`, () =>
      carried(this.matrices, this.tokens, pin, first, last),
    );
  }

  /** The strongest routes through the pinned token. */
  get routes() {
    const { pin, first, last, source, count } = this.state;
    if (pin === null) return [];
    const key = `routes ${this.rule} ${pin.column} ${pin.token} ${first} ${last} ${source} ${count}`;
    return this.kept(key, () => strongestRoutes(this.shares, pin, first, last, source, count));
  }

  /**
   * By how much the lines of a layer count, by their target or by their source: all alike, and with
   * a pinned token by what that end carries of it. The other boundaries do not go on from layer
   * to layer: there the pinned token's own lines count alone.
   */
  weights(layer) {
    const { pin, boundary } = this.state;
    if (pin === null) return { below: true, values: new Float64Array(this.tokens).fill(1) };
    const below = layer < pin.column;
    const column = below ? layer + 1 : layer;
    if (boundary === "composed") return { below, values: this.carried[column] };
    const values = new Float64Array(this.tokens);
    if (column === pin.column) values[pin.token] = 1;
    return { below, values };
  }

  /** Look at every line that the state asks for. */
  visit(look) {
    const { first, last, threshold, own } = this.state;
    for (let layer = first; layer <= last; layer++) {
      const { matrix } = this.map(layer);
      const { below, values } = this.weights(layer);
      for (let target = 0, place = 0; target < this.tokens; target++) {
        for (let source = 0; source < this.tokens; source++, place++) {
          if (!own && target === source) continue;
          if (this.unlisted(layer, target, source)) continue;
          const weight = matrix[place] * values[below ? target : source];
          if (weight === 0 || Math.abs(weight) < threshold) continue;
          look(weight, layer, target, source, matrix[place]);
        }
      }
    }
  }

  /** The lines above the threshold, strongest first; `left` were too many to draw. */
  lines() {
    const sizes = [];
    this.visit((weight) => sizes.push(Math.abs(weight)));
    const left = Math.max(0, sizes.length - MOST_LINES);
    const least = left ? Float64Array.from(sizes).sort()[left] : 0;
    const shown = [];
    this.visit((weight, layer, target, source, share) => {
      if (Math.abs(weight) >= least) shown.push({ layer, target, source, share, weight });
    });
    shown.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    return { shown: shown.slice(0, MOST_LINES), left };
  }

  /** About two lines between different tokens for each token and layer. */
  usualThreshold() {
    const sizes = [];
    for (let layer = this.state.first; layer <= this.state.last; layer++) {
      this.map(layer).matrix.forEach((share, place) => {
        const [target, source] = [Math.floor(place / this.tokens), place % this.tokens];
        if (target === source || share === 0) return;
        if (!this.unlisted(layer, target, source)) sizes.push(Math.abs(share));
      });
    }
    if (sizes.length === 0) return 0;
    const wanted = LINES_PER_TOKEN * this.tokens * (this.columns - 1);
    return wanted >= sizes.length ? 0 : Float64Array.from(sizes).sort().at(-wanted);
  }

  /** What a line is made of, head by head, strongest first. */
  heads(layer, target, source) {
    const { heads, size } = this.shares[layer];
    const found = [];
    for (let head = 0; head < this.page.layers[layer].heads; head++) {
      const share = heads[(head * this.tokens + target) * this.tokens + source];
      found.push({ head, share, value: share * size[target] });
    }
    return found.sort((a, b) => Math.abs(b.share) - Math.abs(a.share));
  }

  /** What is known of a token leaving a layer. */
  row(layer, target) {
    const { layers } = this.page;
    const of = layers[layer];
    const worst = (name) => {
      const errors = of[`error.${name}`];
      let most = 0;
      for (let place = target; place < errors.length; place += this.tokens) {
        most = Math.max(most, errors[place]);
      }
      return most;
    };
    return {
      known: of.known[target] === 1,
      total: of.mlp_sum[target],
      errors: of.certified.map((name) => ({ name, error: worst(name) })),
      flagged: this.certificates[layer].flagged[target] === 1,
      distance: this.distances(layer)?.[target] ?? Number.NaN,
    };
  }
}
