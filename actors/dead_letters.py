"""What is left in the mailbox of an actor that ends: pykka drops it, and a request there must still get its ending."""

import pykka

from plimsoll.actors.messages import Failed, Handback, Load
from plimsoll.errors import PlimsollError


def answer_dead_letters(actor: pykka.ThreadingActor, error: PlimsollError) -> None:
    """End every request that never reached ``actor`` with ``error``, and spare workers that nobody gets now."""
    inbox, left = actor.actor_inbox, []
    while not inbox.empty():
        left.append(inbox.get())
    for envelope in left:
        message = envelope.message.chat if isinstance(envelope.message, Handback) else envelope.message
        if envelope.reply_to is not None:
            inbox.put(envelope)  # pykka's own: whoever asked waits for its answer
        elif (reply := getattr(message, "reply", None)) is not None:
            reply.send(Failed(error))
        elif isinstance(message, Load) and message.spare:
            message.spare.kill()
