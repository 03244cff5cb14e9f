// Tools in a chat: what the field says, which calls wait for a result, and messages as the server takes them.

/** The tools of the field, null where it is empty. Takes functions too. Throws where it is no list of tools. */
export function parseTools(text) {
  if (!text.trim()) return null;
  const tools = JSON.parse(text).map((one) => (one.function ? one : { type: "function", function: one }));
  if (tools.some((one) => typeof one.function.name !== "string")) throw new TypeError("a tool has no name");
  return tools;
}

/** The calls of the last answer that have no result yet, in their order. */
export function openCalls(messages) {
  const at = messages.findLastIndex((one) => one.role === "assistant");
  const answered = new Set(messages.slice(at + 1).map((one) => one.tool_call_id));
  return (messages[at]?.calls ?? []).filter((call) => !answered.has(call.id));
}

/** The arguments of a call, indented where they are JSON. */
export function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** A message without what only the page needs. */
export function forServer({ role, content, calls, tool_call_id }) {
  if (role === "tool") return { role, content, tool_call_id };
  if (!calls?.length) return { role, content };
  const functions = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
  return { role, content: content || null, tool_calls: functions };
}
