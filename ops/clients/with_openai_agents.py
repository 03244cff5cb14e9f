"""OpenAI's agents package: it runs the tool by itself."""

import sys

from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, SQLiteSession, function_tool

url, model, *questions = sys.argv[1:]


@function_tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


agent = Agent(name="Ship", model=model, tools=[weather], model_settings=ModelSettings())
provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
session = SQLiteSession("ship")
for question in questions:
    done = Runner.run_sync(
        agent, question, session=session, run_config=RunConfig(model_provider=provider, tracing_disabled=True)
    )
    print(done.final_output)
