"""The worker: one process per device.

It executes the controller's actions on time, or reports at once that it cannot.
"""

from mesh.process.compiled import install

install()
