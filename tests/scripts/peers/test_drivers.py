"""The client of the comparison, with servers of a few lines."""

import asyncio

import numpy as np
import pytest

from scripts.bench_peers import main, parser, rotated
from scripts.peers import tables
from scripts.peers.catalogue import PEERS
from scripts.peers.drivers import Samples
from scripts.peers.http_driver import HttpDriver
from scripts.peers.measuring import loads_of, poisson
from scripts.peers.tables import behind, goodput_table


async def _serve(answer):
    async def talk(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                writer.write(answer(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def busy(body: bytes) -> bytes:
    return b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n"


async def _driven(answer, drive):
    server, port = await _serve(answer)
    driver = HttpDriver(port, "/", "application/octet-stream", b"abcd")
    bodies = []
    driver.on_body = bodies.append
    try:
        return await drive(driver), bodies
    finally:
        driver.close()
        server.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("answer", [plain, chunked])
def test_a_closed_loop_reads_bodies_whole_and_in_any_form(answer):
    samples, bodies = asyncio.run(_driven(answer, lambda driver: driver.closed(3, 0.1, 100.0)))
    assert set(bodies) == {b"abcd"}
    assert len(samples.ok_s) == samples.sent >= 3
    assert samples.failed == 0


def test_an_open_loop_sends_all_that_is_due_and_counts_from_then():
    due_s = np.array([0.0, 0.0, 0.01, 0.05])
    samples, _ = asyncio.run(_driven(plain, lambda driver: driver.open(due_s, 0.1, 100.0)))
    assert (samples.sent, len(samples.ok_s), samples.failed) == (4, 4, 0)
    assert min(samples.ok_s) > 0


def test_refusals_are_known_from_failures():
    samples, _ = asyncio.run(_driven(busy, lambda driver: driver.open(np.zeros(5), 0.1, 100.0)))
    assert (len(samples.refused_s), samples.failed, len(samples.ok_s)) == (5, 0, 0)


def test_a_server_that_is_not_there_fails_requests_and_ends():
    async def drive():
        driver = HttpDriver(9, "/", "x/y", b"")
        return await driver.open(np.zeros(3), 0.05, 100.0)

    samples = asyncio.run(drive())
    assert (samples.sent, samples.failed) == (3, 3)


def test_shares_are_of_all_that_was_sent_and_rates_of_the_runs_length():
    found = Samples(2.0, sent=4, ok_s=[0.01, 0.03], refused_s=[0.001], failed=1).summary((20.0, 50.0))
    assert found["goodput"] == {"20": {"share": 0.25, "per_s": 0.5}, "50": {"share": 0.5, "per_s": 1.0}}
    assert found["done_per_s"] == 1.0


def test_every_peer_is_asked_with_what_it_can_read_back():
    row = [1.0, -2.5, 0.25]
    for name in ("litserve", "ray", "fastapi"):
        assert PEERS[name].answer(PEERS[name].body(row)) == tuple(row)
    assert PEERS["bentoml"].answer(b"[[1.0, 2.0]]") == (1.0, 2.0)


def test_the_tables_take_a_peers_one_run_for_all_slos_and_ours_each_by_its_own():
    def run(per_s):
        both = {slo: {"share": per_s / 100, "per_s": per_s} for slo in ("25", "50")}
        return {
            "done_per_s": per_s, "p50_ms": 1.0, "p99_ms": None, "goodput": both, "refused_p99_ms": None, "failed": 0,
            "steal": 0.0, "foreign": 0.1,
        }  # fmt: skip

    runs = {
        "gearmesh": {"400/s@25": [run(50.0)], "400/s@50": [run(90.0)]},
        "mosec": {"400/s": [run(60.0), run(70.0), run(65.0)]},
    }
    table = goodput_table("t", runs, "400/s", (25.0, 50.0))
    assert "| 50% (50/s) | 90% (90/s) |" in table
    assert "| 65% (65/s) | 65% (65/s) |" in table
    assert behind(runs, ["400/s"], (25.0, 50.0)) == ["400/s, SLO 25 ms: mosec 65/s, gearmesh 50/s"]


def test_arrivals_are_the_same_for_every_system_and_flags_are_checked():
    assert np.array_equal(poisson(400.0, 2.0), poisson(400.0, 2.0))
    assert len(poisson(400.0, 10.0)) == pytest.approx(4000, rel=0.1)
    assert parser().parse_args(["--peers", "mosec,ray"]).peers == ["mosec", "ray"]
    assert parser().parse_args(["--peers", ""]).peers == []
    with pytest.raises(SystemExit):
        parser().parse_args(["--parts", "everything"])


def test_the_closed_loop_s_goodput_is_compared_with_mosec_s_round_by_round():
    def run(per_s):
        return {"goodput": {"25": {"share": 1.0, "per_s": per_s}}}

    runs = {
        "gearmesh": {"16 clients@25": [run(100.0), run(30.0)]},
        "mosec": {"16 clients": [run(50.0), run(30.0)]},
        "ray": {"16 clients": [run(10.0), run(10.0)]},
    }
    found = tables.closed_ratios(runs, "16 clients", (25.0,))
    assert list(found) == [tables.closed_figure("gearmesh", 25.0)]
    assert (found[tables.closed_figure("gearmesh", 25.0)].least, next(iter(found.values())).most) == (1.0, 2.0)
    assert tables.closed_ratios({"gearmesh": runs["gearmesh"]}, "16 clients", (25.0,)) == {}
    assert list(loads_of(parser().parse_args(["--parts", "closed"]))) == ["16 clients"]


def test_each_round_begins_with_another_system():
    assert [rotated(("a", "b", "c"), by)[0] for by in range(4)] == ["a", "b", "c", "a"]
    assert rotated((), 3) == []


def test_the_latest_cell_of_the_client_itself_is_named():
    runs = {
        "m5": {"mosec": {"400/s": [{"late_p99_ms": 3.0}, {"late_p99_ms": None}]}, "ray": {"1": [{"late_p99_ms": 9.0}]}}
    }
    assert "9.0 ms (p99) in the worst cell: ray, m5 1" in tables.lateness(runs)
    assert tables.lateness({}) == ""


@pytest.mark.parametrize("flag", ["--seconds=0", "--rounds=-1", "--rates=150,0", "--slos=nan", "--in-flight=1,0"])
def test_numbers_that_cannot_be_are_refused_with_exit_code_2(flag, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_peers", flag, "--peers", ""])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err
