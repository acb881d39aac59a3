"""The paper's experiments: the meshes and their loads."""

import msgspec
import pytest

from gearmesh.load.errors import LoadError
from gearmesh.load.generating.schedule import closed_clients, open_arrivals
from gearmesh.load.paper import default_scale, experiment, experiments
from gearmesh.load.plan import LoadTarget, LoadTestPlan
from gearmesh.load.stage import PROFILE, write_emulated, write_profile
from gpu_worker.core.emulation import DeviceProfile, parse_profile
from gpu_worker.packages.package import read_package
from mesh import wire

V100 = msgspec.json.decode(PROFILE.read_bytes(), type=DeviceProfile)
KINDS = list(V100.models)


@pytest.mark.parametrize("name", list(experiments(KINDS)))
@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_every_experiment_can_be_scheduled_at_every_scale(name, scale):
    chosen = experiment(name, KINDS)
    for setup in chosen.setups(scale, 2.0):
        plan = LoadTestPlan(name, setup.phases(1.5))
        assert set(plan.models) <= {model for model, _ in setup.models}
        targets = {model: LoadTarget(model, (), 16) for model in plan.models}
        index = {model: i for i, model in enumerate(plan.models)}
        for phase in plan.phases:
            requests = len(open_arrivals(phase, index, targets, 0))
            assert requests or closed_clients(phase, index, targets, 0)


def test_an_experiment_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(LoadError, match=r"paper-6\.1, .*paper-6\.6; got 'paper-7'"):
        experiment("paper-7", KINDS)


def test_budgets_are_stretched_and_rates_shrunk_by_the_same_ratio():
    (setup,) = experiment("paper-6.2", KINDS).setups(0.05, 10.0)
    slow, fast = setup.phases(2.0)[0].streams[0], setup.phases(1.0)[0].streams[0]
    assert slow.slo.values[0] == 2 * fast.slo.values[0]
    assert slow.source.load.rate_rps == fast.source.load.rate_rps / 2
    (comparison,) = experiment("paper-6.1", KINDS).setups(1.0, 10.0)
    assert [phase.streams[0].slo.values[0] for phase in comparison.phases(1.0)] == [10, 25, 50, 100, 250, 500]


@pytest.mark.parametrize(("cores", "scale"), [(1, 0.05), (2, 0.0625), (16, 0.5), (64, 1.0)])
def test_the_scale_follows_the_cores(cores, scale):
    assert default_scale(cores) == scale


def test_stands_of_one_experiment_number_their_models_alike():
    setups = experiment("paper-6.6", KINDS).setups(0.1, 1.0)
    longest = [model for model, _ in setups[-1].models]
    for setup in setups:
        assert [model for model, _ in setup.models] == longest[: len(setup.models)]


def test_emulated_packages_have_the_papers_weights_and_take_no_room(tmp_path):
    models = (("resnet50_v2.0", "resnet50_v2"), ("resnet50_v2.1", "resnet50_v2"))
    write_emulated(tmp_path, models, V100)
    package = read_package(tmp_path, wire.ref_of("resnet50_v2.1", "1"), ("pytorchcv.models.",))
    assert package.image_bytes == pytest.approx(102.2e6, rel=1e-4)
    assert package.weights_file.stat().st_blocks * 512 < 1_000_000


def test_a_device_of_the_stand_holds_as_many_models_as_it_says(tmp_path):
    (setup,) = experiment("paper-6.2", KINDS).setups(0.05, 10.0)
    profile = parse_profile(write_profile(tmp_path / "p.json", setup, V100).read_text(), "p")
    pages = -(-102_200_000 // profile.page_bytes)
    assert profile.pages // pages == setup.resident == 10
    assert len(profile.models) == len(setup.models) == 180
