"""Room for as many connections as are allowed: each is an open file, and the usual limit is 256 or 1024."""

import logging
import resource

_log = logging.getLogger("plimsoll.http")
# Workers' pipes and sockets, the log, the black box, model files that are being weighed.
_OTHERS = 256


def allow_open_files(connections: int) -> None:
    """Raise the soft limit as far as needed and allowed; say it when that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (OSError, ValueError):  # macOS refuses what is above kern.maxfilesperproc
        possible = soft
    if possible < wanted:
        text = "limits.connections is %d, but only %d files may be open; raise that with: ulimit -n %d"
        _log.warning(text, connections, possible, wanted)
