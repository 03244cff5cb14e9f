"""Who else uses this machine's memory."""

from collections.abc import Collection

import psutil


def largest_others(own_pids: Collection[int], count: int = 3) -> list[tuple[str, int, int]]:
    """(name, pid, resident bytes) of the largest processes besides ``own_pids``, largest first.

    It looks at every process, which takes milliseconds: for changes of level, not for samples.
    """
    others = []
    for process in psutil.process_iter():
        if process.pid in own_pids:
            continue
        try:
            others.append((process.name(), process.pid, int(process.memory_info().rss)))
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return sorted(others, key=lambda other: other[2], reverse=True)[:count]
