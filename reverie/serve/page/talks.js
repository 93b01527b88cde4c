// Conversations, of which the browser keeps the ids and what was said. An id of a response is a session on the server
// that never changes: going on from an earlier one is a branch.

import { call } from "./api.js";

const PLACE = "reverie.talks";
const LONGEST = 20000; // letters of what was said that are kept for reading it again

export class Talks {
  constructor() {
    this.load();
  }

  load() {
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(PLACE));
    } catch {}
    this.all = Array.isArray(kept?.all) && kept.all.length ? kept.all : [];
    this.index = Math.min(Math.max(kept?.index ?? 0, 0), Math.max(this.all.length - 1, 0));
  }

  get now() {
    return this.all[this.index];
  }

  /** The newest response of the conversation; undefined before the first. */
  get id() {
    return this.now.turns.at(-1)?.id;
  }

  keep() {
    try {
      localStorage.setItem(PLACE, JSON.stringify({ index: this.index, all: this.all }));
    } catch {} // full, or forbidden: the conversation goes on, but is not found again
  }

  /** Begin a conversation, or go on with one that has not begun. */
  begin(model) {
    const empty = this.all.findIndex((talk) => talk.model === model && !talk.turns.length);
    this.index = empty >= 0 ? empty : this.all.push({ model, turns: [], draft: "" }) - 1;
    this.keep();
  }

  branch() {
    this.index = this.all.push({ ...this.now, turns: [...this.now.turns], draft: "", branch: true }) - 1;
    this.keep();
  }

  choose(index) {
    this.index = index;
    this.keep();
  }

  /** So many tokens were heard until the newest turn. */
  heard(tokens) {
    if (this.id) this.now.turns.at(-1).tokens = tokens;
    this.keep();
  }

  add(talk, turn) {
    talk.turns.push({ ...turn, said: turn.said.slice(0, LONGEST), answer: turn.answer.slice(0, LONGEST) });
    talk.draft = "";
    this.keep();
  }

  /** Take back the newest turn, which is given. */
  async undo() {
    const turn = this.now.turns.pop();
    this.keep();
    await this.#remove([turn]);
    return turn;
  }

  async forget() {
    const [talk] = this.all.splice(this.index, 1);
    this.index = Math.max(this.index - 1, 0);
    this.keep();
    await this.#remove(talk.turns);
  }

  title(talk) {
    const memory = talk.model.split("@")[1];
    const said = talk.turns.at(-1)?.said ?? "nothing said yet";
    return `${memory ? `${memory}: ` : ""}${talk.branch ? "⑂ " : ""}${said.slice(0, 40)}`;
  }

  /** Delete responses that no conversation goes on from. */
  async #remove(turns) {
    const held = new Set(this.all.flatMap((talk) => talk.turns.map((turn) => turn.id)));
    for (const { id } of turns) if (!held.has(id)) await call("DELETE", `v1/responses/${id}`);
  }
}
