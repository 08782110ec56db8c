// What the page holds: nodes by their parts, and the edges of attention into them.

/** A node: a head or an MLP (head null) of a layer, at a token; `place` counts layers from 0. */
function nodeOf(page, place, head, at, value) {
  const { index } = page.layers[place];
  const name = `${index}.${head === null ? "mlp" : head}.${at}`;
  return { name, place, index, head, at, value };
}

export class Data {
  constructor(page) {
    this.page = page;
    this.tokens = page.tokens.length;
    this.layers = page.layers.length;
    this.unit = Math.abs(page.change) || 1;
    this.places = new Map(page.layers.map(({ index }, place) => [index, place]));
    this.kept = new Map();
  }

  /** A share of the change; it has its sign, so that parts that speak for it are positive. */
  share(value) {
    return this.page.change ? value / this.page.change : Number.NaN;
  }

  /** Relevance of a token at a depth: 0 enters the first layer, the last one leaves the last. */
  relevance(depth, at) {
    const { layers } = this.page;
    return depth < layers.length ? layers[depth].entering[at] : layers.at(-1).leaving[at];
  }

  /** The largest relevance of any token at any depth, in size. */
  get largest() {
    return this.once("largest", () => {
      let most = 0;
      for (let depth = 0; depth <= this.layers; depth++) {
        for (let at = 0; at < this.tokens; at++) {
          most = Math.max(most, Math.abs(this.relevance(depth, at)));
        }
      }
      return most || 1;
    });
  }

  once(key, make) {
    if (!this.kept.has(key)) this.kept.set(key, make());
    return this.kept.get(key);
  }

  /** The strongest nodes of a range of layers, strongest first. */
  strongest(first, last) {
    return this.once(`strongest ${first} ${last}`, () => {
      const sizes = [];
      this.visit(first, last, (value) => sizes.push(Math.abs(value)));
      const most = this.page.most_nodes;
      const ordered = Float64Array.from(sizes).sort();
      const least = ordered.length > most ? ordered.at(-most) : 0;
      const found = [];
      this.visit(first, last, (value, place, head, at) => {
        if (Math.abs(value) >= least) found.push(nodeOf(this.page, place, head, at, value));
      });
      return found.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, most);
    });
  }

  visit(first, last, look) {
    for (let place = first; place <= last; place++) {
      const { heads, mlp } = this.page.layers[place];
      for (let row = 0; row < heads.length; row++) {
        if (heads[row]) {
          look(heads[row], place, Math.floor(row / this.tokens), row % this.tokens);
        }
      }
      for (let at = 0; at < (mlp?.length ?? 0); at++) if (mlp[at]) look(mlp[at], place, null, at);
    }
  }

  /** The node of a name, null if there is none. */
  node(name) {
    const [index, head, at] = name.split(".");
    const place = this.places.get(Number(index));
    const token = Number(at);
    if (place === undefined || !(token >= 0 && token < this.tokens)) return null;
    const layer = this.page.layers[place];
    if (head === "mlp") {
      return layer.mlp ? nodeOf(this.page, place, null, token, layer.mlp[token]) : null;
    }
    const number = Number(head);
    if (!(number >= 0 && number < layer.heads.length / this.tokens)) return null;
    const value = layer.heads[number * this.tokens + token];
    return Number.isInteger(number) ? nodeOf(this.page, place, number, token, value) : null;
  }

  /** Edges into a head at a token, strongest first; `read` is null where it is not known. */
  edgesInto(node) {
    if (node.head === null) return [];
    const layer = this.page.layers[node.place];
    const row = (node.head * this.tokens + node.at) * this.tokens;
    const found = [];
    for (let n = lowest(layer.edge_index, row); n < layer.edge_index.length; n++) {
      const source = layer.edge_index[n] - row;
      if (source >= this.tokens) break;
      const read = layer.edge_read ? layer.edge_read[n] : null;
      found.push({ node, source, value: layer.edge_value[n], read });
    }
    return found.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  }

  /** The strongest edges out of a token, over all layers. */
  edgesFrom(source, count) {
    const found = [];
    this.page.layers.forEach((layer, place) => {
      for (let n = 0; n < layer.edge_index.length; n++) {
        const where = layer.edge_index[n];
        if (where % this.tokens !== source) continue;
        found.push({ place, row: Math.floor(where / this.tokens), value: layer.edge_value[n], n });
      }
    });
    found.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    return found.slice(0, count).map(({ place, row, value, n }) => {
      const layer = this.page.layers[place];
      const head = Math.floor(row / this.tokens);
      const at = row % this.tokens;
      const node = nodeOf(this.page, place, head, at, layer.heads[row]);
      return { node, source, value, read: layer.edge_read ? layer.edge_read[n] : null };
    });
  }

  /** How much of a head's part came from where it looks; null where it is not known. */
  throughPattern(node) {
    const edges = this.edgesInto(node);
    if (edges.length === 0 || edges[0].read === null) return null;
    return edges.reduce((sum, { value, read }) => sum + value - read, 0);
  }

  /**
   * The tokens with more than half of the change at each depth, which can be several where others
   * work against them; equal neighbours joined: [{from, to, at, all}], `at` null unless it is one.
   */
  get held() {
    return this.once("held", () => {
      const { change } = this.page;
      const found = [];
      for (let depth = 0; depth <= this.layers; depth++) {
        const all = [];
        for (let at = 0; at < this.tokens; at++) {
          if (change && this.relevance(depth, at) / change > 0.5) all.push(at);
        }
        const last = found.at(-1);
        if (last && String(last.all) === String(all)) last.to = depth;
        else found.push({ from: depth, to: depth, at: all.length === 1 ? all[0] : null, all });
      }
      return found;
    });
  }

  /** The largest relevance of a token at any depth, in size. */
  most(at) {
    const all = this.once("most", () => {
      const found = new Float64Array(this.tokens);
      for (let depth = 0; depth <= this.layers; depth++) {
        for (let token = 0; token < this.tokens; token++) {
          found[token] = Math.max(found[token], Math.abs(this.relevance(depth, token)));
        }
      }
      return found;
    });
    return all[at];
  }

  /** The token at which the number is read: it has most of it at the end. */
  get end() {
    return this.once("end", () => {
      let best = 0;
      for (let at = 1; at < this.tokens; at++) {
        const [a, b] = [this.relevance(this.layers, at), this.relevance(this.layers, best)];
        if (Math.abs(a) > Math.abs(b)) best = at;
      }
      return best;
    });
  }

  /** What patching showed of a node, or of a token at some depths. */
  checked(node) {
    const kind = node.head === null ? "feed_forward" : "heads";
    return this.page.checked?.find(
      (row) =>
        row.kind === kind &&
        row.layer === node.index &&
        row.position === node.at &&
        row.head === node.head,
    );
  }

  checkedToken(at) {
    const rows = this.page.checked ?? [];
    return rows.filter((row) => row.kind === "tokens" && row.position === at);
  }
}

/** The first place of a sorted array that is not below a value. */
function lowest(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
