// One streamed answer of /v1/chat/completions, as callbacks and figures.

import { ApiError, send } from "./api.js";
import { t } from "./language.js";
import { frames } from "./sse.js";

/**
 * Sends `body` and follows the answer. `on` has `text(part)`, `reasoning(part)`,
 * `call(index, {id, function})`, which may come in parts, and `waiting(words)`.
 * Resolves to `{first_s, tokens, per_s, reason, exact, prompt, reused}`; `exact` is false where the tokens are counted by the parts.
 */
export async function streamAnswer(body, on, signal) {
  const started = performance.now();
  const told = { first: null, last: null, parts: 0, tokens: null, reason: null, prompt: 0, reused: 0 };
  try {
    const asked = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await send("/v1/chat/completions", { body: asked, signal });
    for await (const frame of frames(response)) {
      if (frame.comment !== undefined) on.waiting(frame.comment);
      else if (frame.data !== "[DONE]") chunk(JSON.parse(frame.data), on, told);
    }
  } catch (error) {
    if (error.name === "AbortError") return figures(told, started, "stopped");
    if (error instanceof ApiError) throw error;
    throw new ApiError(t("error.lost"));
  }
  if (told.reason === null) throw new ApiError(t("error.lost"));
  return figures(told, started, told.reason);
}

function chunk(data, on, told) {
  if (data.error) throw new ApiError(data.error.message);
  if (data.usage) {
    told.tokens = data.usage.completion_tokens;
    told.prompt = data.usage.prompt_tokens;
    told.reused = data.usage.prompt_tokens_details?.cached_tokens ?? 0;
  }
  for (const { delta, finish_reason: reason } of data.choices ?? []) {
    told.reason = reason ?? told.reason;
    if (!delta.content && !delta.reasoning_content && !delta.tool_calls) continue;
    told.last = performance.now();
    told.first ??= told.last;
    told.parts += 1;
    if (delta.reasoning_content) on.reasoning(delta.reasoning_content);
    if (delta.content) on.text(delta.content);
    for (const { index, ...call } of delta.tool_calls ?? []) on.call(index, call);
  }
}

function figures({ first, last, parts, tokens, prompt, reused }, started, reason) {
  const made = tokens ?? parts;
  const seconds = (last - first) / 1000;
  return {
    first_s: first === null ? null : (first - started) / 1000,
    tokens: made,
    // The first token's time belongs to the prompt.
    per_s: made > 1 && seconds > 0 ? (made - 1) / seconds : null,
    exact: tokens !== null,
    reason,
    prompt,
    reused,
  };
}
