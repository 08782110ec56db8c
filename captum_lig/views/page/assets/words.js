// How numbers and tokens are written. Tokens are untrusted: they only ever become text nodes.

/** A share as a person reads it: `+12.3 %`. */
export function percent(share) {
  if (Number.isNaN(share)) return "n/a";
  const size = Math.abs(share * 100);
  if (size === 0) return "0\u00a0%";
  const digits = size >= 99.95 ? size.toFixed(0) : size.toPrecision(size < 0.1 ? 1 : 3);
  const text = size < 0.001 ? size.toExponential(0) : digits;
  return `${share < 0 ? "−" : "+"}${text}\u00a0%`;
}

/** A share without its sign. */
export function size(share) {
  return percent(Math.abs(share)).replace("+", "");
}

/** A length or an error: three digits. */
export function plain(value) {
  if (Number.isNaN(value)) return "n/a";
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(0).replaceAll("-", "−");
  return (size < 999.5 ? value.toPrecision(3) : value.toFixed(0)).replace("-", "−");
}

/** An element: attributes, then children, of which strings become text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A number on the page that a program can read back in full: `<data value="0.123456">`. */
export function number(value, text) {
  return element("data", { value: String(value) }, text);
}

/** A token on the page, its direction its own, with its place. */
export function token(labels, place) {
  return element(
    "span",
    { class: "token" },
    element("bdi", { title: labels[place] }, labels[place]),
    element("span", { class: "place" }, ` ${place}`),
  );
}

/** A token where only text can be: isolated, so that it does not turn its surroundings around. */
export function tokenText(labels, place) {
  return `\u2068${labels[place]}\u2069 (${place})`;
}

/** A token in a sentence. */
export function quoted(labels, place) {
  return `“\u2068${labels[place]}\u2069” (${place})`;
}

/** What a column of tokens is called. */
export function columnName(page, column) {
  const { layers } = page;
  if (column < layers.length) return `entering layer ${layers[column].index}`;
  return `leaving layer ${layers[column - 1].index}`;
}

/** The text of a part of the page as it is read out. */
export function spoken(part) {
  if (!part.rows) return part.textContent;
  const cells = (row) => Array.from(row.cells, (cell) => cell.textContent).join(" ");
  return Array.from(part.rows, cells).join(", ");
}

/** What a share of a boundary is a share of. */
export const WHOLE = {
  composed: "the target's total",
  direct: "the target's total",
  attention: "the head output's total",
  influence: "the sum of all lengths",
};
