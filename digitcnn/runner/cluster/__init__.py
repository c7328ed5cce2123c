"""Workers on the nodes of a Ray cluster. No other module imports Ray."""

import os

# Read when Ray is imported. Its library prints lines of its own for what is told in one line here; it asks a cluster
# that refuses its token 20 times; and it ends a process, without a word, 60 s after the head of the cluster was lost,
# which leaves no time to record.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")

from digitcnn.runner.cluster.pool import RayPool
