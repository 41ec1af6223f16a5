"""Where a worker finds the flows: in the checkout that it runs pareflow from, whoever made the deployment."""

from pathlib import Path

from pareflow.errors import EnvironmentUnfitError

ROOT = Path(__file__).resolve().parents[1]


def enter() -> dict[str, str]:
    """The step `pull` of prefect.yaml: the folder that a flow run works in.

    Prefect's own default is the folder that `prefect deploy` ran in, which is another in a container.
    Raises: EnvironmentUnfitError where pareflow is installed without its checkout.
    """
    if not (ROOT / "prefect.yaml").is_file():
        raise EnvironmentUnfitError(
            "a worker must run pareflow from a checkout, or from the image `worker`",
            f"{ROOT} has no prefect.yaml",
            "Install it with pip install --editable CHECKOUT",
        )
    return {"directory": str(ROOT)}
