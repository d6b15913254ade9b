"""What `ray job submit` starts: `reembed run` with this script's arguments and exit code.

ray job submit --working-dir . -- python jobs/rebuild.py -c configs/gpu_cluster.yaml
"""

import sys

from reembed.cli.verbs import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
