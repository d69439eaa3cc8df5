"""Logs as JSON, one object a line, on stderr. Without `--log-format json` (or `AGL_LOG_FORMAT=json`), logs stay plain messages.

Each line has `time`, `level`, `logger`, and `message`. Lines of a rollout or a model call have `rollout_id`, `attempt_id`, and `call_id`,
also those of the agent's own loggers. Tokens, keys, and passwords become `***`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, cast

import msgspec

LogFormat = Literal["text", "json"]
VARIABLE = "AGL_LOG_FORMAT"
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes of every record. The others are `extra` fields."""
HIDDEN = "***"
SECRETS = (
    r"(?<=://)[^\s/@\"\\]+(?=@)"  # a token or a password in an address
    r"|(?<=Bearer )[\w.~+/=-]{8,}|(?<=Basic )[\w+/=-]{8,}"
    r"|\b(?:agl|sk)-[\w-]{16,}"  # keys of attempts, and of model providers
)
SECRET_NAMES = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PGPASSWORD)$")
"""Environment variables whose values are secrets."""
SHORTEST = 6
"""Characters of a value that is hidden wherever it appears. A shorter one would hide common words."""

_ids: ContextVar[dict[str, str] | None] = ContextVar("log_ids", default=None)


def set_log_ids(**ids: str) -> None:
    """Add ids to the log lines of the running task, and of the tasks and threads that it starts from now on."""
    _ids.set({**(_ids.get() or {}), **ids})


def hide_secrets(text: str) -> str:
    """Return a text with `***` in place of tokens, keys, and passwords."""
    return _secret_pattern().sub(HIDDEN, text)


def _secret_pattern() -> re.Pattern[str]:
    """The secrets of this process's environment, and texts that look like one."""
    values = {value for name, value in os.environ.items() if SECRET_NAMES.search(name) and len(value) >= SHORTEST}
    return re.compile("|".join([*map(re.escape, sorted(values, key=len, reverse=True)), SECRETS]))


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets = _secret_pattern()

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_ids.get() or {}),
            **{name: value for name, value in vars(record).items() if name not in STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode({name: self._plain(value) for name, value in line.items()}).decode()

    def _plain(self, value: Any) -> Any:
        """The value as JSON, without secrets. A value that JSON cannot hold becomes its text."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {self._plain(str(name)): self._plain(item) for name, item in cast("dict[Any, Any]", value).items()}
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in cast("list[Any]", value)]
        text = str(value).encode("utf-8", "backslashreplace").decode()
        return self._secrets.sub(HIDDEN, text)


def is_json() -> bool:
    """Whether this process logs JSON."""
    return os.environ.get(VARIABLE) == "json"


def set_up_logs(log_format: LogFormat | None = None) -> None:
    """Log as `log_format` says, in this process and in those that it starts. None: as the environment says."""
    if log_format is not None:
        os.environ[VARIABLE] = log_format
    if not is_json():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("agentlightning").setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_crash
    threading.excepthook = lambda args: _log_crash(args.exc_type, args.exc_value, args.exc_traceback)


def _log_crash(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is not None:
        logging.getLogger("agentlightning").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, traceback))
