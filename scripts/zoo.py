"""Checks that imported models are served correctly: many small ones, or with --pytorchcv one network of each family.

.venv/bin/python scripts/zoo.py                 the modules and ONNX files of tests/zoo, and the outcome of each
.venv/bin/python scripts/zoo.py --pytorchcv     imports networks, serves them with a mesh of its own, compares answers
"""

import argparse
import asyncio
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from frontend.admin.operator import Operator
from frontend.client.async_client import AsyncClient
from frontend.client.client import RequestError
from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.operations.up import wait_ready
from gearmesh.telemetry.machine import describe
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.comparing import ROUNDING, TOLERANCE, difference
from mesh import wire
from mesh.process.configuration import read_settings
from mesh.process.settings import Settings
from scripts import ROOT
from scripts.rigs.zoo_networks import EXPECTED, RESULT, ROWS, SIZES, SLO_MS, Network, networks

IMPORT_S_MAX = 1800
DEPLOY_S_MAX = 600
WIDTH = 110  # of a message in a table, in characters


class UnknownName(ValueError):
    """`--only` names what is not there; `str()` lists what is."""


def check_names(only: Collection[str], families: Mapping[str, Collection[str]]) -> None:
    """Each name is a family, {family: names}, or in one. Raises: UnknownName."""
    known = {*families, *(name for names in families.values() for name in names)}
    unknown = sorted(set(only) - known)
    if unknown:
        there = "\n".join(f"  {family}: {', '.join(names)}" for family, names in families.items())
        raise UnknownName(f"--only: there is no {', '.join(unknown)}; the families and what is in them:\n{there}")


# -- tests/zoo --------------------------------------------------------------------------------------------------------


def small(only: list[str]) -> list[dict[str, Any]]:
    """The outcome of each module and file of tests/zoo. Raises: UnknownName."""
    judging, families = (importlib.import_module(f"tests.zoo.{name}") for name in ("judging", "families"))
    check_names(only, {family: [case.name for case in cases] for family, cases in families.FAMILIES.items()})
    found = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {"DATA_DIR": folder, "DEVICE": "cpu", "PAGE_MB": "1", "ARENA_MB": "8", "WINDOW_MB": "4"}
        device = CpuDevice(
            read_settings(environment={f"GEARMESH_{name}": value for name, value in environment.items()})
        )
        for family, cases in families.FAMILIES.items():
            for case in cases:
                if only and not {family, case.name} & set(only):
                    continue
                told, right, began_s = "", True, time.monotonic()
                with tempfile.TemporaryDirectory() as place:
                    try:
                        error = judging.check(case, Path(place), device)
                        told = error.faults[0] if error is not None else ""
                    except Exception as error:  # one that fails does not end the run
                        told, right = f"{type(error).__name__}: {error}".split("\n")[0], False
                row = {"family": family, "name": case.name, "wanted": case.code or "served", "right": right}
                found.append(row | {"told": told, "seconds": round(time.monotonic() - began_s, 3)})
                mark = "" if right else "  WRONG"
                print(f"{family:<14} {case.name:<40} {row['wanted']:<15}{mark} {told[:WIDTH]}", flush=True)
        device.close()
    wanted = Counter("served" if row["wanted"] == "served" else "refused" for row in found)
    wrong = sum(not row["right"] for row in found)
    print(f"{wanted['served']} to be served, {wanted['refused']} to be refused; {wrong} are not as they should be")
    return found


# -- pytorchcv --------------------------------------------------------------------------------------------------------


def published(only: list[str], serve: bool) -> dict[str, Any]:
    """The outcome of each network. Raises: UnknownName."""
    began_s = time.monotonic()
    chosen, left_out = networks()
    check_names(only, {network.family: [network.name] for network in chosen})
    if only:
        chosen = [network for network in chosen if {network.family, network.name} & set(only)]
    with tempfile.TemporaryDirectory(prefix="gearmesh-zoo-") as folder:
        found = asyncio.run(_all(chosen, Path(folder), serve))
    for line in left_out:
        print(f"left out: {line}")
    counts = {name: sum(bool(row[name]) for row in found) for name in ("imported", "agrees", "served")}
    print(f"{len(found)} networks: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    machine = describe()
    return {"machine": machine, "seconds": time.monotonic() - began_s, "networks": found, "left_out": left_out}


async def _all(chosen: list[Network], folder: Path, serve: bool) -> list[dict[str, Any]]:
    repository = folder / "repository"
    repository.mkdir()
    if not serve:
        return [await _one(network, folder, None) for network in chosen]
    async with mesh(repository, folder / "data", ready=False, arena_mb=1024) as running:
        return [await _one(network, folder, running) for network in chosen]


async def _one(network: Network, folder: Path, running: Mesh | None) -> dict[str, Any]:
    """Imports the network in a process of its own, then serves it and compares answers; deletes its files."""
    row: dict[str, Any] = {"family": network.family, "name": network.name, "parameters": network.parameters}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        command = [sys.executable, "-m", "scripts.rigs.zoo_networks", network.name, str(place)]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=IMPORT_S_MAX
        )
        file = place / RESULT
        if file.exists():
            row |= json.loads(file.read_text())
        else:
            row |= {"code": "crashed", "told": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
        row["imported"] = row["code"] == "imported"
        row |= {"agrees": False, "served": False}
        if row["imported"] and running is not None:
            close = max(TOLERANCE[torch.float32], ROUNDING * row["noise"])
            row |= await _served(network.name, close, place, folder / "repository", running)
    print(
        f"{row['family']:<22} {row['name']:<34} {row['parameters'] / 1e6:5.1f} M  {row['code']:<14} "
        f"{'agrees' if row['agrees'] else '':<7} {row.get('seconds', 0):6.1f} s {row.get('megabytes', 0):6.0f} MB  "
        f"{row['told'][:WIDTH]}", flush=True,
    )  # fmt: skip
    return row


async def _served(name: str, close: float, place: Path, repository: Path, running: Mesh) -> dict[str, Any]:
    """Deploys the network, sends batches of each size, and undeploys it."""
    settings = read_settings(environment=running.environment)
    shutil.move(place / "repository" / name, repository / name)
    try:
        began_s = time.monotonic()
        reply = await asyncio.to_thread(_operated, settings, wire.Deploy(call=1, name=name, version="1"))
        deployed_s = time.monotonic() - began_s
        if not reply.ok:
            return {"told": "; ".join([reply.message, *reply.faults]).split("\n")[0], "deployed_s": deployed_s}
        off = await _compared(name, place, running)
        await asyncio.to_thread(_operated, settings, wire.Undeploy(call=1, name=name))
    except (RequestError, TimeoutError) as error:
        return {"told": f"{type(error).__name__}: {error}".split("\n")[0]}
    finally:
        shutil.rmtree(repository / name, ignore_errors=True)
    told = "" if off <= close else f"answers are off by {off:.2g} of the row's largest value"
    return {"served": True, "agrees": off <= close, "off": off, "deployed_s": deployed_s, "told": told}


def _operated(settings: Settings, message: wire.ToBroker) -> wire.CallReply:
    with Operator(settings) as operator:
        return operator.call(message, DEPLOY_S_MAX)


async def _compared(name: str, place: Path, running: Mesh) -> float:
    """The largest difference to the network's own answers, relative to the largest value of the row."""
    x = load_file(place / ROWS)["x"]
    worst = 0.0
    async with AsyncClient(running.address) as client:
        await wait_ready(client, lambda ready, names: None)
        for batch in SIZES:
            expected = load_file(place / EXPECTED.format(batch))
            found = await client.infer(name, x[:batch].numpy(), slo_ms=SLO_MS, cache=False)
            worst = max(worst, *_differences(expected, {key: torch.tensor(found[key]) for key in expected}))
    return worst


def _differences(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[float]:
    return [difference(tensor, found[name]) for name, tensor in expected.items()]


def main() -> int:
    """Runs the chosen part. Exit code 1 if a result is not as expected, 2 if an argument is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pytorchcv", action="store_true", help="networks of pytorchcv; an hour or so")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of those, or of their families")
    parser.add_argument("--import-only", action="store_true", help="networks are imported, and not served")
    parser.add_argument("--json", type=Path, help="a file for the results")
    arguments = parser.parse_args()
    try:
        found: Any
        if arguments.pytorchcv:
            found = published(arguments.only, not arguments.import_only)
            good = all(row["imported"] for row in found["networks"])
        else:
            found = small(arguments.only)
            good = all(row["right"] for row in found)
    except UnknownName as error:
        parser.error(str(error))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
