"""What `ray job submit` starts: `reembed sweep` with this script's arguments and exit code.

ray job submit --working-dir . -- python jobs/sweep.py -c configs/gpu_cluster.yaml --set strategy=lazy --for 1h
"""

import sys

from reembed.cli.verbs import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
