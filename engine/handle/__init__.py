"""The front's handle on worker processes: start them, talk to them, hear of their end."""
