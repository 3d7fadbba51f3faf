// The openai npm client at the door: `node openai.mjs SCENARIO BASE_URL MODEL` does one thing and
// prints what the client made of it, as one line of JSON. The expectations are in
// tests/conformance/test_openai_npm.py.

import OpenAI from "openai";

const [scenario, baseURL, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "hello" }];

let requests = 0;
const counting = (...request) => {
  requests += 1;
  return fetch(...request);
};
// Its retries are on, as they are by default.
const client = new OpenAI({ baseURL, apiKey: "any", fetch: counting });
const chat = client.chat.completions;

const day = {
  type: "object",
  properties: { city: { type: "string" }, hours: { type: "number" } },
  required: ["city", "hours"],
  additionalProperties: false,
};
const look = {
  type: "function",
  function: {
    name: "look",
    parameters: { type: "object", properties: { at: { type: "string" } } },
    parse: JSON.parse,
    function: ({ at }) => `${at} shines`,
  },
};

const scenarios = {
  async plain() {
    const { data, response, request_id } = await chat.create({ model, messages }).withResponse();
    const call = response.headers.get("mesh-call-id");
    return { ...data, request_id, is_named: data.id === `chatcmpl-${call}` };
  },

  async stream() {
    const chunks = [];
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await chat.create({ model, messages, ...options })) chunks.push(chunk);
    return {
      texts: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? null),
      reasons: chunks.map((chunk) => chunk.choices[0]?.finish_reason ?? null),
      ids: new Set(chunks.map((chunk) => chunk.id)).size,
      usage: chunks.at(-1).usage,
    };
  },

  async helper() {
    const stream = chat.stream({ model, messages });
    let shown = "";
    stream.on("content", (delta) => (shown += delta));
    const final = await stream.finalChatCompletion();
    return { shown, choice: final.choices[0] };
  },

  async form() {
    const response_format = { type: "json_schema", json_schema: { name: "day", schema: day } };
    const found = await chat.parse({ model, messages, response_format });
    return { parsed: found.choices[0].message.parsed };
  },

  async tools() {
    const runner = chat.runTools({ model, messages, tools: [look] });
    return { content: await runner.finalContent(), requests };
  },

  async "streamed-tools"() {
    const runner = chat.runTools({ model, messages, tools: [look], stream: true });
    return { content: await runner.finalContent(), requests };
  },

  async models() {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    return { ids, one: await client.models.retrieve(model) };
  },

  // What the client raises, how often it asked, and what it had shown by then.
  async failure() {
    return raised(() => chat.create({ model, messages }));
  },

  async "streamed-failure"() {
    const texts = [];
    const told = await raised(async () => {
      const stream = await chat.create({ model, messages, stream: true });
      for await (const chunk of stream) texts.push(chunk.choices[0].delta.content);
    });
    return { ...told, texts };
  },

  async "bad-request"() {
    return raised(() => chat.create({ model, messages, n: 2 }));
  },

  async leave() {
    for await (const chunk of await chat.create({ model, messages, stream: true })) {
      if (chunk.choices[0].delta.content) return { text: chunk.choices[0].delta.content };
    }
  },
};

async function raised(ask) {
  try {
    await ask();
  } catch (error) {
    const { status, code, type, param, requestID, message } = error;
    return { name: error.constructor.name, status, code, type, param, requestID, message, requests };
  }
  throw new Error("nothing was raised");
}

console.log(JSON.stringify(await scenarios[scenario]()));
