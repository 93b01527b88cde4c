// The life of a session: its window, its sleep, its size.

const SHOWN = 48; // windows of the heat map
const TOLD = 4; // windows in words
const LEAST = 0.01; // change from which cells have a colour
const $ = (id) => document.getElementById(id);

/** Bytes in words, such as "24.6 kB". */
export function bytes(n) {
  const unit = n < 1e3 ? 0 : Math.min(Math.floor(Math.log10(n) / 3), 4);
  return `${(n / 1e3 ** unit).toFixed(unit ? 1 : 0)} ${["bytes", "kB", "MB", "GB", "TB"][unit]}`;
}

export const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

export class Life {
  /** `say` gets a sentence for who does not see the page. */
  constructor(say) {
    this.say = say;
    this.forget();
    const redraw = () => this.session && this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new ResizeObserver(redraw).observe($("life"));
  }

  /** Another session comes. */
  forget() {
    this.session = null;
    this.words = []; // of the tokens awake
    this.windows = []; // slept over
    $("facts").hidden = true;
    $("about").hidden = false;
    $("brief").textContent = "Nothing heard yet";
  }

  /** What the server tells of the session: all of it, or what is new since the last time. */
  take(session) {
    const known = this.windows.at(-1)?.number ?? -1;
    const slept = session.windows.filter((window) => window.number > known);
    if (slept.length && this.words.length === slept[0].tokens) slept[0].words = this.words;
    this.windows = [...this.windows, ...slept].slice(-SHOWN);
    this.words = [...this.words.slice(0, session.first), ...session.awake];
    const live = this.session !== null;
    this.session = session;
    $("facts").hidden = false;
    $("about").hidden = true;
    this.draw(live && !slept.length);
    if (live && slept.length) this.say(slept.map(sentence).join(" "));
  }

  draw(sameWindow = false) {
    const { session, words, windows } = this;
    const passes = count(session.passes, "pass").replace("passs", "passes");
    $("window-count").textContent = `${words.length} of ${count(session.window_size, "token")}`;
    $("sleep-count").textContent = session.slept_over ? passes : "not yet";
    $("evicted").textContent = count(session.evicted, "token");
    const size = `${bytes(session.memory_bytes)}`;
    $("brief").textContent = `${words.length} of ${session.window_size} awake, ${session.evicted.toLocaleString("en")} evicted, ${size}`;
    this.#words(sameWindow);
    this.#cells();
    this.#heat();
    this.#sizes();
    $("windows").replaceChildren(...windows.slice(-TOLD).reverse().map(row));
  }

  #words(same) {
    const shown = $("awake"), more = same ? shown.childElementCount : 0;
    if (!same) shown.replaceChildren();
    for (const word of this.words.slice(more)) {
      const span = document.createElement("span");
      span.textContent = word.replaceAll("\n", "⏎").trimEnd() || (word ? "␣" : "·");
      shown.append(span, "\u200b");
    }
    shown.hidden = !this.words.length;
    shown.scrollTop = shown.scrollHeight;
  }

  #cells() {
    const total = this.session.window_size, width = $("cells").parentElement.clientWidth;
    const columns = Math.min(total, Math.max(16, Math.floor(width / (total > 256 ? 6 : 11))));
    const side = width / columns, gap = Math.min(2, side / 4);
    const { pen, colour } = canvas("cells", width, Math.ceil(total / columns) * side);
    for (let i = 0; i < total; i++) {
      pen.fillStyle = colour(i < this.words.length ? (i === this.words.length - 1 ? "--accent" : "--awake") : "--line");
      pen.fillRect((i % columns) * side, Math.floor(i / columns) * side, side - gap, side - gap);
    }
  }

  #heat() {
    const { blocks, num_sleep_passes: most } = this.session, passes = Math.max(most, 1);
    const rows = blocks.length * passes, height = rows > 24 ? 4 : 9, between = 5, left = 62;
    const width = $("heat").parentElement.clientWidth, side = (width - left) / SHOWN;
    const { pen, colour } = canvas("heat", width, rows * height + (blocks.length - 1) * between);
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "middle";
    blocks.forEach((block, b) => {
      const top = b * (passes * height + between);
      pen.fillStyle = colour("--quiet");
      if (passes * height > 8) pen.fillText(`block ${block}`, 0, top + (passes * height) / 2);
      for (let n = 1; n <= passes; n++) {
        for (let w = 0; w < SHOWN; w++) {
          const x = left + w * side, y = top + (n - 1) * height, change = this.windows[w]?.change[n]?.[block];
          pen.globalAlpha = 1;
          pen.fillStyle = colour("--ground");
          pen.fillRect(x, y, side - 1, height - 1);
          if (change === undefined) continue;
          pen.globalAlpha = Math.min(Math.max(1 - Math.log(change) / Math.log(LEAST), 0.04), 1);
          pen.fillStyle = colour("--heat");
          pen.fillRect(x, y, side - 1, height - 1);
        }
      }
      pen.globalAlpha = 1;
    });
    const newest = this.windows.at(-1);
    const told = newest ? `${sentence(newest)} ${changes(newest)}` : "Nothing was slept over yet.";
    $("heat").setAttribute("aria-label", `Change of the fast weights by window, block and pass. ${told}`);
    $("heat").title = told;
  }

  #sizes() {
    const { memory_bytes: memory, cache_bytes_per_token: each, tokens } = this.session;
    const awake = each * this.words.length, cache = each * tokens, most = Math.max(memory + awake, cache, 1);
    const share = (id, part) => ($(id).style.width = `${(100 * part) / most}%`);
    share("memory-bar", memory);
    share("window-bar", awake);
    share("cache-bar", cache);
    $("memory-size").textContent = `${bytes(memory)}, and ${bytes(awake)} for the window`;
    $("cache-size").textContent = bytes(cache);
    const ratio = cache / (memory + awake);
    const times = ratio < 1 ? "The memory stays as it is; the cache would grow on." : `${ratio.toFixed(ratio < 9.95 ? 1 : 0)} times as much, and growing.`;
    $("size-told").textContent = `${count(tokens, "token")} heard. ${times}`;
  }
}

/** A canvas of this size that is sharp on this screen: what draws on it, and the page's colours by name. */
function canvas(id, width, height) {
  const element = $(id), scale = devicePixelRatio || 1, style = getComputedStyle(element);
  element.width = Math.round(width * scale);
  element.height = Math.round(height * scale);
  element.style.height = `${height}px`;
  const pen = element.getContext("2d");
  pen.scale(scale, scale);
  return { pen, colour: (name) => style.getPropertyValue(name) };
}

function sentence(window) {
  const passes = window.passes === 1 ? "1 pass" : `${Number(window.passes.toFixed(1))} passes`;
  return `Slept over window ${window.number + 1}: ${count(window.tokens, "token")}, ${passes}, ${duration(window.seconds)}.`;
}

const duration = (s) => (s < 0.9995 ? `${Math.max(1, Math.round(1e3 * s))} ms` : `${s.toFixed(1)} s`);

function changes(window) {
  const told = Object.entries(window.change).map(
    ([n, row]) => `pass ${n}: ${Object.entries(row).map(([block, x]) => `${x.toFixed(2)} in block ${block}`).join(", ")}`,
  );
  return told.length ? `Relative change in ${told.join("; ")}.` : "";
}

function row(window) {
  const item = document.createElement("li"), words = document.createElement("span"), told = document.createElement("span");
  words.textContent = window.words ? window.words.join("") : count(window.tokens, "token");
  told.textContent = `${Number(window.passes.toFixed(1))} × ${duration(window.seconds / window.passes)}`;
  item.title = `${sentence(window)} ${changes(window)}`;
  item.append(words, told);
  item.value = window.number + 1;
  return item;
}
