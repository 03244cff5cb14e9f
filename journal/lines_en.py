"""The English lines; the keys and specs are those of ``lines``."""

ENGLISH = {
    "level_changed.normal": "✅ memory use is normal again: {e.percent:percent} ({e.source})",
    "level_changed.warning": "⚠️ high memory use: {e.percent:percent} ({e.source})",
    "level_changed.critical": "🚨 critical memory shortage: {e.percent:percent} ({e.source})",
    "level_changed.emergency": "🚨 memory emergency: {e.percent:percent} ({e.source}), all models are stopped now",
    "level_changed.fallen_to_warning": "memory use has fallen to {e.percent:percent} ({e.source}): still high",
    "level_changed.fallen_to_critical": "memory use has fallen to {e.percent:percent} ({e.source}): still critical",
    "forecast": (
        "⚠️ memory will be critically full in {e.seconds:.0f} s if it fills on like this: {e.percent:percent} now,"
        " no load begins meanwhile"
    ),
    "external_pressure": (
        "⚠️ memory is at {e.percent:percent} because of other processes: ours hold {e.ours_bytes:size},"
        " the largest others are {e.others:processes}"
    ),
    "readers_failed.all": "memory can't be read: {e.reason}; no model is loaded until it can",
    "readers_failed.some": "memory can't be read in full: {e.names:names} failed; sampling goes on",
    "readers_recovered": "memory is read in full again",
    "watchdog_restarted.dead": (
        "🚨 the watchdog of memory has died: a new one is started; loads waited {e.silent_s:.0f} s meanwhile"
    ),
    "watchdog_restarted.silent": (
        "🚨 the watchdog of memory has said nothing for {e.silent_s:.0f} s: a new one is started;"
        " loads waited meanwhile"
    ),
    "load_started": (
        "loading {e.model}: it needs {e.required_bytes:size} of memory, {e.reserved_bytes:size} are reserved for loads"
    ),
    "model_loaded": (
        "model {e.model} loaded into memory in {e.seconds:.1f} s: {e.weights_bytes:size} of weights,"
        " {e.footprint_bytes:size} in all, on {e.device}"
    ),
    "load_failed": "❌ model {e.model} could not be loaded into memory: {e.reason}",
    "load_refused": (
        "⛔ model {e.model} is not loaded: it needs {e.required_bytes:size} of memory, {e.available_bytes:size} are"
        " available at {e.percent:percent} ({e.reason})"
    ),
    "loads_refused": (
        "⛔ model {e.model} is not loaded: refused for lack of memory {e.count} more times in {e.seconds:.0f} s"
        " ({e.reason})"
    ),
    "model_unloaded": (
        "🗑️ model {e.model} unloaded from memory ({e.freed_bytes:size} of {e.expected_bytes:size} back in"
        " {e.milliseconds:.0f} ms; {e.reason})"
    ),
    "faster_form": (
        "⚡ model {e.model} is loaded anew in its faster form: that needs {e.required_bytes:size} of memory, and there"
        " has been enough for {e.seconds:.0f} s, {e.room_bytes:size} now"
    ),
    "cleanup_started.normal": "🧹 memory clean-up begins at {e.percent:percent} ({e.reason}): idle models are unloaded",
    "cleanup_started.aggressive": (
        "🧹 emergency memory clean-up begins at {e.percent:percent} ({e.reason}): all models are unloaded"
    ),
    "cleanup_done.some": (
        "✅ memory clean-up done: {e.freed_percent:percent} freed, now {e.percent_after:percent}"
        " ({e.freed_bytes:size} of {e.expected_bytes:size} back; unloaded: {e.unloaded:names})"
    ),
    "cleanup_done.none": (
        "✅ memory clean-up done: {e.freed_percent:percent} freed, now {e.percent_after:percent}"
        " (there was no model to unload)"
    ),
    "worker_died": "💥 the worker of {e.model} died while {e.doing} ({e.how}); its memory goes back to the system",
    "answers_paused": (
        "⏸️ {e.requests} requests of {e.model} are paused because {e.why}: they go on when it is in memory again"
    ),
    "answers_resumed": (
        "▶️ {e.requests} requests of {e.model} go on with a new worker, {e.paused_s:.1f} s after the first was paused"
        " because {e.why}; the model is in memory again"
    ),
    "out_of_memory": "❌ MemoryError: model {e.model} ran out of memory at {e.percent:percent}: {e.detail}",
    "worker_killed": "the worker of {e.model} (pid {e.pid}) did not stop in time and is killed to get its memory back",
    "worker_hung": (
        "💥 the worker of {e.model} (pid {e.pid}) hangs: {e.silent_s:.0f} s without a word while {e.doing}, with"
        " {e.requests} requests; it is killed and its memory taken back"
    ),
    "worker_stuck": (
        "🚨 the worker of {e.model} (pid {e.pid}) can't be ended, not even by SIGKILL: its {e.footprint_bytes:size} of"
        " memory count as used until the system lets it go"
    ),
    "stuck_worker_gone": "✅ the stuck worker of {e.model} (pid {e.pid}) is gone and its memory back",
    "server_started": "the memory journal begins: Plimsoll {e.version}, port {e.port}, pid {e.pid}",
    "server_stopped": "the memory journal ends: {e.reason}",
    "config_reloaded.some": (
        "the configuration was read again, memory stays under watch: changed {e.changed:names};"
        " only a restart changes {e.needs_restart:names}"
    ),
    "config_reloaded.none": "the configuration was read again, memory stays under watch: nothing has changed",
    "config_refused": "the configuration can't be used, memory is kept by the old one: {e.reason}",
    "node_joined": "the node {e.node} has joined the cluster: its memory is under watch",
    "node_lost": (
        "🚨 the node {e.node} was lost with all models in its memory: {e.reason}; {e.ended} answers ended with it"
    ),
    "last_run.clean": "the last run ended in order at {e.at:time} ({e.how}), memory at {e.percent:percent}",
    "last_run.killed": (
        "⚠️ the last run ended without a word at {e.at:time}, memory at {e.percent:percent}: it was killed or crashed"
    ),
}
