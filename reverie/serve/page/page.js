import { call, json, onKeyWanted, respond } from "./api.js";
import { Life } from "./life.js";
import { openMemories, watchReading } from "./memories.js";
import { Talks } from "./talks.js";

const $ = (id) => document.getElementById(id);
const EXAMPLE = ["The number of grown heron in Gull Island equals 3.", "How many grown heron does Gull Island have?"];
const talks = new Talks();
const life = new Life(tell);
let model = ""; // without a memory
let stop = null; // ends what is being written
let shown = 0; // counts what is shown, so that what comes too late is dropped

/** Tell who hears the page instead of seeing it. */
function tell(sentence) {
  $("status").textContent = sentence;
}

function complain(error) {
  if (error?.name === "AbortError") return;
  $("problem").textContent = error?.message ?? "";
  $("problem").hidden = !error;
}

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

/** Ask for one line; null if nothing was given. */
function ask(title, label, secret = false) {
  $("ask-name").textContent = title;
  $("ask-label").textContent = label;
  $("ask-value").type = secret ? "password" : "text";
  $("ask-value").value = "";
  $("ask").returnValue = "no";
  $("ask").showModal();
  return new Promise((answer) =>
    $("ask").addEventListener("close", () => answer($("ask").returnValue === "no" ? null : $("ask-value").value), { once: true }),
  );
}

// What was said

function shownTurn({ said, answer }) {
  const turn = element("article", "turn");
  turn.append(element("h2", "unseen", "You"), element("p", "said", said));
  turn.append(element("h2", "unseen", "Answer"), element("p", "answer", answer));
  return turn;
}

/** Show the conversation as it is, and its session. */
function show() {
  const talk = talks.now;
  $("log").replaceChildren(...talk.turns.map(shownTurn));
  if (!talk.turns.length) $("log").append(hint(talk));
  $("text").value = talk.draft;
  $("reading").hidden = true;
  life.forget();
  complain(null);
  permit();
  scroll();
  return follow();
}

/** Show the session until it rests. */
async function follow() {
  const mine = ++shown, talk = talks.now, memory = talk.model.split("@")[1];
  const path = talks.id ? `v1/responses/${talks.id}` : memory && `v1/memories/${memory}`;
  $("talks").replaceChildren(...talks.all.map((each, i) => new Option(talks.title(each), i, false, i === talks.index)));
  try {
    for (let tries = 0; path && tries < 20; tries++) {
      const session = await json("GET", `${path}/session`);
      if (mine !== shown) return;
      talks.heard(session.tokens);
      see(session);
      if (session.awake.length < session.window_size) return;
      await new Promise((done) => setTimeout(done, 300)); // it is about to sleep
    }
  } catch (error) {
    if (mine === shown) complain(error);
  }
}

/** Show what the session is by now, and which turns it has no tokens of any more. */
function see(session) {
  life.take(session);
  const articles = $("log").querySelectorAll(".turn");
  talks.now.turns.forEach((turn, i) => articles[i]?.classList.toggle("evicted", turn.tokens <= session.evicted));
}

function hint(talk) {
  const memory = talk.model.split("@")[1];
  const empty = element("div", "hint");
  empty.append(element("p", "", memory ? `This conversation begins with what ${memory} has read.` : "Tell it something, then ask."));
  if (model === "example") {
    empty.append(element("p", "", "The example knows the words of its task alone, such as:"));
    for (const text of EXAMPLE) {
      const button = element("button", "", text);
      button.onclick = () => (($("text").value = text), $("text").focus());
      empty.append(button);
    }
  }
  return empty;
}

function scroll() {
  $("log").scrollTop = $("log").scrollHeight;
}

function permit() {
  const talk = talks.now, busy = stop !== null, begun = talk.turns.length > 0;
  for (const id of ["talks", "new", "open", "compare"]) $(id).disabled = busy;
  for (const id of ["undo", "branch"]) $(id).disabled = busy || !begun;
  $("forget").disabled = busy || (talks.all.length === 1 && !begun);
  $("save").disabled = busy || !talks.id;
  $("send").textContent = busy ? "Stop" : "Send";
  $("log").setAttribute("aria-busy", busy);
}

/** Show an article while it is written, which can be stopped; where it fails, it goes, and what was said comes back. */
async function write(article, said, work) {
  if (!$("reading").hidden) show();
  stop = new AbortController();
  shown++;
  complain(null);
  permit();
  $("text").value = "";
  $("log").querySelector(".hint")?.remove();
  $("log").append(article);
  scroll();
  try {
    await work(stop.signal);
  } catch (error) {
    stop = null;
    article.remove();
    show();
    $("text").value = said;
    complain(error);
  } finally {
    stop = null;
    permit();
    scroll();
  }
}

/** Write the answer to a request into an element, as it comes; the whole response. */
async function stream(answer, body, signal) {
  answer.classList.add("written");
  for await (const event of respond(body, signal)) {
    if (event.type === "response.output_text.delta") answer.append(event.delta);
    if (event.type === "reverie.session" && body.store !== false) see(event.session);
    if (event.type === "response.output_text.delta") scroll();
    if (!event.response?.usage) continue;
    answer.classList.remove("written");
    answer.textContent = event.response.output.flatMap((item) => item.content).map((part) => part.text).join("");
    return event.response;
  }
}

function say(said) {
  const talk = talks.now, article = shownTurn({ said, answer: "" }), answer = article.lastElementChild;
  talk.draft = said;
  talks.keep();
  return write(article, said, async (signal) => {
    const { id, usage } = await stream(answer, { model: talk.model, input: said, previous_response_id: talks.id }, signal);
    talks.add(talk, { id, said, answer: answer.textContent, tokens: usage.total_tokens }); // as far as anyone knows yet
    tell(answer.textContent || "Heard.");
    follow();
  });
}

/** Ask with this memory and with an empty one, side by side; nothing of it is remembered. */
function compare(said) {
  const card = element("article", "compared"), sides = element("div", "sides");
  card.append(element("p", "said", said), sides, element("p", "hint", "Asked aside: nothing of this is remembered."));
  return write(card, said, async (signal) => {
    const asked = { input: said, temperature: 0, store: false }, answers = [];
    for (const [name, from] of [
      ["with its memory", { model: talks.now.model, previous_response_id: talks.id }],
      ["with an empty memory", { model }],
    ]) {
      const side = element("section", ""), answer = element("p", "answer");
      side.append(element("h3", "", name), answer);
      sides.append(side);
      await stream(answer, { ...asked, ...from }, signal);
      answer.textContent ||= "no answer: it takes this for a text and no question";
      answers.push(`${name}: ${answer.textContent}`);
    }
    tell(answers.join(". "));
  });
}

// What can be done

function begin(name) {
  talks.begin(name);
  show();
  $("text").focus();
}

const done = (work) => async () => {
  try {
    await work();
  } catch (error) {
    complain(error);
  }
};

$("say").onsubmit = (event) => {
  event.preventDefault();
  const said = $("text").value.trim();
  if (stop) stop.abort();
  else if (said) say(said);
};
$("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!stop) $("say").requestSubmit();
};
addEventListener("keydown", (event) => event.key === "Escape" && stop?.abort());
$("compare").onclick = () => ($("text").value.trim() ? compare($("text").value.trim()) : $("text").focus());
$("talks").onchange = () => (talks.choose(Number($("talks").value)), show());
$("new").onclick = () => begin(model);
$("branch").onclick = () => (talks.branch(), show(), tell("A second conversation goes on from here."), $("text").focus());
$("undo").onclick = done(async () => {
  const turn = talks.now.turns.at(-1);
  const undone = talks.undo();
  await show();
  $("text").value = turn.said;
  $("text").focus();
  tell("Taken back.");
  await undone;
});
$("forget").onclick = done(async () => {
  if (!confirm("Delete this conversation, here and on the server?")) return;
  const forgotten = talks.forget();
  if (!talks.all.length) talks.begin(model);
  show();
  await forgotten;
});
$("save").onclick = done(async () => {
  const name = await ask("Save as a memory", "Name");
  if (!name) return;
  await call("POST", "v1/memories", { name, source: talks.id });
  tell(`Saved as ${name}.`);
});
$("open").onclick = () => openMemories({ begin, read });
$("ask-cancel").onclick = () => $("ask").close("no");
onKeyWanted(async (wrong) => {
  const key = await ask(wrong ? "That key is wrong" : "This server asks for a key", "API key", true);
  if (key === null) throw new Error("this server asks for a key: reload the page to give one");
  return key;
});

/** Watch a text being read, in the place of the session. */
function read(name) {
  const mine = ++shown;
  life.forget();
  watchReading(name, life, () => mine === shown, { begin, show, complain, tell });
}

addEventListener("storage", () => {
  if (stop) return;
  talks.load();
  if (!talks.all.length) talks.begin(model);
  show();
});

const narrow = matchMedia("(max-width: 800px)");
const fold = () => ($("life").open = !narrow.matches);
narrow.addEventListener("change", fold);
fold();

try {
  model = (await json("GET", "v1/models")).data[0].id;
  $("model").textContent = model;
  document.title = `${model} · reverie`;
  if (!talks.all.length || talks.now.model.split("@")[0] !== model) talks.begin(model);
  await show();
} catch (error) {
  complain(error);
}
