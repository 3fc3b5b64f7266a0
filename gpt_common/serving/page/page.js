// The playground: what a model says, token by token, how likely each was, and what else could have stood there.
// Text from a model goes into the page as text, never as markup.

const SHADES = [0.9, 0.75, 0.5, 0.3, 0.15, 0.05, 0.01];
const ALTERNATIVES = 10;
const MOST_COLUMNS = 4;
const $ = (id) => document.getElementById(id);

let models = [];
const columns = [];

// ---- asking ---------------------------------------------------------------------------------------------------------

function headers() {
  const token = $("token").value || sessionStorage.getItem("token") || "";
  return { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

async function ask(path, body, signal) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const answer = await fetch(path, { ...options, headers: headers(), signal, credentials: "omit" });
  if (answer.ok) return answer;
  if (answer.status === 401) $("token-field").hidden = false;
  let said = `the server answered ${answer.status}`;
  try { said = (await answer.json()).error.message; } catch { /* no JSON: its status must do */ }
  throw new Error(said);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const document = JSON.parse(data);
      if (document.error) throw new Error(document.error.message);
      yield document.choices[0];
    }
  }
}

async function findModels() {
  const own = await (await ask("v1/models")).json();
  models = own.data.map((model) => ({ ...model, at: "" }));
  if (own.beside) {
    try {
      const others = await (await ask("beside/v1/models")).json();
      models.push(...others.data.map((model) => ({ ...model, at: "beside/" })));
    } catch (error) { complain(error); }
  }
  if ($("token").value) sessionStorage.setItem("token", $("token").value);
  $("token-field").hidden = true;
  const first = models[0];
  document.title = `${first.id} · playground`;
  $("over").textContent = [first.id, first.twin, first.step ? `step ${first.step}` : "", `block ${first.block_size}`]
    .filter(Boolean).join(" · ");
  $("max_tokens").max = first.max_tokens;
  $("chat-label").hidden = !models.some((model) => model.chat);
  $("chat").checked = Boolean(first.chat);
  if (!$("prompt").value) $("prompt").value = first.chat ? "" : (first.prompt ?? "");
  if (!columns.length) addColumn(0);
}

function complain(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
}

// ---- a column: one model and what it says ---------------------------------------------------------------------------

function addColumn(index) {
  const node = $("column").content.cloneNode(true).firstElementChild;
  const column = { node, text: node.querySelector(".text"), foot: node.querySelector(".foot"),
    select: node.querySelector("select"), adapter: node.querySelector(".adapter"),
    panel: node.querySelector(".alternatives"), prompt: [], said: [], shown: "", going: null };
  const id = `model-${Math.random().toString(36).slice(2)}`;
  column.select.id = id;
  node.querySelector("label").htmlFor = id;
  const groups = new Map(), twins = new Set(models.map((model) => model.twin)).size;
  models.forEach((model, i) => {
    if (!groups.has(model.twin)) groups.set(model.twin, Object.assign(document.createElement("optgroup"), { label: model.twin }));
    const loss = typeof model.val_loss === "number" ? ` · loss ${model.val_loss.toFixed(3)}` : "";
    const step = model.id.includes("/step-") ? "" : ` · step ${model.step}`;
    groups.get(model.twin).append(new Option(model.id + step + loss + (twins > 1 ? ` · ${model.twin}` : ""), i));
  });
  column.select.append(...(groups.size > 1 ? groups.values() : [...groups.values()][0].children));
  column.select.value = index;
  column.select.addEventListener("change", () => { clear(column); showHead(column); });
  node.querySelector(".remove").addEventListener("click", () => removeColumn(column));
  column.text.addEventListener("click", (event) => {
    const token = event.target.closest(".t");
    if (token) openAlternatives(column, Number(token.dataset.at));
  });
  column.text.addEventListener("keydown", (event) => walk(column, event));
  node.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !column.panel.hidden) { closeAlternatives(column, true); event.stopPropagation(); }
  });
  columns.push(column);
  $("columns").append(node);
  columns.forEach(showHead);
  return column;
}

function removeColumn(column) {
  column.going?.abort();
  columns.splice(columns.indexOf(column), 1);
  column.node.remove();
  columns.forEach(showHead);
  $("compare").focus();
}

function modelOf(column) { return models[Number(column.select.value)]; }

function showHead(column) {
  const model = modelOf(column);
  column.adapter.hidden = !model.adapter;
  column.node.querySelector(".remove").hidden = columns.length < 2;
  column.text.setAttribute("aria-label", `What ${model.id} says`);
  $("compare").disabled = columns.length >= MOST_COLUMNS || models.length < 1;
}

function clear(column) {
  column.going?.abort();
  closeAlternatives(column);
  column.text.replaceChildren();
  column.foot.textContent = "";
  Object.assign(column, { prompt: [], said: [], decoder: new TextDecoder() });
}

function settings(column) {
  const number = (id) => Number($(id).value);
  const model = modelOf(column);
  return { model: model.id, stream: true, return_token_ids: true, temperature: number("temperature"), top_p: number("top_p"),
    top_k: number("top_k"), ...($("seed").value === "" ? {} : { seed: number("seed") }),
    ...(model.adapter && !column.adapter.querySelector("input").checked ? { adapter: false } : {}) };
}

async function begin(column) {
  clear(column);
  const shown = document.createElement("span");
  shown.className = "prompt";
  shown.textContent = $("prompt").value;
  column.text.append(shown);
  const asked = { ...settings(column), max_tokens: Number($("max_tokens").value) };
  if ($("chat").checked && !$("chat-label").hidden) {
    shown.textContent += "\n\n";
    const messages = [{ role: "user", content: $("prompt").value }];
    await read(column, "v1/chat/completions", { ...asked, messages, logprobs: true, top_logprobs: ALTERNATIVES });
  } else {
    await read(column, "v1/completions", { ...asked, prompt: $("prompt").value, logprobs: ALTERNATIVES });
  }
}

async function goOnFrom(column, at, other) {
  column.going?.abort();
  closeAlternatives(column);
  const left = Math.max(1, Number($("max_tokens").value) - at - 1);
  const place = column.said[at];
  column.said.length = at;
  while (column.text.lastChild !== place.node) column.text.lastChild.remove();
  place.node.remove();
  column.decoder = new TextDecoder();
  append(column, { ...other, top: place.top }, true);
  const ids = [...column.prompt, ...column.said.map((token) => token.id)].slice(-modelOf(column).block_size);
  await read(column, "v1/completions", { ...settings(column), prompt: ids, max_tokens: left, logprobs: ALTERNATIVES });
}

async function read(column, path, body) {
  const going = new AbortController();
  column.going = going;
  column.text.setAttribute("aria-busy", "true");
  column.foot.textContent = "waiting …";
  busy();
  const began = performance.now();
  let made = 0, reason = "stopped";
  try {
    for await (const choice of events(await ask(modelOf(column).at + path, body, going.signal))) {
      if (choice.prompt_token_ids && !column.prompt.length) column.prompt = choice.prompt_token_ids;
      for (const token of tokensOf(choice)) { append(column, token); made += 1; }
      if (choice.finish_reason) reason = choice.finish_reason;
      sum(column, made, began, null);
    }
    sum(column, made, began, reason);
    announce(`${modelOf(column).id} has finished, ${column.said.length} tokens.`, column, true);
  } catch (error) {
    if (error.name === "AbortError") sum(column, made, began, "stopped");
    else { column.foot.textContent = ""; complain(error); }
  } finally {
    if (column.going === going) { column.going = null; column.text.removeAttribute("aria-busy"); }
    busy();
  }
}

// Both of OpenAI's forms, with the ids that this server adds.
function tokensOf(choice) {
  const said = choice.logprobs;
  if (!said) return [];
  if (said.content) return said.content.map((one) => ({ id: one.id, token: one.token, logprob: one.logprob, top: one.top_logprobs }));
  return said.tokens.map((token, i) => ({ id: choice.token_ids[i], token, logprob: said.token_logprobs[i],
    top: said.alternatives[i] }));
}

function textOf(column, token) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) return token;
  const raw = token.slice(6).match(/[0-9a-f]{2}/g).map((byte) => parseInt(byte, 16));
  return column.decoder.decode(new Uint8Array(raw), { stream: true });
}

function append(column, token, picked = false) {
  const node = document.createElement("span"), share = Math.exp(token.logprob);
  const shade = SHADES.findIndex((least) => share >= least);
  node.textContent = textOf(column, token.token);
  node.className = `t s${shade < 0 ? SHADES.length : shade}`;
  node.classList.toggle("picked", picked);
  node.classList.toggle("line", token.token === "\n");
  node.dataset.at = column.said.length;
  node.tabIndex = column.said.length ? -1 : 0;
  node.title = percent(share);
  column.said.push({ ...token, node });
  column.text.append(node);
  announce(node.textContent, column);
}

function sum(column, made, began, reason) {
  const nats = column.said.reduce((total, token) => total - token.logprob, 0) / Math.max(1, column.said.length);
  const rate = (1000 * made) / Math.max(1, performance.now() - began);
  const why = { stop: "ended", length: "full length", stopped: "stopped" }[reason];
  column.foot.textContent = [`${column.said.length} tokens`, `${nats.toFixed(2)} nats each`, `${Math.round(rate)} a second`, why]
    .filter(Boolean).join(" · ");
}

function busy() {
  const going = columns.some((column) => column.going);
  $("stop").disabled = !going;
}

// What a screen reader is told: whole sentences, not every letter.
function announce(text, column, last = false) {
  if (column !== columns[0] && !last) return;
  column.shown += text;
  if (!last && !(column.shown.length > 60 && /[.!?\n]\s*$/.test(column.shown))) return;
  $("live").textContent = column.shown;
  column.shown = "";
}

function percent(share) {
  return share >= 0.9995 ? "100 %" : share >= 0.1 ? `${(100 * share).toFixed(0)} %` : share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";
}

// ---- alternatives ---------------------------------------------------------------------------------------------------

function visible(token) {
  return token.replaceAll(" ", "\u2423").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");
}

function openAlternatives(column, at) {
  columns.forEach((other) => closeAlternatives(other));
  const { node, top, id } = column.said[at];
  const list = top.map((other) => {
    const button = document.createElement("button"), share = Math.exp(other.logprob);
    button.type = "button";
    const [word, bar, fill, said] = ["span", "span", "i", "span"].map((name) => document.createElement(name));
    word.className = "word"; word.textContent = visible(other.token);
    bar.className = "bar"; fill.style.width = `${100 * share}%`; bar.append(fill);
    said.className = "share"; said.textContent = percent(share);
    button.append(word, bar, said);
    button.setAttribute("aria-label", `${visible(other.token)}, ${percent(share)}${other.id === id ? ", chosen" : ""}`);
    if (other.id === id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => goOnFrom(column, at, other));
    return button;
  });
  column.panel.replaceChildren(...list);
  column.panel.addEventListener("keydown", moveInList);
  column.panel.hidden = false;
  node.classList.add("open");
  const inside = column.node.getBoundingClientRect(), place = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const room = inside.width - column.panel.offsetWidth;
  column.panel.style.left = `${Math.max(0, Math.min(place.left - inside.left, room))}px`;
  column.panel.style.top = `${place.bottom - inside.top + 6}px`;
  column.open = at;
  (column.panel.querySelector("[aria-current]") ?? list[0])?.focus({ preventScroll: true });
  column.panel.scrollIntoView({ block: "nearest" });
}

function closeAlternatives(column, back = false) {
  if (column.panel.hidden) return;
  column.panel.hidden = true;
  const token = column.said[column.open]?.node;
  token?.classList.remove("open");
  if (back) focusToken(column, column.open);
}

function moveInList(event) {
  const buttons = [...event.currentTarget.children], at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  buttons[(to + buttons.length) % buttons.length].focus();
}

function focusToken(column, at) {
  const token = column.said[at];
  if (!token) return;
  for (const other of column.text.querySelectorAll(".t[tabindex='0']")) other.tabIndex = -1;
  token.node.tabIndex = 0;
  token.node.focus();
}

function walk(column, event) {
  const token = event.target.closest(".t");
  if (!token) return;
  const at = Number(token.dataset.at), last = column.said.length - 1;
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    focusToken(column, Math.max(0, Math.min(to, last)));
    const now = column.said[Math.max(0, Math.min(to, last))];
    $("live").textContent = `${visible(now.token)}, ${percent(Math.exp(now.logprob))}`;
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openAlternatives(column, at);
  }
}

// ---- the form -------------------------------------------------------------------------------------------------------

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain(null);
  try {
    if (!models.length) await findModels();
  } catch (error) { complain(error); return; }
  await Promise.all(columns.map(begin));
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("form").requestSubmit(); }
});
$("stop").addEventListener("click", () => columns.forEach((column) => column.going?.abort()));
$("compare").addEventListener("click", () => {
  const taken = new Set(columns.map((column) => Number(column.select.value)));
  // The same model at another time is what most want to see: of one that has none, the next model.
  const free = models.findIndex((_, i) => !taken.has(i) && models[i].step !== models[0].step);
  const column = addColumn(free >= 0 ? free : Math.max(0, models.findIndex((_, i) => !taken.has(i))));
  column.select.focus();
  if (columns[0].said.length) begin(column);
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".alternatives, .t")) columns.forEach((column) => closeAlternatives(column));
});
findModels().catch(complain);
