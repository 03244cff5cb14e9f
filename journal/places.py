"""Where the log and the black box lie: null in the configuration means the platform's folder, "none" nowhere."""

from pathlib import Path

import platformdirs


def log_file(setting: str | None) -> Path | None:
    """``logging.file``; null: ``~/Library/Logs/plimsoll/plimsoll.log`` on macOS, the XDG state folder on Linux."""
    return _place(setting, platformdirs.user_log_path("plimsoll", appauthor=False) / "plimsoll.log")


def blackbox_file(setting: str | None) -> Path | None:
    """``logging.blackbox``; null: ``blackbox.sqlite`` in the platform's state folder."""
    return _place(setting, platformdirs.user_state_path("plimsoll", appauthor=False) / "blackbox.sqlite")


def _place(setting: str | None, default: Path) -> Path | None:
    if setting is None:
        return default
    return None if setting.lower() == "none" else Path(setting).expanduser()
