"""Responses that are kept, so that a request may go on with one of them."""

import asyncio
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from scripts import sends

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta
from plimsoll.http.openai.responses.input import Item
from plimsoll.http.response_folder import ResponseFolder, responses_folder
from plimsoll.http.response_store import ResponseStore, UnknownResponse

KEYS = {"access": {"keys": [{"name": one, "role": "user", "key": f"{one}-0123456789abcdef"} for one in ("ann", "bob")]}}


def told(system):
    """What the model was told by the newest request."""
    return [(one["role"], one["content"]) for one in system.hears(m.Chat).request.messages]


@pytest.fixture(autouse=True)
def _answers(system):
    system.scripts[m.Chat] = sends(Delta("Oslo", 1))


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_goes_on_with_a_response_that_was_kept(client, system, stream):
    first = client.responses.create(model="tiny", input="Where?", instructions="Be brief.")
    assert (first.store, told(system)) == (True, [("system", "Be brief."), ("user", "Where?")])
    given = {"model": "tiny", "input": "And then?", "previous_response_id": first.id}
    if stream:
        with client.responses.stream(**given) as events:
            events.until_done()
            second = events.get_final_response()
    else:
        second = client.responses.create(**given)
    # Instructions belong to one response and are not taken over.
    assert told(system) == [("user", "Where?"), ("assistant", "Oslo"), ("user", "And then?")]
    assert second.previous_response_id == first.id
    client.responses.create(model="tiny", input="Why?", previous_response_id=second.id)
    assert len(told(system)) == 5
    assert client.responses.retrieve(first.id).output_text == "Oslo"
    assert len(client.responses.input_items.list(second.id).data) == 4


def test_what_is_not_to_be_stored_or_was_deleted_is_not_known(client):
    unkept = client.responses.create(model="tiny", input="hi", store=False)
    kept = client.responses.create(model="tiny", input="hi")
    client.responses.delete(kept.id)
    for name in (unkept.id, kept.id, "resp_made_up"):
        with pytest.raises(openai.NotFoundError, match="whole conversation") as caught:
            client.responses.create(model="tiny", input="hi", previous_response_id=name)
        assert caught.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name)


def test_a_conversation_grows_with_each_response(client, system):
    conversation = client.conversations.create(items=[{"type": "message", "role": "developer", "content": "Be brief."}])
    for text in ("One?", "Two?"):
        client.responses.create(model="tiny", input=text, conversation=conversation.id)
    system.hears(m.Chat)
    assert told(system) == [("system", "Be brief."), ("user", "One?"), ("assistant", "Oslo"), ("user", "Two?")]
    assert len(client.conversations.items.list(conversation.id).data) == 5
    assert client.conversations.retrieve(conversation.id).id == conversation.id
    assert client.conversations.delete(conversation.id).deleted


def test_a_reference_to_an_item_that_is_kept_is_that_item(client, system):
    first = client.responses.create(model="tiny", input="Where?")
    system.hears(m.Chat)
    references = [{"type": "item_reference", "id": one} for one in (first.output[0].id, "msg_lost")]
    client.responses.create(model="tiny", input=[{"role": "user", "content": "a"}, *references])
    assert told(system) == [("user", "a"), ("assistant", "Oslo")]


@pytest.mark.parametrize("server_config", [KEYS])
def test_a_key_sees_only_its_own(http, server_config):
    ann, bob = ({"Authorization": f"Bearer {one}-0123456789abcdef"} for one in ("ann", "bob"))
    body = {"model": "tiny", "input": "hi"}
    name = http.post("/v1/responses", json=body, headers=ann).json()["id"]
    assert http.post("/v1/responses", json=body | {"previous_response_id": name}, headers=bob).status_code == 404
    assert http.get(f"/v1/responses/{name}", headers=bob).status_code == 404
    assert http.delete(f"/v1/responses/{name}", headers=bob).status_code == 404
    assert http.get(f"/v1/responses/{name}", headers=ann).status_code == 200


@pytest.mark.parametrize("server_config", [{"limits": {"stored_responses": 0}}])
def test_nothing_is_kept_where_the_store_is_off(client):
    answer = client.responses.create(model="tiny", input="hi")
    assert answer.store is False
    with pytest.raises(openai.NotFoundError, match="nothing is stored"):
        client.responses.create(model="tiny", input="hi", previous_response_id=answer.id)
    with pytest.raises(openai.BadRequestError, match="stored_responses"):
        client.conversations.create()


def test_a_request_goes_on_with_one_thing(client):
    with pytest.raises(openai.BadRequestError, match="one of them"):
        client.responses.create(model="tiny", input="x", previous_response_id="resp_1", conversation="conv_1")


def test_the_store_keeps_what_was_used_last_and_stays_within_its_bytes():
    store = ResponseStore(500)
    for name in ("a", "b"):
        store.put(name, "", [Item(role="user", content="x" * 100)], {})
    store.get("a", "")
    store.put("c", "", [Item(role="user", content="x" * 100)], {})
    assert [name for name in "abc" if name in store._kept] == ["a", "c"]
    assert store._held_bytes <= 500
    store.put("d", "", [Item(role="user", content="x" * 900)], {})
    with pytest.raises(UnknownResponse):
        store.get("d", "")
    for name in ("a", "c"):
        store.drop(name, "")
    assert store._held_bytes == 0


# ---- on disk


def until(condition: Callable[[], Any]) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    pytest.fail("it did not become true")


def opened(folder: Path, limit: int = 100_000) -> ResponseStore:
    """The store of a server that is started with this folder."""
    store = ResponseStore(limit, ResponseFolder(folder))
    asyncio.run(store.open())
    return store


def put(store: ResponseStore, name: str, owner: str = "", text: str = "hi") -> None:
    store.put(name, owner, [Item(role="user", content=text, id=f"msg_{name}")], {"id": name})


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.json")}


def test_a_server_that_is_started_again_has_what_was_stored_for_the_same_keys(
    client: openai.OpenAI, tmp_path: Path
) -> None:
    answer = client.responses.create(model="tiny", input="Where?")
    folder = responses_folder(None)
    assert folder
    (path,) = until(lambda: list(folder.glob("*.json")))
    store = opened(Path(shutil.copytree(folder, tmp_path / "next")))
    assert b"Oslo" in bytes(store.get(answer.id, "").items)
    assert (entry := store.with_item(answer.output[0].id, ""))
    assert entry.name == answer.id
    with pytest.raises(UnknownResponse):
        store.get(answer.id, "bob")
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, path)] == [0o700, 0o600]
    client.responses.delete(answer.id)
    assert until(lambda: not path.exists())


def test_a_broken_file_is_a_miss_and_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    store = opened(folder)
    for name in ("a", "b"):
        put(store, name)
    until(lambda: names(folder) == {"a", "b"})
    data = (folder / "a.json").read_bytes()
    (folder / "a.json").write_bytes(data[:-9])
    (folder / "c.json").write_bytes(b"\xff\x00")
    (folder / "d.json").write_bytes(data)  # of another name
    (folder / "e.part").write_bytes(b"half")
    (folder / "mine.txt").write_text("somebody else's")
    store.close()
    again = opened(folder)
    again.get("b", "")
    for name in ("a", "c", "d"):
        with pytest.raises(UnknownResponse):
            again.get(name, "")
    assert {path.name for path in folder.iterdir()} == {"b.json", "mine.txt", ".lock"}


def test_the_folder_is_bounded_while_the_server_runs_and_when_it_starts(tmp_path: Path) -> None:
    store = opened(tmp_path, 1000)
    for name in ("a", "b", "c"):
        put(store, name, text="x" * 300)
        until(lambda name=name: name in names(tmp_path))
    until(lambda: names(tmp_path) == {"b", "c"})
    store.close()
    smaller = opened(tmp_path, 500)
    smaller.get("c", "")
    assert names(tmp_path) == {"c"}


def test_a_second_server_leaves_the_files_of_the_first_alone(tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "kept"
    first = opened(folder)
    for name in ("a", "b"):
        put(first, name)
    until(lambda: names(folder) == {"a", "b"})
    (folder / "c.part").write_bytes(b"half written")
    second = opened(folder, 200)
    assert "another server keeps its responses" in caplog.text
    put(second, "d")
    second.get("d", "")
    second.drop("d", "")
    with pytest.raises(UnknownResponse):
        second.get("a", "")
    assert {path.name for path in folder.iterdir()} == {"a.json", "b.json", "c.part", ".lock"}
    first.close()
    opened(folder).get("a", "")


def test_a_folder_that_can_t_be_written_costs_only_what_a_restart_would_keep(tmp_path: Path, caplog: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    store = opened(blocked / "responses")
    for name in ("a", "b"):
        put(store, name)
    until(lambda: "responses are not kept on disk" in caplog.text)
    store.get("a", "")


def test_none_keeps_responses_in_memory_alone() -> None:
    assert responses_folder("none") is None
    assert responses_folder("~/x") == Path.home() / "x"
