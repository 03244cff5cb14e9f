"""KV caches of the beginnings of prompts, in memory and on disk, shared by all conversations of one model."""
