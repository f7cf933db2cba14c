"""A Ray cluster of two machines with a CPU each, both this one, until standard input closes: prints its address."""

import os
import sys
from tempfile import TemporaryDirectory

with TemporaryDirectory(prefix="r2v-ray-", ignore_cleanup_errors=True) as folder:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
    os.mkdir(f"{folder}/ray")  # where Ray notes the address
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "temp_dir": folder})
    cluster.add_node(**machine)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
