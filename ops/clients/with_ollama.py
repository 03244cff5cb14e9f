"""Ollama's package: an answer, a tool call with its result, a second message as a stream."""

import sys

from ollama import Client

url, model, first, second, third = sys.argv[1:]
client = Client(host=url)


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


messages = [{"role": "user", "content": first}]
said = client.chat(model, messages).message
print(said.content)

messages += [said, {"role": "user", "content": second}]
asked = client.chat(model, messages, tools=[weather]).message
result = weather(**asked.tool_calls[0].function.arguments)
messages += [asked, {"role": "tool", "tool_name": "weather", "content": result}]
said = client.chat(model, messages, tools=[weather]).message
print(said.content)

messages += [said, {"role": "user", "content": third}]
for part in client.chat(model, messages, stream=True):
    print(part.message.content, end="")
