"""What `ray job submit` starts: `reembed run` with this script's arguments and exit code.

ray job submit --working-dir . -- python jobs/rebuild.py -c configs/gpu_cluster.yaml
"""

import sys

from reembed.cli import cli

if __name__ == "__main__":
    cli(["run", *sys.argv[1:]], prog_name="reembed")
