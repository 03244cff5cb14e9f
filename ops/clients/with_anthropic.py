"""Anthropic's package: an answer, a tool call with its result, a second message as a stream."""

import sys

from anthropic import Anthropic

url, model, first, second, third = sys.argv[1:]
client = Anthropic(base_url=url, api_key="none")
city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"name": "weather", "input_schema": city}]
messages = [{"role": "user", "content": first}]
said = client.messages.create(model=model, max_tokens=500, messages=messages)
print(said.content[0].text)

messages += [{"role": "assistant", "content": said.content}, {"role": "user", "content": second}]
asked = client.messages.create(model=model, max_tokens=500, messages=messages, tools=tools)
call = next(block for block in asked.content if block.type == "tool_use")
result = {"type": "tool_result", "tool_use_id": call.id, "content": f"sunny in {call.input['city']}"}
messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
said = client.messages.create(model=model, max_tokens=500, messages=messages, tools=tools)
print(said.content[0].text)

messages += [{"role": "assistant", "content": said.content}, {"role": "user", "content": third}]
with client.messages.stream(model=model, max_tokens=500, messages=messages) as stream:
    for text in stream.text_stream:
        print(text, end="")
