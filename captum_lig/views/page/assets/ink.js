// Colours and canvases. Positive red, negative blue and dashed: no colour stands alone.

/** The colours of the page as it is shown now, light or dark. */
export function inks() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const found = {};
  for (const name of ["paper", "ink", "soft", "rule", "faint", "own", "focus", "bad"]) {
    found[name] = computed(probe, name);
  }
  found.positive = computed(probe, "positive");
  found.negative = computed(probe, "negative");
  probe.remove();
  return found;
}

function computed(probe, name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

/** Red, green and blue of a computed colour. */
export function channels(color) {
  return color
    .match(/[\d.]+/g)
    .slice(0, 3)
    .map(Number);
}

/** Give a canvas its size in CSS pixels, sharp on dense screens; its context, cleared. */
export function sized(canvas, width, height) {
  const dense = Math.min(window.devicePixelRatio || 1, 2);
  const [across, down] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== across || canvas.height !== down) {
    canvas.width = across;
    canvas.height = down;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
