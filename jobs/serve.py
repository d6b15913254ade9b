"""What Ray Serve runs: replicas of `reembed serve`. Every request needs the token.

serve run jobs.serve:replicas config=configs/local.yaml token=env:REEMBED_TOKEN num_replicas=4
"""

from functools import partial
from typing import Any

from reembed import api
from reembed.engine import ray_serve
from reembed.errors import UsageError
from reembed.serving.http import server
from reembed.serving.http.options import ServeOptions


def replicas(args: dict[str, str]) -> Any:
    """Return the application of Ray Serve by the config file, the token's variable and the number of replicas."""
    if missing := {"config", "token"} - args.keys():
        raise UsageError(
            f"{', '.join(sorted(missing))} is missing", "token=env:NAME, config=FILE", __doc__
        )
    config, options = api.config([args["config"]]).config, ServeOptions(args["token"])
    build = partial(server.application, config, options)
    return ray_serve.replicas(build, config.alias, int(args.get("num_replicas", "1")))
