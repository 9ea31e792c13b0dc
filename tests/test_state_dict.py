"""What files hold of a D3PM: a fingerprint beside the weights, or the whole module."""

import copy
import io
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_defaults import FAMILIES, T

import d3pm_fast as d3
from d3pm_fast import schedules, transitions

BETAS = schedules.cosine(T)


class Model(torch.nn.Module):
    def __init__(self, transition, **options):
        super().__init__()
        self.diffusion = d3.D3PM(transition, **options)
        self.head = torch.nn.Linear(2, 3)


def load(model, state):
    """Load strictly; return what was warned of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.load_state_dict(state)
    assert all(warning.category is UserWarning for warning in seen)
    return [str(warning.message) for warning in seen]


def make(family):
    return FAMILIES[family](schedules.linear(T, 0.1, 0.9))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_module_is_read_without_running_code(family):
    diffusion, file = d3.D3PM(make(family), "posterior_mean"), io.BytesIO()
    torch.save(diffusion, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert repr(found) == repr(diffusion)
    assert not load(found, diffusion.state_dict())
    x0, t, seeds = torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([3])
    samples = [d3.functional.q_sample(d.transition, x0, t, seeds=seeds) for d in (found, diffusion)]
    assert torch.equal(*samples)
    for time in range(1, T + 1):
        matrices = [d.transition.q_bar_matrix(time) for d in (found, diffusion)]
        assert torch.equal(*matrices)


def test_fingerprints_tell_chains_apart():
    found = {family: make(family).fingerprint for family in FAMILIES}
    assert len({round(value, 6) for value in found.values()}) == len(FAMILIES)


def test_fingerprints_stay_what_they_were():
    """Files hold them: another number for the same chain needs another format."""
    uniform, dense = (
        make(2, [0.5, 0.25]) for make in (transitions.uniform, transitions.discretized_gaussian)
    )
    assert uniform.fingerprint == pytest.approx(16.34304545031316, rel=1e-12)
    assert dense.fingerprint == pytest.approx(27.312194800421114, rel=1e-12)
    assert d3.D3PM(uniform).get_extra_state()[0] == 1


def nudged(values, by):
    values = torch.as_tensor(values).clone()
    values[1] *= 1 + by
    return values


@pytest.mark.parametrize(
    "chain",
    [
        lambda by: transitions.uniform(5, nudged(BETAS, by)),
        lambda by: transitions.mask_and_uniform(5, BETAS, 1, nudged([0.1] * T, by)),
        lambda by: transitions.discretized_gaussian(5, nudged(BETAS, by)),
        lambda by: transitions.band(5, nudged(BETAS, by), 2),
        lambda by: transitions.from_rate(
            torch.ones(3, 3).double() - 3 * torch.eye(3), nudged([1.0, 2, 3, 4], by)
        ),
        lambda by: transitions.nearest_neighbor(
            torch.arange(5.0)[:, None], 2, nudged([1.0, 2, 3, 4], by), memory_budget=1
        ),
        lambda by: transitions.nearest_neighbor(
            torch.arange(5.0)[:, None], 4, nudged(BETAS, by), method="sinkhorn", memory_budget=1
        ),
        lambda by: transitions.with_mask(transitions.band(5, BETAS, 1), nudged(BETAS, by)),
        lambda by: transitions.mixture(
            [transitions.uniform(5, BETAS), transitions.band(5, nudged(BETAS, by), 1)], [0.5, 0.5]
        ),
    ],
)
def test_another_schedule_is_warned_of_and_rounding_is_not(chain):
    state = Model(chain(0.0)).state_dict()
    assert not load(Model(chain(4e-15)), state)
    (message,) = load(Model(chain(1e-4)), state)
    assert "saved with other transition probabilities: its weights were trained for" in message


@pytest.mark.parametrize(
    ("chain", "options", "message"),
    [
        (transitions.uniform(5, schedules.cosine(8)), {}, r"num_steps = 4 in place of 8: "),
        (transitions.uniform(6, BETAS), {}, r"num_classes = 5 in place of 6: "),
        (transitions.band(5, BETAS, 1), {}, r"another family than 'band': "),
        (transitions.uniform(5, BETAS), {"reverse": "posterior_mean"}, r"another reverse than 'po"),
        (transitions.uniform(5, BETAS), {"first_step": "logits"}, r"another first_step than 'logi"),
        (transitions.absorbing(5, BETAS, 0), {}, r"family than 'absorbing', mask_id = -1 in place"),
    ],
)
def test_weights_of_another_diffusion_are_warned_of(chain, options, message):
    state = Model(transitions.uniform(5, BETAS)).state_dict()
    model = Model(chain, **options)
    with pytest.warns(UserWarning, match=message):
        model.load_state_dict(state)
    assert torch.equal(model.head.weight, state["head.weight"])


def test_state_dicts_without_a_fingerprint_or_with_an_unreadable_one_load_silently():
    model = Model(transitions.uniform(5, BETAS))
    other = Model(transitions.uniform(6, BETAS)).state_dict()
    key = "diffusion._extra_state"
    assert other[key].shape == (8,)
    for old in (other[key].bfloat16(), other[key][:3], other[key] + 1, other[key].to("meta"), None):
        state = other | {key: old}
        if old is None:
            del state[key]
        assert not load(model, state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(state | {"diffusion.more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .head.weight"):
        model.load_state_dict({})


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_copies_averages_and_compiled_models_keep_it(tmp_path):
    model = Model(make("marginal"))
    state = model.state_dict()
    for copied in (copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model).module):
        assert not load(model, copied.half().state_dict())
    compiled = torch.compile(model, backend="eager")
    assert not load(compiled, compiled.state_dict())
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    other = Model(make("uniform")).state_dict()
    dcp.load(other, checkpoint_id=tmp_path, no_dist=True)
    assert not load(model, other)
