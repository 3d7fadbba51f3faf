// The chat box: OpenAI's streamed chat completions, as any client would ask for them.

const form = document.getElementById("chat");
const said = document.getElementById("said");
const text = document.getElementById("text");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const messages = [];
let asking = null;

function say(who, words) {
  const line = document.createElement("p");
  line.className = who;
  line.textContent = words;
  said.append(line);
  said.scrollTop = said.scrollHeight;
  return line;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function ask(line) {
  const answer = await fetch(form.dataset.url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: form.dataset.agent, messages, stream: true }),
    signal: asking.signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    line.textContent += chunk.choices[0]?.delta?.content ?? "";
    said.scrollTop = said.scrollHeight;
  }
  messages.push({ role: "assistant", content: line.textContent });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const words = text.value.trim();
  if (!words || asking) return;
  asking = new AbortController();
  text.value = "";
  messages.push({ role: "user", content: words });
  say("user", words);
  const line = say("agent", "");
  send.hidden = true;
  stop.hidden = false;
  try {
    await ask(line);
  } catch (error) {
    line.className = "failed";
    line.textContent = asking.signal.aborted ? "stopped" : error.message;
    messages.pop();
  } finally {
    asking = null;
    send.hidden = false;
    stop.hidden = true;
    text.focus();
  }
});

text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => asking?.abort());
form.hidden = false;
document.getElementById("no-chat").hidden = true;
