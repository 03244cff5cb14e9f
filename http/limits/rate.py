"""How often a key may ask: a token bucket, a pure function on a clock."""

import msgspec


class Bucket(msgspec.Struct, frozen=True):
    """``tokens`` requests could be made at ``at_s``."""

    tokens: float
    at_s: float


def take(bucket: Bucket | None, now_s: float, *, per_minute: float, burst: int) -> tuple[Bucket, float]:
    """The bucket after one more request, and the seconds until one is possible: 0 when this one is."""
    per_s = per_minute / 60
    tokens = float(burst)
    if bucket is not None:
        tokens = min(tokens, bucket.tokens + max(0.0, now_s - bucket.at_s) * per_s)
    if tokens >= 1:
        return Bucket(tokens - 1, now_s), 0.0
    return Bucket(tokens, now_s), (1 - tokens) / per_s
