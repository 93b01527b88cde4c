// Requests to the server that this page came from.

const KEY = "reverie.key";
let wanted = async () => "";
let asking = null;

/** `ask` is called when the server wants a key, with whether one was wrong; it gives one. */
export function onKeyWanted(ask) {
  wanted = ask;
}

/** The response to a request, of a JSON body if it is no file. Throws an Error whose message is a sentence. */
export async function call(method, path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const file = body instanceof Blob;
    if (body && !file) headers["content-type"] = "application/json";
    const response = await fetch(path, { method, headers, body: body && !file ? JSON.stringify(body) : body, signal })
      .catch((error) => {
        throw error.name === "AbortError" ? error : new Error("the server does not answer");
      });
    if (response.ok) return response;
    if (response.status !== 401) throw new Error(await problem(response));
    if (key === sessionStorage.getItem(KEY)) {
      asking ??= wanted(Boolean(key)).finally(() => (asking = null));
      sessionStorage.setItem(KEY, (await asking).replace(/[^\x21-\x7e]/g, ""));
    }
  }
}

export async function json(method, path, body, signal) {
  return (await call(method, path, body, signal)).json();
}

/** The events of a response, as they come. */
export async function* respond(body, signal) {
  const asked = { ...body, stream: true, include: ["reverie.session"] };
  const response = await call("POST", "v1/responses", asked, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the server broke off");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const text of events) {
      const event = JSON.parse(text.slice(text.indexOf("data: ") + 6));
      if (event.type === "error") throw new Error(event.message);
      yield event;
      if (event.type === "response.completed" || event.type === "response.incomplete") return;
    }
  }
}

async function problem(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server refuses (${response.status})`;
}
