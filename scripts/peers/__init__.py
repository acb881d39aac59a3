"""Other servers, each in an environment of its own, with the same torch models: what `bench_peers.py` starts.

The files named *_server.py run there, not in gearmesh's environment: python FILE MODEL PORT BATCH_MAX
"""
