"""What `ray job submit` starts: `reembed shadow` with this script's arguments and exit code.

ray job submit --working-dir . -- python jobs/shadow.py -c configs/gpu_cluster.yaml --set strategy=dual_index --every 1h
"""

import sys

from reembed.cli.verbs import main

if __name__ == "__main__":
    main(["shadow", *sys.argv[1:]])
