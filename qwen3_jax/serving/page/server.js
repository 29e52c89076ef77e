/**
 * The HTTP client of the page: the model, readiness, and streamed answers.
 *
 * Invariant: every failure is thrown as a `Refusal` whose message is shown to the user; only an abort is thrown as the
 * browser's own error.
 */

export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status; // HTTP status; 0 if the connection failed
  }
}

/** Return the model: {id, max_model_len, supports_thinking, thinking_budget, max_thinking_budget}. */
export async function model(key) {
  return parsed(await (await ask("/v1/models", key)).text()).data[0];
}

/** Throw a Refusal while the model is compiling, or if the engine has failed. */
export async function ready() {
  try {
    await ask("/ready");
  } catch (refusal) {
    if (refusal.status !== 503) throw refusal;
    await ask("/health");
    throw new Refusal("The model is still compiling. Trying again every two seconds.", 503);
  }
}

/** Yield the chunks of a streamed answer. */
export async function* answer(body, key, signal) {
  const response = await ask("/v1/chat/completions", key, { body: JSON.stringify(body), method: "POST", signal });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new Refusal(chunk.error.message);
    yield chunk;
  }
  throw new Refusal("The connection ended before the answer was complete.");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Refusal("The server's response is not JSON.");
  }
}

async function ask(path, key, options = {}) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { cache: "no-store", headers, ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal("The server cannot be reached.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refusal(body?.error?.message ?? `The server responded with status ${response.status}.`, response.status);
}

/** Yield the data of server-sent events, wherever the network split them. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Refusal("The connection to the server was lost.");
    }
    if (piece.done) return;
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length > 0) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
