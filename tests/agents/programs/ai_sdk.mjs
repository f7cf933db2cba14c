// The Vercel AI SDK with one tool. Arguments: provider (openai, openai-chat, openai-compatible, anthropic), stream or whole, the task.
import { spawnSync } from "node:child_process";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";

const [provider, streamed, prompt] = process.argv.slice(2);
const baseURL = (process.argv[2] === "anthropic" ? `${process.env.ANTHROPIC_BASE_URL}/v1` : process.env.OPENAI_BASE_URL);
const apiKey = process.env.OPENAI_API_KEY;
const model = {
  openai: () => createOpenAI({ baseURL, apiKey })(process.env.MODEL ?? "gpt-5.2"),
  "openai-chat": () => createOpenAI({ baseURL, apiKey }).chat(process.env.MODEL ?? "gpt-5.2"),
  "openai-compatible": () => createOpenAICompatible({ name: "r2v", baseURL, apiKey, includeUsage: true })("r2v"),
  anthropic: () => createAnthropic({ baseURL, apiKey })("claude-sonnet-4-5"),
}[provider]();

const bash = tool({
  description: "Run a command in the repository and return what it prints.",
  inputSchema: z.object({ command: z.string() }),
  execute: async ({ command }) => {
    const done = spawnSync("bash", ["-c", command], { encoding: "utf8" });
    return `${done.stdout}${done.stderr}\nexit status ${done.status}`;
  },
});
const settings = { model, prompt, instructions: "You fix code.", tools: { bash }, stopWhen: isStepCount(10), maxRetries: 0 };
if (streamed === "stream") {
  const result = streamText({ ...settings, onError: ({ error }) => { console.error(error); process.exitCode = 1; } });
  console.log(await result.text);
} else {
  console.log((await generateText(settings)).text);
}
