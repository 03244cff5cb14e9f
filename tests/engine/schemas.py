"""Random JSON schemas whose answers are short."""

import warnings

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["name", "age", "city", "tags", "kind", "ship", "größe", 'a "b"'])


def _array(items):
    return st.builds(
        lambda item, least, more: {"type": "array", "items": item, "minItems": least, "maxItems": least + more},
        items,
        st.integers(0, 2),
        st.integers(0, 1),
    )


def _object(values):
    def build(properties, required):
        names = sorted(name for name in required if name in properties)
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}

    return st.builds(build, st.dictionaries(NAMES, values, min_size=1, max_size=3), st.sets(NAMES))


LEAVES = st.one_of(
    st.builds(lambda least, more: {"type": "string", "maxLength": least + more}, st.integers(1, 5), st.integers(0, 9)),
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
              st.integers(-50, 50), st.integers(0, 500)),
    st.just({"type": "number", "minimum": 0, "maximum": 99}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": ["integer", "null"], "maximum": 9, "minimum": 0}),
    st.just({"type": "string", "pattern": "^[a-z]{2,4}-[0-9]{1,3}$"}),
    st.lists(st.sampled_from(["red", "green", "blue", 1, None, True]), min_size=1, max_size=3, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["x", 7, False]).map(lambda value: {"const": value}),
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(_array(inner), _object(inner)), max_leaves=5)
SCHEMAS = _object(VALUES)


def sample(count):
    """The same ``count`` different schemas every time."""
    found = {}

    @settings(max_examples=6 * count, database=None, derandomize=True, deadline=None, phases=[Phase.generate])
    @given(SCHEMAS)
    def collect(schema):
        found.setdefault(repr(schema), schema)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect()
    # The first ones are the simplest: take them from everywhere.
    every = list(found.values())
    return every[:: max(1, len(every) // count)][:count]
