// The page: reads its numbers, builds its controls, and keeps all parts at the same state.

import { FlowView } from "./flow.js";
import { sized } from "./ink.js";
import { MapsView } from "./maps.js";
import { Model } from "./model.js";
import { aboutLine, aboutToken, pinnedParts, pinnedTitle } from "./node.js";
import { unpack } from "./numbers.js";
import {
  cellParts,
  certificateText,
  distanceText,
  layersTable,
  linesTable,
  mapText,
  settingsText,
  sinkText,
  summaryText,
} from "./tables.js";
import { columnName, element, size, spoken, tokenText } from "./words.js";

const at = (id) => document.getElementById(id);

class Page {
  constructor(page) {
    this.model = new Model(page);
    this.wanted = new Set();
    this.made = {};
    this.look = 0;
    document.querySelector("main").hidden = false;
    if (window.innerWidth <= 600) at("controls").open = false;
    at("title").textContent = page.title;
    at("settings").textContent = settingsText(this.model);
    this.flow = new FlowView(at("flow"), this.model, {
      pointed: (place, event) => this.tip(place, event),
      pinned: (place) => this.pin(place),
      released: () => this.change({ pin: null }),
    });
    this.maps = new MapsView(at("maps"), this.model, () => {
      at("map-cell").replaceChildren(...cellParts(this.model, this.maps));
    });
    this.fill();
    this.listen();
    this.update();
  }

  // --- controls -----------------------------------------------------------------------------

  fill() {
    const { page } = this.model;
    const layers = page.layers.map(({ index }) => [index, String(index)]);
    options("first", layers);
    options("last", layers);
    options("map-layer", layers);
    options(
      "rule",
      page.rules.map(({ name }) => [name, name]),
    );
    const heads = Math.max(...page.layers.map((layer) => layer.heads));
    options("head", [["", "all heads"], ...[...Array(heads).keys()].map((h) => [h, `head ${h}`])]);
    const tokens = page.tokens.map((_, place) => [place, tokenText(page.tokens, place)]);
    options("target", [["", "all tokens"], ...tokens]);
    options("source", [["", "any token"], ...tokens]);
    at("boundary").querySelector("[value=direct]").disabled = !this.model.hasDirect;
    at("boundary").querySelector("[value=influence]").disabled = !this.model.hasInfluence;
    if (this.model.hasInfluence) at("maps-title").textContent += ", and influence";
  }

  listen() {
    const base = this.model.page.layers[0].index;
    const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
    const on = (id, type, change) => at(id).addEventListener(type, () => this.change(change()));
    on("first", "change", () => {
      const first = number("first") - base;
      return { first, last: Math.max(first, this.model.state.last) };
    });
    on("last", "change", () => {
      const last = number("last") - base;
      return { last, first: Math.min(last, this.model.state.first) };
    });
    on("boundary", "change", () => ({ boundary: at("boundary").value }));
    on("rule", "change", () => ({ rule: at("rule").value }));
    on("head", "change", () => ({ head: number("head") }));
    on("source", "change", () => ({ source: number("source") }));
    on("count", "change", () => ({ count: number("count") }));
    on("own", "change", () => ({ own: at("own").checked }));
    on("hide-first", "change", () => ({ hideFirst: at("hide-first").checked }));
    on("threshold", "input", () => ({ threshold: fromSlider(number("threshold")) }));
    const pinned = () => {
      const token = number("target");
      return { pin: token === null ? null : { token, column: number("column") } };
    };
    on("target", "change", pinned);
    on("column", "change", pinned);
    at("map-layer").addEventListener("change", () => this.chooseMap(number("map-layer") - base));
    at("theme").addEventListener("change", () => {
      document.documentElement.style.colorScheme = at("theme").value;
      this.lookAgain();
    });
    at("reset").addEventListener("click", () => {
      this.model.reset();
      this.soon("update");
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.lookAgain();
    });
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth !== width) this.lookAgain();
      width = window.innerWidth;
    });
    at("flow").addEventListener("scroll", () => this.tip(null));
  }

  change(change) {
    this.model.set(change);
    this.soon("update");
  }

  pin(place) {
    const { pin } = this.model.state;
    const again = pin?.column === place.column && pin.token === place.token;
    this.change({ pin: again ? null : { column: place.column, token: place.token } });
  }

  chooseMap(layer) {
    this.maps.layer = layer;
    this.soon("update");
  }

  /** Once a frame, however often it is asked for. */
  soon(what) {
    if (this.wanted.has(what)) return;
    this.wanted.add(what);
    requestAnimationFrame(() => {
      this.wanted.delete(what);
      this[what]();
    });
  }

  // --- all that follows from the state ------------------------------------------------------

  update() {
    const { model, flow } = this;
    const { rule } = model;
    const { first, last, pin, source, count, route } = model.state;
    this.showState();
    this.showVerdict();
    flow.draw();
    if (pin) flow.reveal(pin.column);
    at("summary").textContent = summaryText(model, flow);
    at("table").replaceChildren(...linesTable(model, flow));
    this.legend();
    const { column = null, token = null } = pin ?? {};
    const pinned = [rule, first, last, column, token, source, count, route];
    this.anew("pinned", pinned, () => this.showPinned());
    this.anew("maps", [rule, this.maps.layer, this.look], () => this.showMaps());
  }

  /** How sums converged never stands alone: how far maps are apart is in the same line. */
  showVerdict() {
    const [sums, maps] = [certificateText(this.model), distanceText(this.model)];
    at("certificate").textContent = `${sums.text} ${maps.text}`.trim();
    at("certificate").className = sums.good && !maps.far ? "good" : "bad";
    at("sink").textContent = sinkText(this.model);
  }

  /** Make a part of the page again if what it depends on has changed. */
  anew(part, depends, make) {
    const key = depends.join();
    if (this.made[part] === key) return;
    this.made[part] = key;
    make();
  }

  /** Colours or widths are others: all is drawn again. */
  lookAgain() {
    this.look++;
    this.soon("update");
  }

  showPinned() {
    const { model } = this;
    at("pinned-title").replaceChildren(...pinnedTitle(model));
    const focused = document.activeElement?.closest("#routes li");
    const place = focused ? [...focused.parentElement.children].indexOf(focused) : -1;
    at("pinned-text").replaceChildren(
      ...pinnedParts(model, (route) => {
        this.change({ route: model.state.route === route ? null : route });
      }),
    );
    at("routes")?.children[place]?.firstElementChild.focus();
  }

  showMaps() {
    const { model, maps } = this;
    maps.draw();
    at("map-text").replaceChildren(...mapText(model, maps));
    at("map-cell").replaceChildren(...cellParts(model, maps));
    at("layers").replaceChildren(
      ...layersTable(model, maps.layer, (layer) => this.chooseMap(layer)),
    );
  }

  /** The controls say what the state is, however it came about. */
  showState() {
    const { state, page } = this.model;
    const columns = [];
    for (let column = state.last + 1; column >= state.first; column--) {
      columns.push([column, columnName(page, column)]);
    }
    options("column", columns);
    const shown = {
      first: page.layers[state.first].index,
      last: page.layers[state.last].index,
      boundary: state.boundary,
      rule: state.rule,
      head: state.head ?? "",
      target: state.pin?.token ?? "",
      column: state.pin?.column ?? state.last + 1,
      source: state.source ?? "",
      count: state.count,
      "map-layer": page.layers[this.maps.layer].index,
    };
    for (const [id, value] of Object.entries(shown)) at(id).value = String(value);
    at("own").checked = state.own;
    at("hide-first").checked = state.hideFirst;
    at("head").disabled = !this.model.byHead;
    at("column").disabled = state.pin === null;
    at("threshold").value = String(toSlider(state.threshold));
    at("threshold-text").textContent = size(state.threshold);
    at("threshold").setAttribute("aria-valuetext", size(state.threshold));
  }

  legend() {
    const { limit, ink } = this.flow;
    const missed = this.model.certificates.some((layer) => layer.missed);
    const { pin } = this.model.state;
    const end = size(limit);
    const item = (kind, text) => {
      const canvas = element("canvas");
      const context = sized(canvas, 54, 12);
      context.fillStyle = ink[kind];
      for (let x = 0; x < 54; x++) {
        if (kind === "negative" && x % 9 > 5) continue;
        context.globalAlpha = 0.35 + (0.65 * x) / 54;
        context.fillRect(x, 6 - (0.7 + (8 * x) / 54) / 2, 1, 0.7 + (8 * x) / 54);
      }
      return element("span", {}, canvas, text);
    };
    const lengths = [item("positive", `how much, whichever way, 0 to ${end} or more`)];
    const signs = [
      item("positive", `for ${pin ? "the pinned token" : "the target"}, 0 to ${end} or more`),
      item("negative", `against it, 0 to −${end} or more`),
    ];
    at("legend").replaceChildren(
      ...(this.model.signed ? signs : lengths),
      item("own", `a token to itself, 0 to 100\u00a0% or more`),
      missed ? element("span", { class: "bad" }, "◇ not converged") : "",
    );
  }

  tip(place, event) {
    const tip = at("tip");
    tip.hidden = place === null;
    if (place === null) return;
    const parts = place.line ? aboutLine(this.model, place.line) : aboutToken(this.model, place);
    tip.replaceChildren(...parts);
    if (event.type === "key") at("said").textContent = parts.map(spoken).join("; ");
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left =
      event.clientX + 16 + width > window.innerWidth
        ? Math.max(4, event.clientX - width - 16)
        : event.clientX + 16;
    const top = Math.max(4, Math.min(event.clientY + 12, window.innerHeight - height - 8));
    tip.style.transform = `translate(${left}px, ${top}px)`;
  }
}

function options(id, pairs) {
  at(id).replaceChildren(...pairs.map(([value, text]) => new Option(text, String(value))));
}

/** 1 to 100 are shares of 0.1 % to 100 %, evenly in their logarithm; 0 is every line. */
function fromSlider(value) {
  return value === 0 ? 0 : 10 ** (-3 + (3 * (value - 1)) / 99);
}

function toSlider(threshold) {
  if (threshold === 0) return 0;
  return Math.round(Math.max(1, Math.min(100, 1 + (99 * (Math.log10(threshold) + 3)) / 3)));
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
