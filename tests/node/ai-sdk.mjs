// Vercel's AI SDK at the door: `node ai-sdk.mjs SCENARIO BASE_URL MODEL` does one thing and prints
// what the SDK made of it, as one line of JSON. The expectations are in
// tests/conformance/test_ai_sdk.py.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;

const [scenario, baseURL, name] = process.argv.slice(2);
const options = { includeUsage: true, supportsStructuredOutputs: true };
const model = createOpenAICompatible({ name: "mesh", baseURL, ...options })(name);
const asked = { model, prompt: "hello", maxRetries: 0 };

const look = tool({
  inputSchema: z.object({ at: z.string() }),
  execute: async ({ at }) => `${at} shines`,
});
const working = { ...asked, tools: { look }, stopWhen: isStepCount(3) };
const day = z.object({ city: z.string(), hours: z.number() });

const scenarios = {
  async plain() {
    const { text, usage, finishReason } = await generateText(asked);
    return { text, total: usage.totalTokens, finishReason };
  },

  async stream() {
    const result = streamText(asked);
    const texts = await Array.fromAsync(result.textStream);
    return { texts, total: (await result.usage).totalTokens, finishReason: await result.finishReason };
  },

  async tools() {
    const { text, steps } = await generateText(working);
    return { text, steps: steps.length };
  },

  async "streamed-tools"() {
    const result = streamText(working);
    return { text: await result.text, steps: (await result.steps).length };
  },

  async form() {
    return (await generateText({ ...asked, output: Output.object({ schema: day }) })).output;
  },

  async fields() {
    const providerOptions = { mesh: { agent_id: name } };
    const elsewhere = createOpenAICompatible({ name: "mesh", baseURL })("some-model");
    return { text: (await generateText({ ...asked, model: elsewhere, providerOptions })).text };
  },

  async failure() {
    try {
      await generateText(asked);
    } catch (error) {
      return { name: error.name, status: error.statusCode, message: error.message };
    }
  },

  async "streamed-failure"() {
    let message;
    const result = streamText({ ...asked, onError: ({ error }) => (message = error.message) });
    const texts = await Array.fromAsync(result.textStream);
    return { texts, message, finishReason: await result.finishReason };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
