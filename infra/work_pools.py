"""Make the work pools of `work-pools.yaml` on the Prefect server, or bring them up to date.

`python infra/work_pools.py [NAME …]`: those named, or all. Each starts from the installed Prefect's template
for its type; `defaults` are what its variables are where a deployment says nothing, `variables` add some, and
`job` is laid over what they make. It runs wherever PREFECT_API_URL and the server's password are set.
"""

import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("work-pools.yaml")


def main(names: list[str]) -> None:
    """Make the pools of these names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    pools = yaml.safe_load(FILE.read_text())["pools"]
    if unknown := set(names) - set(pools):
        sys.exit(f"a pool must be one of {', '.join(pools)}, but got {', '.join(sorted(unknown))}")
    known = templates()
    with get_client(sync_client=True) as client:
        for name in names or pools:
            pool = pools[name]
            template = filled(known[pool["type"]], pool)
            try:
                made = WorkPoolCreate(name=name, type=pool["type"], base_job_template=template)
                client.create_work_pool(made)
            except ObjectAlreadyExists:  # `overwrite` would also resume it where it is paused
                client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
            for queue, settings in pool["queues"].items():
                try:
                    client.create_work_queue(queue, work_pool_name=name, **settings)
                except ObjectAlreadyExists:
                    there = client.read_work_queue_by_name(queue, work_pool_name=name)
                    client.update_work_queue(there.id, **settings)
            print(f"{name}: {pool['type']}, queues {', '.join(pool['queues'])}")


def templates() -> dict[str, Any]:
    """The template of each type, of the Prefect that is installed: a server hands on GitHub's newest."""
    import prefect

    views = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    packages = json.loads((views / "aggregate-worker-metadata.json").read_text())
    workers = (worker for package in packages.values() for worker in package.values())
    return {worker["type"]: worker["default_base_job_configuration"] for worker in workers}


def filled(template: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any]:
    """The template with a pool's variables, defaults and additions. Raises: KeyError for an unknown one."""
    made = deepcopy(dict(template))
    properties = made["variables"]["properties"]
    properties |= pool.get("variables", {})
    for name, value in pool.get("defaults", {}).items():
        properties[name]["default"] = value
    made["job_configuration"] = laid_over(made["job_configuration"], pool.get("job", {}))
    return made


def laid_over(below: Any, above: Any) -> Any:
    """`above` on `below`: keys of mappings one by one, items of lists by their place, the rest replaced."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        both = {key: laid_over(below[key], above[key]) for key in below.keys() & above.keys()}
        return {**below, **above, **both}
    if isinstance(below, list) and isinstance(above, list):
        pairs = [laid_over(*pair) for pair in zip(below, above, strict=False)]
        return [*pairs, *below[len(pairs) :], *above[len(pairs) :]]
    return above


if __name__ == "__main__":
    main(sys.argv[1:])
