"""Other servers with the same torch models, each in an environment of its own; started by `bench_peers.py`.

The files named *_server.py run in those environments, not in gearmesh's: python FILE MODEL PORT BATCH_MAX
"""
