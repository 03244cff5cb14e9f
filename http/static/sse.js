// Server-sent events out of a fetch response; EventSource can't send an API key.

/** Yields `{event, data, id}` per event, and `{comment}` per comment line. */
export async function* frames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let frame = { event: "message", data: [], id: null };
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith(":")) {
          yield { comment: line.slice(1).trim() };
        } else if (line) {
          field(frame, line);
        } else {
          if (frame.data.length) yield { ...frame, data: frame.data.join("\n") };
          frame = { event: "message", data: [], id: null };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function field(frame, line) {
  const colon = line.indexOf(":");
  const name = colon < 0 ? line : line.slice(0, colon);
  const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
  if (name === "data") frame.data.push(value);
  else if (name === "event") frame.event = value;
  else if (name === "id") frame.id = value;
}
