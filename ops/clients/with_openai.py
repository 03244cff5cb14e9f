"""OpenAI's package: an answer, a tool call with its result, a second message as a stream."""

import json
import sys

from openai import OpenAI

url, model, first, second, third = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="none")
city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
messages = [{"role": "user", "content": first}]
said = client.chat.completions.create(model=model, messages=messages).choices[0].message
print(said.content)

messages += [said, {"role": "user", "content": second}]
asked = client.chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message
call = asked.tool_calls[0]
result = f"sunny in {json.loads(call.function.arguments)['city']}"
messages += [asked, {"role": "tool", "tool_call_id": call.id, "content": result}]
said = client.chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message
print(said.content)

messages += [said, {"role": "user", "content": third}]
for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="")
