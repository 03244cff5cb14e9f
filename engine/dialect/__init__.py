"""How one model family is asked and how it writes: from messages to a prompt, from an answer's text to its parts."""
