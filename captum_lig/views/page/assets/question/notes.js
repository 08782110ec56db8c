// Notes on things and named groups of nodes. They stay in the file: a copy is saved with them.
// Whoever wrote them, they are untrusted text.

const LONGEST = 4000;
const MOST = 500;

export class Notes {
  /** @param stored the JSON that the page holds */
  constructor(stored) {
    this.notes = new Map();
    this.groups = [];
    let found;
    try {
      found = JSON.parse(stored);
    } catch {
      found = {};
    }
    for (const [name, text] of Object.entries(found?.notes ?? {}).slice(0, MOST)) {
      if (typeof text === "string") this.note(name, text);
    }
    for (const one of Array.isArray(found?.groups) ? found.groups.slice(0, MOST) : []) {
      if (typeof one?.name !== "string" || !Array.isArray(one.nodes)) continue;
      const nodes = one.nodes.filter((node) => typeof node === "string").slice(0, MOST);
      this.groups.push({ name: one.name.slice(0, 100), nodes });
    }
    this.changed = false;
  }

  note(name, text) {
    const kept = text.slice(0, LONGEST);
    if (kept.trim()) this.notes.set(name, kept);
    else this.notes.delete(name);
    this.changed = true;
  }

  /** The group of a name, made if there is none. */
  group(name) {
    const given = name.trim().slice(0, 100);
    let found = this.groups.findIndex((one) => one.name === given);
    if (found < 0 && given) found = this.groups.push({ name: given, nodes: [] }) - 1;
    return found;
  }

  put(number, node) {
    const { nodes } = this.groups[number];
    if (!nodes.includes(node)) nodes.push(node);
    this.changed = true;
  }

  take(number, node) {
    const group = this.groups[number];
    group.nodes = group.nodes.filter((one) => one !== node);
    if (group.nodes.length === 0) this.groups.splice(number, 1);
    this.changed = true;
  }

  of(node) {
    return [...this.groups.keys()].filter((number) => this.groups[number].nodes.includes(node));
  }

  /** As JSON that cannot end the script element it stands in. */
  stored() {
    const all = { notes: Object.fromEntries(this.notes), groups: this.groups };
    return JSON.stringify(all).replaceAll("<", "\\u003c");
  }
}

/**
 * Offer a copy of the page with other notes for download.
 * @param pristine the document as it was before anything was drawn
 */
export function saveCopy(pristine, notes, name) {
  pristine.querySelector("#page-notes").textContent = notes.stored();
  const text = `<!doctype html>\n${pristine.outerHTML}\n`;
  const address = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  notes.changed = false;
}
