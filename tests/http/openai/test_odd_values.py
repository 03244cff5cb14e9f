"""No value of any parameter is a server error."""

import struct

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Finished, Vectors
from plimsoll.engine.protocol import Usage
from plimsoll.http.openai import completions, embeddings, request, rerank
from plimsoll.http.openai.responses import routes as responses

VALID = {
    "/v1/chat/completions": (request.Body, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (completions.Body, {"prompt": "x"}),
    "/v1/responses": (responses.Body, {"input": "x"}),
    "/v1/embeddings": (embeddings.Body, {"input": "x"}),
    "/v1/rerank": (rerank.Body, {"query": "x", "documents": ["x"]}),
}
ODD = [
    *(None, True, False, 0, -1, 1, 2**63, 1e308, "", "x", "auto", "\x00", "\ud7ff" * 10),
    *([], [None], [[]], [{}], [""], ["x"], [0], [True], [[1], "x"]),
    *({}, {"type": None}, {"type": "function"}, {"type": "function", "function": None}, {"": 0}, {"1": None}),
    *({"type": "json_schema", "json_schema": {}}, {"format": {}}, {"format": None}, {"effort": 1}),
    [{"type": "function", "function": {"name": "f", "parameters": []}}],
    [{"role": "user", "content": [{}]}],
    [{"role": "assistant", "tool_calls": [None]}],
    [{"type": "function_call", "call_id": "", "name": "", "arguments": 5}],
]


@pytest.mark.parametrize("path", VALID)
def test_no_value_of_any_parameter_is_a_server_error(http, system, path):
    def answer(chat):
        chat.reply.send(Vectors(struct.pack("<f", 1.0), 1))
        chat.reply.send(Finished("stop", Usage()))

    system.scripts[m.Chat] = answer
    struct_type, valid = VALID[path]
    for name in struct_type.__struct_fields__:
        for value in ODD:
            response = http.post(path, json={"model": "tiny"} | valid | {name: value})
            assert response.status_code in (200, 400, 404), (name, value, response.text)
            if response.status_code == 400:
                error = response.json()["error"]
                assert error["param"].startswith((name, "tool", "top_logprobs")), (name, value, error)
