"""What goes wrong, as lines of JSON on standard error."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("crad.serving")


class JsonLine(logging.Formatter):
    """A record as an object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log_lines() -> None:
    """Print warnings and errors of this package and of uvicorn as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine())
    for name in (LOGGER.name, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)


def warn(message: str, **fields: Any) -> None:
    """Log what a client did wrong."""
    LOGGER.warning(message, extra={"fields": fields})


def fail(message: str, error: BaseException, **fields: Any) -> None:
    """Log what went wrong here, with its traceback."""
    LOGGER.error(message, exc_info=error, extra={"fields": fields})
