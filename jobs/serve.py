"""What Ray Serve runs: replicas of `reembed serve`. Every request needs the token of `serve.token`.

serve run jobs.serve:replicas config=configs/local.yaml num_replicas=4
"""

from functools import partial
from typing import Any

from reembed import api
from reembed.engine import ray_serve
from reembed.serving.http import server


def replicas(args: dict[str, str]) -> Any:
    """Return the application of Ray Serve; `args` name the config file and the number of replicas."""
    config = api.config([args["config"]]).config
    number = int(args.get("num_replicas", "1"))
    return ray_serve.replicas(partial(server.application, config), config.alias, number)
