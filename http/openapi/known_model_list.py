"""The lists of models of OpenAI's and LM Studio's clients, for the OpenAPI document."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from plimsoll.http.openapi.ollama import OllamaError
from plimsoll.http.openapi.openai import MODEL, Error
from plimsoll.http.openapi.schema import Operation, Told, json_of


class ModelMeta(Told):
    n_ctx_train: int | None
    n_params: int | None
    size: int


class Model(Told):
    """``context_length`` and ``max_model_len`` are the longest conversation that is accepted, as far as it is known."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None
    max_model_len: int | None
    meta: ModelMeta
    capabilities: list[str]


class Models(Told):
    object: Literal["list"]
    data: list[Model]


class LmStudioModel(Told):
    id: str
    object: Literal["model"]
    type: Literal["llm", "embeddings"]
    publisher: str
    arch: str
    compatibility_type: Literal["mlx", "gguf"]
    quantization: str
    state: Literal["loaded", "not-loaded"]
    max_context_length: int | None
    loaded_context_length: int | UnsetType = UNSET


class LmStudioModels(Told):
    object: Literal["list"]
    data: list[LmStudioModel]


class LmStudioNewModel(Told):
    type: Literal["llm", "embedding"]
    publisher: str
    key: str
    display_name: str
    architecture: str
    quantization: dict[str, str] | None
    size_bytes: int
    params_string: str | None
    loaded_instances: list[dict[str, Any]]
    max_context_length: int | None
    format: Literal["mlx", "gguf"]
    capabilities: dict[str, bool] | UnsetType = UNSET


class LmStudioNewModels(Told):
    models: list[LmStudioNewModel]


OPERATIONS = (
    Operation(
        path="/v1/models", about="Which models may be named", tag="OpenAI", error=Error, answers={200: json_of(Models)}
    ),
    Operation(
        path="/v1/models/{model}",
        about="One of them",
        tag="OpenAI",
        error=Error,
        parameters=(MODEL,),
        answers={200: json_of(Model)},
    ),
    Operation(
        path="/api/v0/models",
        about="The models, as LM Studio's clients read them",
        tag="OpenAI",
        error=OllamaError,
        answers={200: json_of(LmStudioModels)},
    ),
    Operation(
        path="/api/v1/models",
        about="The same in LM Studio's newer form",
        tag="OpenAI",
        error=OllamaError,
        answers={200: json_of(LmStudioNewModels)},
    ),
)
