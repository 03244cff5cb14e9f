"""Pydantic AI: it runs the tool by itself."""

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, model, *questions = sys.argv[1:]
agent = Agent(OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none")))


@agent.tool_plain
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


history = []
for question in questions:
    done = agent.run_sync(question, message_history=history)
    history = done.all_messages()
    print(done.output)
