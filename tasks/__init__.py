"""What knows Prefect, MLflow and Ray: stages as tasks, tracking, the registry and all that moves in it."""
