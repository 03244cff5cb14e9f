"""LangChain: an answer, a tool call with its result, a second message as a stream."""

import sys

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, model, first, second, third = sys.argv[1:]


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none")
armed = chat.bind_tools([weather])
messages = [HumanMessage(first)]
messages.append(chat.invoke(messages))
print(messages[-1].content)

messages += [HumanMessage(second)]
messages.append(armed.invoke(messages))
messages += [weather.invoke(call) for call in messages[-1].tool_calls]
messages.append(armed.invoke(messages))
print(messages[-1].content)

for part in chat.stream([*messages, HumanMessage(third)]):
    print(part.content, end="")
