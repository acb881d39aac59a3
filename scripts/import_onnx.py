"""Makes a model package from an ONNX file.

.venv/bin/python scripts/import_onnx.py FILE NAME [--version 1] [--batch-max 32] [--slo-ms 1000] [--repository FOLDER]
"""

import argparse
import sys
from pathlib import Path

from broker.config import read_settings
from broker.errors import GearmeshError
from gpu_worker.onnx_import import write_onnx_package


def main() -> int:
    """Writes the package; exit code 0, or 1 with all that is wrong with the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--version", default="1")
    parser.add_argument("--batch-max", type=int, default=32)
    parser.add_argument("--slo-ms", type=float, default=1000.0)
    parser.add_argument("--repository", type=Path)
    arguments = parser.parse_args()
    try:
        repository = arguments.repository or read_settings().model_repository
        package = write_onnx_package(
            repository, arguments.name, arguments.version, arguments.file, batch_max=arguments.batch_max,
            slo_ms=arguments.slo_ms,
        )  # fmt: skip
    except GearmeshError as error:
        sys.stderr.write(f"import_onnx: {error}\n")
        return 1
    for kind, specs in (("input", package.spec.inputs), ("output", package.spec.outputs)):
        for spec in specs:
            print(f"{kind:<7} {spec.name}: {spec.dtype} {list(spec.shape)}")
    print(f"{package.ref} is in {repository}: {package.image_bytes / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
