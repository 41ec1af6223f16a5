"""The flows, which order tasks and nothing else; the command line; the embedded Prefect server."""
