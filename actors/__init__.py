"""The actors: Supervisor, ModelActor, Watchdog, and the messages between them."""
