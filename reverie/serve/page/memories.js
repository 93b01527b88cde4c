// Memories by name: to open, to read a text into, to keep as a file.

import { call, json } from "./api.js";
import { bytes, count } from "./life.js";

const $ = (id) => document.getElementById(id);
let doing = null; // what a choice leads to

/** Show the memories that there are. `begin` opens one as a model, `read` watches one being read. */
export async function openMemories(actions) {
  doing = actions;
  complain(null);
  $("memories").showModal();
  await list();
}

async function list() {
  try {
    const { data } = await json("GET", "v1/memories");
    $("known").replaceChildren(...data.map(shown));
    if (!data.length) $("known").append(Object.assign(document.createElement("li"), { textContent: "None yet." }));
  } catch (error) {
    complain(error);
  }
}

function complain(error) {
  const place = $("memories").querySelector(".problem");
  place.textContent = error?.message ?? "";
  place.hidden = !error;
}

function shown(memory) {
  const item = document.createElement("li"), told = document.createElement("p"), name = document.createElement("b");
  name.textContent = memory.name;
  told.append(name, ` ${facts(memory)}`);
  item.append(told);
  const button = (text, work) => {
    const made = document.createElement("button");
    made.textContent = text;
    made.setAttribute("aria-label", `${text} ${memory.name}`);
    made.onclick = () => work().catch(complain);
    item.append(made);
  };
  if (memory.status === "ready") {
    button("Open", async () => leave(() => doing.begin(memory.id)));
    button("Download", () => download(memory.name));
  } else if (memory.status === "reading") button("Watch", async () => leave(() => doing.read(memory.name)));
  button("Delete", async () => {
    if (!confirm(`Delete ${memory.name}?`)) return;
    await call("DELETE", `v1/memories/${memory.name}`);
    await list();
  });
  return item;
}

function facts({ status, tokens, tokens_read, bytes: size, problem }) {
  if (status === "failed") return problem;
  if (status === "reading") return `${count(tokens_read, "token")} read${tokens ? ` of ${tokens.toLocaleString("en")}` : ""}`;
  return `${count(tokens, "token")}, ${bytes(size)}`;
}

function leave(then) {
  $("memories").close();
  then();
}

async function download(name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await call("GET", `v1/memories/${name}/file`)).blob());
  link.download = `${name}.safetensors`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

$("read-file").onchange = () => {
  const name = $("read-file").files[0]?.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[-.]+/, "");
  $("read-name").value ||= name ?? "";
};
$("read").onsubmit = async (event) => {
  event.preventDefault();
  const name = $("read-name").value, file = $("read-file").files[0], typed = $("read-text").value;
  try {
    if (file?.name.endsWith(".safetensors")) await call("PUT", `v1/memories/${name}/file`, file);
    else if (file || typed.trim()) await call("POST", "v1/memories", { name, text: file ? await file.text() : typed });
    else throw new Error("choose a file, or write a text");
    $("read").reset();
    complain(null);
    leave(() => doing.read(name));
  } catch (error) {
    complain(error);
  }
};

/** Show a text being read until it is, or something else is shown: `wanted()` is false then. */
export async function watchReading(name, life, wanted, { begin, show, complain, tell }) {
  const path = `v1/memories/${name}`;
  $("reading-name").textContent = `Reading ${name}`;
  $("reading-open").hidden = $("about").hidden = true;
  $("reading").hidden = false;
  try {
    for (;;) {
      const info = await json("GET", path);
      if (info.status === "failed") throw new Error(info.problem);
      if (!wanted()) return;
      const ready = info.status === "ready";
      $("reading-name").textContent = ready ? `${name} is read` : `Reading ${name}: ${facts(info)}`;
      $("reading-done").value = ready ? 1 : info.tokens_read / (info.tokens || Infinity);
      const session = await json("GET", `${path}/session`).catch(() => null);
      if (!wanted()) return;
      if (session) life.take(session);
      $("reading-open").hidden = !ready;
      $("reading-stop").textContent = ready ? "Back" : "Stop and delete";
      $("reading-open").onclick = () => begin(info.id);
      $("reading-stop").onclick = () => (ready ? show() : call("DELETE", path).then(show, complain));
      if (ready) return tell(`${name} is read: ${facts(info)}.`);
      await new Promise((done) => setTimeout(done, 250));
    }
  } catch (error) {
    if (!wanted()) return;
    show();
    complain(error);
  }
}
