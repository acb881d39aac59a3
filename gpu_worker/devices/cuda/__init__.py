"""A GPU as a device: a paged arena, one execution window, a gather and one CUDA graph per architecture and batch size.

    plans.py    what goes where and when, decided without touching anything. Pure
    driver.py   what is needed of a device: streams, events, memory, capture. The seam
    host.py     the same of this process's own memory and threads: every step can run, and be tested, without a GPU
    nvidia.py   the same of a GPU, through torch; gather_kernel.py is its Triton kernel
    issuer.py   the one thread that issues, and those that wait in C for what was issued
    memory.py   arena, window, page table and the ring of buffers for inputs and outputs
    loads.py    LOADs, from pinned memory and from disk
    graphs.py   executables: an architecture captured at each size of the ladder
    versions.py what is prepared, and what versions share
    watchdog.py when a device is given up because it hangs. Pure; watching.py looks at the threads for it
    device.py   gpu_worker.devices.base.Device, made of these; records.py what it remembers
    opening.py  a GPU claimed and set up as the settings say

State of proof: everything but nvidia.py and gather_kernel.py runs in the tests on every machine, on host.py. Those two,
and every figure for a GPU, are unproven until `scripts/bench_gpu.py` has run on one; it leaves its findings in
docs/results/.
"""
