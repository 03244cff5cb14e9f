"""Whose keep_alive counts where keys are configured: how long a model stays is one time for all who use it."""

import ollama
import pytest
from scripts import sends

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Vectors
from plimsoll.actors.status import ModelStatus, State

USER = [{"role": "user", "content": "hi"}]
KEYS = [
    {"name": name, "role": role, "key": f"the-key-of-{name}"} for name, role in (("ada", "user"), ("boss", "admin"))
]


@pytest.fixture
def server_config():
    entries = {"tiny": {"source": "fake:", "idle_ttl": None}, "bert": {"source": "fake:", "embeddings": True}}
    return {"models": {"builtin": False, "entries": entries}, "access": {"keys": KEYS}}


@pytest.fixture
def client(server, system):
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    system.scripts[m.LoadModel] = lambda load: load.reply.send(ModelStatus(load.model, State.READY))
    system.scripts[m.UnloadModel] = lambda unload: unload.reply.send(ModelStatus(unload.model, State.STOPPED))

    def named(name):
        return ollama.Client(server.url, headers={"Authorization": f"Bearer the-key-of-{name}"}, timeout=60)

    with named("ada") as ada, named("boss") as boss:
        yield {"ada": ada, "boss": boss}


@pytest.mark.parametrize("keep_alive", [0, "1s", "10m", -1])
def test_an_administrators_keep_alive_counts_and_a_users_has_no_effect(client, system, keep_alive):
    for name in ("ada", "boss"):
        assert client[name].chat("tiny", USER, keep_alive=keep_alive).message.content == "ok"
        assert client[name].generate("tiny", "hi", keep_alive=keep_alive).response == "ok"
        assert system.has_heard(m.KeepAlive) == (0 if name == "ada" else 2)


def test_a_users_keep_alive_has_no_effect_with_embeddings_either(client, system):
    system.scripts[m.Chat] = sends(Vectors(bytes(4), 1))
    client["ada"].embed("bert", "a", keep_alive=0)
    client["ada"].embeddings("bert", "a", keep_alive=0)
    assert not system.has_heard(m.KeepAlive)
    client["boss"].embed("bert", "a", keep_alive=0)
    assert system.has_heard(m.KeepAlive) == 1


def test_a_user_may_load_a_model_but_not_say_for_how_long(client, system):
    assert client["ada"].generate("tiny", keep_alive=-1).done_reason == "load"
    assert system.hears(m.LoadModel).model == "tiny"
    assert not system.has_heard(m.KeepAlive)


def test_a_user_can_not_unload_what_others_use(client, system):
    for unload in (client["ada"].chat, client["ada"].generate):
        with pytest.raises(ollama.ResponseError, match="'ada' has the role user; unloading tiny") as caught:
            unload("tiny", keep_alive=0)
        assert caught.value.status_code == 403
    assert not system.has_heard(m.UnloadModel)
    assert client["boss"].generate("tiny", keep_alive=0).done_reason == "unload"
    assert system.hears(m.UnloadModel).model == "tiny"
