"""The Responses API of OpenAI's package, where the server keeps the conversation."""

import json
import sys

from openai import OpenAI

url, model, first, second, third = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="none")
city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "name": "weather", "parameters": city}]
said = client.responses.create(model=model, input=first)
print(said.output_text)

asked = client.responses.create(model=model, input=second, tools=tools, previous_response_id=said.id)
call = next(item for item in asked.output if item.type == "function_call")
result = f"sunny in {json.loads(call.arguments)['city']}"
output = [{"type": "function_call_output", "call_id": call.call_id, "output": result}]
said = client.responses.create(model=model, input=output, tools=tools, previous_response_id=asked.id)
print(said.output_text)

with client.responses.stream(model=model, input=third, previous_response_id=said.id) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="")
