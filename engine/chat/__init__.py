"""The engine of language models: prompts in, tokens out, many requests in one batch."""
