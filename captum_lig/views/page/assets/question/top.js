// The top of the page: what is asked, both texts, what the model says, and the number.

import { element, number } from "../words.js";
import { heldSentence, quoted, signed, sumsSentence, word } from "./said.js";

/** Texts of more tokens than these are not written out twice. */
const LONG = 60;
const MOST_PAIRS = 12;

/** The words of the text, each a button; and those that it is compared with. */
export function texts(data, select) {
  const { page } = data;
  const most = Math.max(...page.tokens.map((_, at) => Math.abs(data.relevance(0, at)))) || 1;
  const own = page.tokens.map((_, at) => {
    const value = data.relevance(0, at);
    const about = `${quoted(data, at)}: ${signed(value)}`;
    const button = wordOf("button", page, page.tokens, at, {
      type: "button",
      title: about,
      "aria-pressed": "false",
      tabindex: at ? "-1" : "0",
    });
    button.classList.add(value < 0 ? "negative" : "positive");
    button.style.setProperty("--strength", `${Math.round((60 * Math.abs(value)) / most)}%`);
    button.dataset.at = at;
    button.addEventListener("click", () => select(`t${at}`));
    return button;
  });
  const parts = [line("The text", "own-words", own)];
  parts[0].lastElementChild.addEventListener("keydown", (event) => walk(event, own));
  if (page.other_tokens && page.other === "the other text" && data.tokens > LONG) {
    parts.push(line("instead of", "other-words", pairs(page)));
  } else if (page.other_tokens && page.other === "the other text") {
    const others = page.other_tokens.map((_, at) =>
      wordOf("span", page, page.other_tokens, at, {}),
    );
    parts.push(line("compared with", "other-words", others));
  } else {
    parts.push(element("p", { class: "help" }, `Compared with ${page.other}.`));
  }
  return parts;
}

/** One word is reached by Tab, the others from it by arrows. */
function walk(event, words) {
  const from = words.indexOf(document.activeElement);
  const to = {
    ArrowLeft: from - 1,
    ArrowRight: from + 1,
    Home: 0,
    End: words.length - 1,
  }[event.key];
  if (from < 0 || words[to] === undefined) return;
  event.preventDefault();
  words[from].tabIndex = -1;
  words[to].tabIndex = 0;
  words[to].focus();
}

/** Of a long text only what differs. */
function pairs(page) {
  const some = page.differs.slice(0, MOST_PAIRS).map((at) => {
    const [own, other] = [page.tokens, page.other_tokens].map((labels) => word(labels, at));
    return element("span", { class: "word" }, `“${other}” where the text has “${own}” (${at});`);
  });
  const left = page.differs.length - some.length;
  return left > 0 ? [...some, `and ${left} more`] : some;
}

function wordOf(kind, page, labels, at, attributes) {
  const text = word(labels, at);
  const space = labels[at].startsWith("␣") ? " after-space" : "";
  const differs = page.differs.includes(at) && page.other === "the other text" ? " differs" : "";
  const made = element(kind, { ...attributes, class: `word${space}${differs}` });
  made.append(element("bdi", {}, text.replace(/^\u2068 /, "\u2068")));
  return made;
}

function line(title, id, words) {
  const spaced = words.flatMap((one) => [one, " "]);
  return element(
    "div",
    { class: "line" },
    element("h2", { id: `${id}-title` }, title),
    element(
      "div",
      { id, class: "words", role: "group", "aria-labelledby": `${id}-title` },
      ...spaced,
    ),
  );
}

/** What the model says after each text, as bars. */
export function bars({ page }) {
  if (page.options.length === 0) return [];
  const rows = page.options.map(([words, own, other, ownLogit, otherLogit]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, element("bdi", {}, words)),
      barOf(own, ownLogit, "own"),
      barOf(other, otherLogit, "other"),
    ),
  );
  const names = [page.options_title, "after the text", `after ${page.other}`];
  const head = names.map((name) => element("th", { scope: "col" }, name));
  return [
    element(
      "table",
      { class: "bars" },
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...rows),
    ),
  ];
}

function probability(value) {
  if (value < 0.0005) return "<0.1\u00a0%";
  return `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}\u00a0%`;
}

/** A probability as a bar; the number itself, without one, where it stands for no probability. */
function barOf(value, logit, kind) {
  if (value === null) return element("td", {}, number(logit, signed(logit)));
  const bar = element("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  bar.style.width = `${(100 * value).toFixed(1)}%`;
  const text = probability(value);
  return element("td", {}, element("span", { class: "track" }, bar), number(value, text));
}

/** The number that is explained, how well sums converged, and what patching showed. */
export function facts(data) {
  const { page } = data;
  const { value, other_value: other, favours, change } = page;
  const parts = [];
  if (value !== null) {
    parts.push(
      element(
        "p",
        {},
        `Explained: ${page.target}. It is `,
        number(value, signed(value)),
        " for the text and ",
        number(other, signed(other)),
        ` for ${page.other}, a change of `,
        element("strong", {}, number(change, signed(change))),
        favours ? `. Here + speaks for ${favours[0]}, − for ${favours[1]}.` : ".",
      ),
    );
  } else {
    const sentence = `Explained: ${page.target}. From what it is compared with it changes by `;
    parts.push(
      element("p", {}, sentence, element("strong", {}, number(change, signed(change))), "."),
    );
  }
  const held = change ? heldSentence(data) : null;
  if (held !== null) parts.push(element("p", {}, held));
  if (!change)
    parts.push(element("p", {}, "It is the same for both, so there is nothing to explain."));
  parts.push(element("p", { id: "sums", class: "help" }, sumsSentence(page)));
  for (const said of page.notes) parts.push(element("p", { class: "help" }, said));
  if (page.checked) {
    const items = page.checked_says.map((said) => element("li", {}, said));
    parts.push(
      element(
        "details",
        { id: "checked" },
        element("summary", {}, "Checked by patching"),
        element("ul", {}, ...items),
      ),
    );
  }
  return parts;
}
