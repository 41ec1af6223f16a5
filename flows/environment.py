"""What Prefect, MLflow and OpenVINO read from the environment when imported: no telemetry, quiet logs.

Standard library only. Call `set_environment` before the first import of any of them; what the user has set
already stands. Child processes inherit it.
"""

import logging
import os

_NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",  # Prefect's client, Hugging Face; MLflow understands `true`, not `1`
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's, which DO_NOT_TRACK does not stop
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NNCF_CI": "true",
    # openvino-telemetry has no switch of its own. It is silent in CI, and of the variables that tell it so
    # this one (Azure Pipelines) changes nothing else in what we use.
    "TF_BUILD": "true",
}
_PREFECT = {
    # A killed run is known as crashed only by the absence of heartbeats.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Prefect's own temporary server loses history and outlives a killed run: fail rather than start one.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}
_MLFLOW = {
    # A server that is down is told after seconds, not minutes; tasks try again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Where runs lie on a server; standard output is the document's.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # its default runs whatever an artifact holds
}
# Quiet and verbose. Levels of the handlers, not of the loggers: the run's log reaches the Prefect server.
_LOGS = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": ("CRITICAL", "NOTSET"),
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": ("CRITICAL", "NOTSET"),
    "MLFLOW_LOGGING_LEVEL": ("ERROR", "INFO"),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": ("false", "true"),
}
SHARED = (*_NO_TELEMETRY, *_PREFECT, *_MLFLOW, *_LOGS, "PAREFLOW_STORE")
"""What the nodes of a cluster take over from the command's environment."""


def set_environment(verbose: bool = False) -> None:
    """Telemetry off, one heartbeat interval, no ephemeral server; foreign logs off unless `verbose`.

    A second call changes nothing: the command's word stands when the module of a flow speaks, too.
    """
    logs = {name: values[verbose] for name, values in _LOGS.items()}
    for name, value in (_NO_TELEMETRY | _PREFECT | _MLFLOW | logs).items():
        os.environ.setdefault(name, value)
    # Prefect writes to stderr when a log record does not reach the server, unless logging's own switch for
    # production says otherwise.
    logging.raiseExceptions = os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] != "CRITICAL"


def api_key() -> str | None:
    """A key of the servers that are asked: the first of those that the environment holds, as theirs does."""
    return next(iter(os.environ.get("PAREFLOW_API_KEYS", "").split()), None)
