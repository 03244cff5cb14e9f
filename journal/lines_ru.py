"""The Russian lines; the keys and specs are those of ``lines``.

The first words of four of them were promised as they stand: high use, critical shortage, unloaded, clean-up done.
"""
# ruff: noqa: RUF001 - Cyrillic is meant

RUSSIAN = {
    "level_changed.normal": "✅ Использование памяти снова в норме: {e.percent:percent} (память: {e.source})",
    "level_changed.warning": "⚠️ Высокое использование памяти: {e.percent:percent} (память: {e.source})",
    "level_changed.critical": "🚨 Критическая нехватка памяти: {e.percent:percent} (память: {e.source})",
    "level_changed.emergency": (
        "🚨 Память почти исчерпана: {e.percent:percent} (память: {e.source}), все модели останавливаются"
    ),
    "level_changed.fallen_to_warning": (
        "Использование памяти снизилось до {e.percent:percent} (память: {e.source}): всё ещё высокое"
    ),
    "level_changed.fallen_to_critical": (
        "Использование памяти снизилось до {e.percent:percent} (память: {e.source}): всё ещё критическое"
    ),
    "forecast": (
        "⚠️ При таком росте память будет критически заполнена через {e.seconds:.0f} с: сейчас {e.percent:percent},"
        " новые загрузки пока не начинаются"
    ),
    "external_pressure": (
        "⚠️ Другие процессы занимают память, использовано {e.percent:percent}: у наших {e.ours_bytes:size},"
        " самые большие из других: {e.others:processes}"
    ),
    "readers_failed.all": "Не удаётся прочитать память: {e.reason}; до тех пор модели не загружаются",
    "readers_failed.some": "Не вся память читается: отказали {e.names:names}; измерения продолжаются",
    "readers_recovered": "Вся память снова читается",
    "watchdog_restarted.dead": (
        "🚨 Сторож памяти остановился: память не измерялась {e.silent_s:.0f} с, запускается новый; загрузки ждали"
    ),
    "watchdog_restarted.silent": (
        "🚨 Сторож памяти молчит {e.silent_s:.0f} с: запускается новый, чтобы память снова измерялась; загрузки ждали"
    ),
    "load_started": (
        "Загрузка модели {e.model} в память: нужно {e.required_bytes:size},"
        " под загрузки отведено {e.reserved_bytes:size}"
    ),
    "model_loaded": (
        "Модель {e.model} загружена в память за {e.seconds:.1f} с: веса {e.weights_bytes:size},"
        " всего {e.footprint_bytes:size}, на {e.device}"
    ),
    "load_failed": "❌ Не удалось загрузить модель {e.model} в память: {e.reason}",
    "load_refused": (
        "⛔ Модель {e.model} не загружена в память: нужно {e.required_bytes:size}, доступно {e.available_bytes:size},"
        " использовано {e.percent:percent} ({e.reason})"
    ),
    "loads_refused": (
        "⛔ Модель {e.model} не загружена в память: ещё {e.count} отказов за {e.seconds:.0f} с ({e.reason})"
    ),
    "model_unloaded": (
        "🗑️ Модель {e.model} выгружена из памяти (память: возвращено {e.freed_bytes:size} из {e.expected_bytes:size}"
        " за {e.milliseconds:.0f} мс; {e.reason})"
    ),
    "faster_form": (
        "⚡ Модель {e.model} загружается заново в быстрой форме: нужно {e.required_bytes:size}, память для этого есть"
        " уже {e.seconds:.0f} с, сейчас {e.room_bytes:size}"
    ),
    "cleanup_started.normal": (
        "🧹 Очистка памяти начата при {e.percent:percent} ({e.reason}): выгружаются простаивающие модели"
    ),
    "cleanup_started.aggressive": (
        "🧹 Очистка памяти начата при {e.percent:percent} ({e.reason}): экстренно выгружаются все модели"
    ),
    "cleanup_done.some": (
        "✅ Очистка памяти выполнена: освобождено {e.freed_percent:percent}, теперь {e.percent_after:percent}"
        " (возвращено {e.freed_bytes:size} из {e.expected_bytes:size}; выгружены: {e.unloaded:names})"
    ),
    "cleanup_done.none": (
        "✅ Очистка памяти выполнена: освобождено {e.freed_percent:percent}, теперь {e.percent_after:percent}"
        " (выгружать было нечего)"
    ),
    "worker_died": "💥 Процесс модели {e.model} завершился ({e.how}; {e.doing}), его память возвращается системе",
    "answers_paused": (
        "⏸️ Запросы модели {e.model} приостановлены ({e.why}), всего {e.requests}: они продолжатся, когда модель"
        " вернётся в память"
    ),
    "answers_resumed": (
        "▶️ Запросы модели {e.model} продолжены новым процессом, всего {e.requests}: через {e.paused_s:.1f} с после"
        " паузы ({e.why}); модель возвращена в память"
    ),
    "out_of_memory": "❌ MemoryError: модели {e.model} не хватило памяти при {e.percent:percent}: {e.detail}",
    "worker_killed": (
        "Процесс модели {e.model} (pid {e.pid}) не остановился вовремя и снимается, чтобы вернуть его память"
    ),
    "worker_hung": (
        "💥 Процесс модели {e.model} (pid {e.pid}) завис: {e.silent_s:.0f} с без ответа ({e.doing}; запросов:"
        " {e.requests}); он снимается, его память возвращается системе"
    ),
    "worker_stuck": (
        "🚨 Процесс модели {e.model} (pid {e.pid}) не удаётся завершить даже сигналом SIGKILL: его память"
        " ({e.footprint_bytes:size}) считается занятой, пока система его не отпустит"
    ),
    "stuck_worker_gone": "✅ Зависший процесс модели {e.model} (pid {e.pid}) завершился, его память возвращена",
    "server_started": "Журнал: память под наблюдением, Plimsoll {e.version}, порт {e.port}, pid {e.pid}",
    "server_stopped": "Журнал закрыт, память больше не под наблюдением: {e.reason}",
    "config_reloaded.some": (
        "Конфигурация перечитана, память под наблюдением: изменено {e.changed:names};"
        " только после перезапуска изменится {e.needs_restart:names}"
    ),
    "config_reloaded.none": "Конфигурация перечитана, память под наблюдением: изменений нет",
    "config_refused": "Конфигурация не годится, память под наблюдением по старой: {e.reason}",
    "node_joined": "Узел {e.node} вошёл в кластер, его память под наблюдением",
    "node_lost": (
        "🚨 Узел {e.node} потерян, его память и модели в ней недоступны: {e.reason}; оборвано ответов: {e.ended}"
    ),
    "last_run.clean": (
        "Прошлый запуск завершён штатно {e.at:time} ({e.how}), память была занята на {e.percent:percent}"
    ),
    "last_run.killed": (
        "⚠️ Прошлый запуск оборвался без единого слова {e.at:time}, память была занята на {e.percent:percent}:"
        " процесс убит или упал"
    ),
}
