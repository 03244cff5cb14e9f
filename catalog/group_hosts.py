"""The hosts of a worker group: which of them is this machine, and whether the model can be split over them."""

import ipaddress
import socket
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import psutil

from plimsoll.catalog.files import Tensor
from plimsoll.catalog.source import Group, GroupHost
from plimsoll.config import HostConfig, ModelEntry, ModelsConfig
from plimsoll.errors import ConfigError
from plimsoll.memory.load_options import Weight


def group_of(name: str, entry: ModelEntry) -> Group | None:
    """The group that serves the entry ``name``, if it names hosts. Raises ``ConfigError``."""
    if not entry.hosts or not entry.enabled:
        return None
    hosts = tuple(_host(one) for one in entry.hosts)
    if not hosts[0].here:
        key = f"models.entries.{name}.hosts"
        raise ConfigError(
            f"{key}: the first host has to be this machine, and {hosts[0].name} is not (it is {socket.gethostname()}): "
            "the first rank runs here",
            param=key,
        )
    assert entry.backend != "mpi"  # noqa: S101 - refused with the configuration
    return Group(hosts, entry.backend, entry.split)


def first_ports(config: ModelsConfig) -> dict[str, int]:
    """The first port that the hosts of each entry use between them.

    No two entries share one: MLX lets two groups that start at the same time listen on one port, and mixes them up.
    """
    counts = [len(entry.hosts) for entry in config.entries.values()]
    return dict(zip(config.entries, accumulate(counts, initial=config.group_port), strict=False))


def share_of(weight: Weight, outside: Weight, layers: int, group: Group) -> Weight:
    """What one rank holds of a model; ``outside`` is the part of it that is in no layer, which every rank holds."""
    count = len(group.hosts)
    # The first ranks of a pipeline get the layers that are left over.
    part = 1 / count if group.split == "tensor" else -(-layers // count) / max(layers, 1)
    return Weight(
        **{
            key: getattr(outside, key) + int((getattr(weight, key) - getattr(outside, key)) * part)
            for key in ("stored_bytes", "float32_bytes", "dense_bytes", "kv_values_per_token")
        },
        context=weight.context,
    )


def in_no_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings, the last norm and the head."""
    return {name: tensor for name, tensor in tensors.items() if ".layers." not in f".{name}"}


def refuse_split(config: dict[str, Any], group: Group) -> None:
    """Raises ``ValueError`` where ``config.json`` shows that the model can't be split over so many hosts."""
    count = len(group.hosts)
    if group.split == "pipeline":
        layers = config.get("num_hidden_layers")
        if isinstance(layers, int) and layers < count:
            raise ValueError(f"it has {layers} layers, too few for {count} hosts; name {layers} hosts at most")
        return
    for key, what in (
        ("num_attention_heads", "attention heads"),
        ("num_key_value_heads", "KV heads"),
        ("intermediate_size", "columns in its MLP"),
    ):
        number = config.get(key)
        if isinstance(number, int) and number % count:
            raise ValueError(
                f"it has {number} {what}, which {count} hosts can't share evenly: name a number of hosts that divides "
                f"{number}, or set split: pipeline"
            )


def _host(told: str | HostConfig) -> GroupHost:
    one = HostConfig(host=told) if isinstance(told, str) else told
    address = one.address or one.host.rpartition("@")[2]
    return GroupHost(one.host, address, tuple(one.rdma), here=_is_here(address))


def _is_here(address: str) -> bool:
    own = socket.gethostname().partition(".")[0].lower()
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return address.partition(".")[0].lower() in (own, "localhost")
    return any(address == one.address for found in psutil.net_if_addrs().values() for one in found)
