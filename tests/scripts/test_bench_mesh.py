import pytest

from scripts.bench_mesh import SMALL_AIMS, parser, ratios, report
from scripts.rigs.noop_systems import System


async def nothing(in_flight: int, seconds: float) -> tuple[list[float], int]:
    raise NotImplementedError


def system(name: str, rates: list[float], cpu_us: float) -> System:
    made = System(name, nothing, {})
    for n in (1, 64):
        made.runs[n] = [
            {
                "n": 100, "not_ok": 0, "per_s": rate, "p50_ms": 1e3 / rate, "p99_ms": None,
                "cpu_us": {"server": cpu_us, "client": 50.0}, "steal": 0.0, "foreign": 0.0,
            }
            for rate in rates
        ]  # fmt: skip
    return made


def test_the_unit_is_what_the_echo_s_server_uses_in_the_same_round_and_ratios_are_those_of_rounds():
    systems = [
        system("gearmesh", [100.0, 10.0, 300.0], 80.0),
        system("gearmesh compact", [200.0, 20.0, 600.0], 60.0),
        system("zmq echo", [400.0, 40.0, 1200.0], 8.0),
        system("mosec msgpack", [200.0, 10.0, 300.0], 40.0),
    ]
    results = report(systems)
    assert results["gearmesh"]["64"]["echoes"] == 10.0
    assert results["zmq echo"]["64"]["echoes"] == 1.0
    assert [run["echoes"] for run in results["mosec msgpack"]["1"]["runs"]] == [5.0] * 3
    assert results["gearmesh"]["64"]["spreads"]["per_s"]["most"] == 300.0
    found = ratios(results)
    assert found["gearmesh: p50 at 1 / echo's"].median == pytest.approx(4.0)
    assert found["gearmesh compact: CPU per request at 64 / echo's"].median == 7.5
    to_mosec = found["gearmesh: req/s at 64 / mosec's"]
    assert (to_mosec.least, to_mosec.median, to_mosec.most) == (0.5, 1.0, 1.0)
    assert {aim.figure for aim in SMALL_AIMS if " at 64 " in aim.figure} < set(found)


@pytest.mark.parametrize("flag", ["--payload=6", "--payload=0", "--rounds=0", "--in-flight=1,0", "--in-flight=,"])
def test_numbers_that_cannot_be_are_refused_with_exit_code_2(flag):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([flag])
    assert ended.value.code == 2
