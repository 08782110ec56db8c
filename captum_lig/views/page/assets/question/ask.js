// The page of a number: builds its parts, and keeps them and the address at the same state.

import { unpack } from "../numbers.js";
import { element } from "../words.js";
import { Data } from "./data.js";
import { Drawing, shownText } from "./drawing.js";
import { nodesTable, notesList, tokensTable } from "./lists.js";
import { Notes, saveCopy } from "./notes.js";
import { panel } from "./panel.js";
import { edgesSentence, nodeTitle, quoted, word } from "./said.js";
import { fromFragment, opening, thing, toFragment } from "./state.js";
import { bars, facts, texts } from "./top.js";

const at = (id) => document.getElementById(id);
const pristine = document.documentElement.cloneNode(true);

class Page {
  constructor(page) {
    this.data = new Data(page);
    this.notes = new Notes(at("page-notes").textContent);
    this.view = {
      data: this.data,
      notes: this.notes,
      promotes: "change",
      select: (name) => this.select(name),
      changed: () => this.soon(),
      // Nothing else is made again: the button that took the focus from the note is being pressed.
      noted: () => this.showNotes(),
      show: (which) => {
        this.view.promotes = which;
        this.soon();
      },
    };
    document.querySelector("main").hidden = false;
    at("title").textContent = page.question;
    at("texts").append(...texts(this.data, (name) => this.select(name)));
    at("says").append(...bars(this.data));
    at("facts").append(...facts(this.data));
    at("edges").textContent = edgesSentence(page);
    this.drawing = new Drawing(at("graph"), this.data, {
      select: (name) => this.select(name),
      open: (tokens) => this.change({ open: [...this.state.open, ...tokens] }),
    });
    at("tokens").replaceChildren(...tokensTable(this.view));
    const from = strongestWord(this.data);
    reveal(at("own-words"), at("own-words").children[from]);
    this.fill();
    this.listen();
    this.read();
  }

  fill() {
    const options = () =>
      this.data.page.layers.map(({ index }, place) => new Option(String(index), String(place)));
    at("first").append(...options());
    at("last").append(...options());
    at("count").max = String(this.data.page.most_nodes);
  }

  listen() {
    at("count").addEventListener("input", () => {
      this.change({ count: Number(at("count").value) }, true);
    });
    at("more").addEventListener("click", () => this.more(10));
    at("fewer").addEventListener("click", () => this.more(-10));
    at("first").addEventListener("change", () => {
      const first = Number(at("first").value);
      this.change({ first, last: Math.max(first, this.state.last) });
    });
    at("last").addEventListener("change", () => {
      const last = Number(at("last").value);
      this.change({ last, first: Math.min(last, this.state.first) });
    });
    at("reset").addEventListener("click", () => this.change(opening(this.data)));
    at("save").addEventListener("click", () => {
      const name = decodeURIComponent(window.location.pathname.split("/").at(-1) || "");
      saveCopy(pristine, this.notes, name.endsWith(".html") ? name : "question.html");
    });
    at("theme").addEventListener("change", () => {
      document.documentElement.style.colorScheme = at("theme").value;
    });
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address says what is chosen
      this.drawing.focus();
    });
    window.addEventListener("hashchange", () => {
      if (window.location.hash.replace(/^#/, "") !== this.shown) this.read();
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.notes.changed) event.preventDefault();
    });
    let width = at("graph").clientWidth;
    new ResizeObserver(() => {
      if (at("graph").clientWidth !== width) this.soon();
      width = at("graph").clientWidth;
    }).observe(at("graph"));
  }

  more(by) {
    const count = Math.max(1, Math.min(this.data.page.most_nodes, this.state.count + by));
    this.change({ count });
  }

  select(name) {
    const same = name === this.state.selected;
    this.change({ selected: same ? null : name });
  }

  change(change, quietly = false) {
    Object.assign(this.state, change);
    this.write(quietly);
    this.soon();
  }

  // --- the address --------------------------------------------------------------------------

  read() {
    this.shown = window.location.hash.replace(/^#/, "");
    this.state = fromFragment(this.data, this.shown, this.notes.groups);
    this.update();
  }

  /** Each view is an entry in the browser's history, but not each step of a slider. */
  write(quietly) {
    this.shown = toFragment(this.data, this.state);
    if (!quietly) {
      window.location.hash = this.shown;
      return;
    }
    try {
      window.history.replaceState(null, "", `#${this.shown}`);
    } catch {
      // Inside of a notebook a page has no address of its own.
    }
  }

  // --- all that follows from the state ------------------------------------------------------

  /** Once a frame, however often it is asked for. */
  soon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.update();
    });
  }

  update() {
    const { data, state, view } = this;
    const chosen = thing(data, state.selected, this.notes.groups);
    if (chosen === null) state.selected = null;
    at("count").value = String(state.count);
    at("count-text").textContent = String(state.count);
    at("first").value = String(state.first);
    at("last").value = String(state.last);
    const marked = new Set(chosen?.kind === "group" ? chosen.group.nodes : []);
    const nodes = data.strongest(state.first, state.last).slice(0, state.count);
    const own = chosen?.node ?? chosen?.edge?.node;
    const extra = [...marked].map((name) => data.node(name)).filter(Boolean);
    for (const node of own ? [own, ...extra] : extra) {
      const inside = node.place >= state.first && node.place <= state.last;
      if (inside && !nodes.some(({ name }) => name === node.name)) nodes.push(node);
    }
    const tokens = [chosen?.at, own?.at, chosen?.edge?.source].filter((one) => one !== undefined);
    this.drawing.draw(state, nodes, tokens, marked);
    at("summary").textContent = shownText(this.drawing.made, nodes.length);
    at("nodes").replaceChildren(...nodesTable(view, nodes));
    this.showNotes();
    this.showWord();
    this.showPanel(chosen);
  }

  showNotes() {
    at("notes").replaceChildren(...notesList(this.view, (name) => this.nameOf(name)));
    at("save").classList.toggle("due", this.notes.changed);
  }

  /** The word that is selected; in a long text it is scrolled to. */
  showWord() {
    const words = at("own-words");
    for (const button of words.children) {
      const on = this.state.selected === `t${button.dataset.at}`;
      if (on && button.getAttribute("aria-pressed") === "false") reveal(words, button);
      button.setAttribute("aria-pressed", String(on));
    }
  }

  showPanel(chosen) {
    const { title, parts } = panel(this.view, this.state.selected, chosen);
    at("panel-title").textContent = title;
    const inside = at("panel").contains(document.activeElement);
    const fields = () => [...at("panel").querySelectorAll("button,textarea,input")];
    const place = fields().indexOf(document.activeElement);
    at("panel-parts").replaceChildren(...parts);
    // What had the focus keeps it; of another thing that is selected the panel is read anew.
    const again = this.described === this.state.selected ? fields()[place] : null;
    if (inside) (again ?? at("panel")).focus({ preventScroll: true });
    this.described = this.state.selected;
    const said = at("sentence")?.textContent ?? "";
    if (at("said").textContent === said) return;
    at("said").textContent = said;
    const more = element("button", { type: "button" }, "More");
    more.addEventListener("click", () => {
      at("panel").scrollIntoView();
      at("panel").focus({ preventScroll: true });
    });
    at("now").replaceChildren(...(said ? [element("span", {}, said), more] : []));
  }

  nameOf(name) {
    const found = thing(this.data, name, this.notes.groups);
    if (found === null) return word([name], 0);
    if (found.kind === "node") return nodeTitle(this.data, found.node);
    if (found.kind === "token") return `token ${quoted(this.data, found.at)}`;
    if (found.kind === "edge") return `edge ${word([name], 0)}`;
    return "the prediction";
  }
}

/** The token that brings most. */
function strongestWord(data) {
  let best = 0;
  for (let token = 1; token < data.tokens; token++) {
    if (Math.abs(data.relevance(0, token)) > Math.abs(data.relevance(0, best))) best = token;
  }
  return best;
}

/** Scroll a box so that a word in it is seen. */
function reveal(words, button) {
  const [box, all] = [button.getBoundingClientRect(), words.getBoundingClientRect()];
  if (box.top < all.top) words.scrollTop += box.top - all.top - 4;
  if (box.bottom > all.bottom) words.scrollTop += box.bottom - all.bottom + 4;
}

async function open() {
  const header = JSON.parse(at("page-header").textContent);
  return new Page(await unpack(header, at("page-numbers").textContent));
}

open().catch((error) => {
  at("problem").hidden = false;
  at("problem").textContent = `This page could not be shown: ${error.message}`;
  throw error;
});
