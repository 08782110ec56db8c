// What the flow graph says: shares by rule, what they hand down, and how far maps are apart.
// In double precision; the weights of the rules come from captum_lig.graph. Matrices are
// [target, source].

/**
 * The share of each target that each route carries through one layer: edges times row weights.
 * @param rule {name, edges}
 * @returns {{heads: Float64Array, residual: Float64Array, size: Float64Array}} `heads` is
 *   [head, target, source]; a share times `size` of its target is the attribution itself
 */
export function shares(layer, tokens, rule) {
  const weights = layer[`${rule.name}.heads`];
  const heads = Float64Array.from(layer[rule.edges]);
  for (let place = 0; place < heads.length; place++) {
    heads[place] *= weights[Math.floor(place / tokens)];
  }
  return { heads, residual: layer[`${rule.name}.residual`], size: layer[`${rule.name}.size`] };
}

function by(part, sum) {
  return sum === 0 ? 0 : part / sum;
}

/** All routes from a source to a target of one layer together, or those through one head. */
export function composed(share, tokens, head = null) {
  const square = tokens * tokens;
  if (head !== null) return share.heads.slice(head * square, (head + 1) * square);
  const matrix = new Float64Array(square);
  for (let place = 0; place < share.heads.length; place++) {
    matrix[place % square] += share.heads[place];
  }
  for (let token = 0; token < tokens; token++) {
    matrix[token * tokens + token] += share.residual[token];
  }
  return matrix;
}

/** Shares of the attention boundary: of one head's output, or of all outputs' sums together. */
export function attention(layer, tokens, head = null) {
  const matrix = new Float64Array(tokens * tokens);
  const sum = new Float64Array(tokens);
  const heads = head === null ? [...Array(layer.heads).keys()] : [head];
  for (const one of heads) {
    for (let target = 0; target < tokens; target++) {
      sum[target] += layer.attention_sum[one * tokens + target];
      const row = (one * tokens + target) * tokens;
      for (let source = 0; source < tokens; source++) {
        matrix[target * tokens + source] += layer.attention[row + source];
      }
    }
  }
  return { matrix: divide(matrix, sum, tokens), size: sum };
}

/** Shares of the direct map, of its targets' totals. */
export function direct(layer, tokens) {
  return {
    matrix: divide(Float64Array.from(layer.direct), layer.direct_total, tokens),
    size: layer.direct_total,
  };
}

/** Shares of what the sources bring, whichever way, of the sum of a row's lengths. */
export function influence(layer, tokens) {
  return {
    matrix: divide(Float64Array.from(layer.influence), layer.influence_sum, tokens),
    size: layer.influence_sum,
  };
}

function divide(matrix, sum, tokens) {
  return matrix.map((value, place) => by(value, sum[Math.floor(place / tokens)]));
}

/** `||direct - composed|| / ||direct||` of each target; NaN where the direct row is all zero. */
export function distances(layer, share, matrix, tokens) {
  const found = new Float64Array(tokens).fill(Number.NaN);
  for (let target = 0; target < tokens; target++) {
    let apart = 0;
    let whole = 0;
    for (let source = 0; source < tokens; source++) {
      const place = target * tokens + source;
      const value = layer.direct[place];
      apart += (value - matrix[place] * share.size[target]) ** 2;
      whole += value ** 2;
    }
    if (whole > 0) found[target] = Math.sqrt(apart / whole);
  }
  return found;
}

/** The first token's part in what reaches the others from tokens but themselves, by size. */
export function partOfFirst(matrix, tokens, oneSource) {
  let first = 0;
  let whole = 0;
  for (let target = 1; target < tokens; target++) {
    if (oneSource?.[target]) continue;
    for (let source = 0; source < tokens; source++) {
      if (source === target) continue;
      const size = Math.abs(matrix[target * tokens + source]);
      whole += size;
      if (source === 0) first += size;
    }
  }
  return by(first, whole);
}

/**
 * Hand what a token carries down to the tokens below it, and its share up to those above.
 * @param matrices composed maps, one a layer
 * @param pin {column, token}: column c are the tokens entering layer c
 * @returns one row a column: below the pin what of it comes from each token, above it the share
 *   that it has in each token
 */
export function carried(matrices, tokens, pin, first, last) {
  const rows = [];
  rows[pin.column] = new Float64Array(tokens);
  rows[pin.column][pin.token] = 1;
  for (let layer = pin.column - 1; layer >= first; layer--) {
    rows[layer] = new Float64Array(tokens);
    for (let target = 0; target < tokens; target++) {
      for (let source = 0; source < tokens; source++) {
        rows[layer][source] += matrices[layer][target * tokens + source] * rows[layer + 1][target];
      }
    }
  }
  for (let layer = pin.column; layer <= last; layer++) {
    rows[layer + 1] = new Float64Array(tokens);
    for (let target = 0; target < tokens; target++) {
      for (let source = 0; source < tokens; source++) {
        rows[layer + 1][target] += matrices[layer][target * tokens + source] * rows[layer][source];
      }
    }
  }
  return rows;
}

/** How a layer's sums converged: how many rows there are, how many missed, the worst error. */
export function certificate(layer, tokens, tolerance) {
  const found = { rows: 0, missed: 0, worst: 0, flagged: new Uint8Array(tokens) };
  for (const boundary of layer.certified) {
    const errors = layer[`error.${boundary}`];
    for (let place = 0; place < errors.length; place++) {
      const target = place % tokens;
      if (!layer.known[target]) continue;
      found.rows++;
      found.worst = Math.max(found.worst, errors[place]); // NaN stays
      if (errors[place] <= tolerance) continue;
      found.missed++;
      found.flagged[target] = 1;
    }
  }
  return found;
}
