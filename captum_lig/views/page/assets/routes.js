// The strongest routes through a token, by dynamic programming over the layers: exactly those of
// FlowGraph.paths, whose strength is the absolute product of the signed shares of their steps.

/**
 * @param layers shares of all layers, see `shares` in graph.js
 * @param pin {column, token} that the routes go through
 * @param source the token they start from, null for any
 * @returns strongest first: {share, tokens, heads, shares}; a head of -1 is the residual edge
 */
export function strongestRoutes(layers, pin, first, last, source, count) {
  const tokens = layers[0].residual.length;
  const all = [...Array(tokens).keys()];
  const starts = pin.column === first ? [pin.token] : source === null ? all : [source];
  const low = bestWays(layers.slice(first, pin.column), starts, [pin.token], count);
  const high = bestWays(layers.slice(pin.column, last + 1), [pin.token], all, count);
  const open = pin.column > first || source === null || source === pin.token;
  const routes = low.flatMap((a) => high.map((b) => joined(a, b))).filter(() => open);
  return routes.sort((a, b) => Math.abs(b.share) - Math.abs(a.share)).slice(0, count);
}

function joined(low, high) {
  return {
    share: low.share * high.share,
    tokens: [...low.tokens, ...high.tokens.slice(1)],
    heads: [...low.heads, ...high.heads],
    shares: [...low.shares, ...high.shares],
  };
}

/** For each token and layer the best `count` ways are kept: no other can begin a best route. */
function bestWays(layers, starts, ends, count) {
  const tokens = layers[0]?.residual.length ?? 0;
  let best = new Map(starts.map((token) => [token, [{ score: 0, token, before: null }]]));
  layers.forEach((layer, number) => {
    const targets = number === layers.length - 1 ? ends : [...Array(tokens).keys()];
    best = new Map(targets.map((target) => [target, waysTo(layer, best, tokens, target, count)]));
  });
  const found = ends.flatMap((end) => best.get(end) ?? []);
  return found.sort(stronger).slice(0, count).map(walkBack);
}

function waysTo(layer, best, tokens, target, count) {
  const kept = [];
  const heads = layer.heads.length / tokens ** 2;
  for (const [source, ways] of best) {
    if (source === target) extend(kept, ways, layer.residual[target], target, -1, count);
    for (let head = 0; head < heads; head++) {
      const share = layer.heads[(head * tokens + target) * tokens + source];
      extend(kept, ways, share, target, head, count);
    }
  }
  return kept;
}

/** Add to `kept`, strongest first, the ways that go on along one edge. */
function extend(kept, ways, share, token, head, count) {
  if (share === 0) return;
  const length = Math.log(Math.abs(share));
  for (const before of ways) {
    const score = before.score + length;
    if (kept.length === count && score <= kept[count - 1].score) return;
    let place = kept.length;
    while (place > 0 && kept[place - 1].score < score) place--;
    kept.splice(place, 0, { score, token, before, head, share });
    if (kept.length > count) kept.pop();
  }
}

function stronger(a, b) {
  return b.score - a.score;
}

function walkBack(way) {
  const route = { share: 1, tokens: [way.token], heads: [], shares: [] };
  for (let step = way; step.before !== null; step = step.before) {
    route.tokens.unshift(step.before.token);
    route.heads.unshift(step.head);
    route.shares.unshift(step.share);
  }
  for (const share of route.shares) route.share *= share;
  return route;
}
