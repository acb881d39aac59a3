"""A GPU as a device: a paged arena, one execution buffer, a gather and one CUDA graph per architecture and batch size.

    plans.py    what goes where and when, decided without touching anything. Pure
    driver.py   what is needed of a device: streams, events, memory, capture. The interface to torch.cuda
    host.py     the same interface on this process's memory and threads: every step runs in tests without a GPU
    nvidia.py   the same interface on a GPU, through torch; gather_kernel.py is its Triton kernel
    issuer.py   the one thread that issues; threads.py has those that wait in C for what was issued, events.py what for
    memory.py   arena, execution buffer, page table and the ring of buffers for inputs and outputs
    loads.py    LOADs, from pinned memory and from disk; copies.py says which piece is next. Pure
    graphs.py   executables: an architecture captured once for each batch
    versions.py which versions are prepared, and what they share
    watchdog.py when a device is given up because it hangs. Pure; watching.py observes the threads for it
    device.py   gpu_worker.devices.base.Device, made of these; records.py what it remembers, reporting.py what it tells
    opening.py  claims a GPU and sets it up as the settings say

The execution buffer is contiguous memory on the device into which a model's pages are gathered; the setting is called
`window_mb`. docs/design/execution.md has the reasons for this design.

State of proof: everything but nvidia.py and gather_kernel.py runs in the tests on every machine, on host.py. Those two,
and every figure for a GPU, are unproven until `scripts/bench_gpu.py` has run on one; it leaves its findings in
docs/results/.
"""
