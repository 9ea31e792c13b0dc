"""Training in continuous time: what the bound, its pieces, the samplers and the options become."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.training import images_folder, losses
from PIL import Image

import d3pm_fast as d3
from d3pm_fast._random import seeded
from d3pm_fast.train import checkpoint, fashion_mnist, held_out, model
from d3pm_fast.train.cli import main
from d3pm_fast.train.config import CONTINUOUS_SCHEDULES, T_MIN
from d3pm_fast.train.images import ImageConfig
from d3pm_fast.train.items import Items
from d3pm_fast.train.loop import Run, train
from d3pm_fast.train.text import TextConfig
from d3pm_fast.train.transformer import Transformer
from d3pm_fast.train.unet import CategoricalUNet

CPU = torch.device("cpu")
COUNT = 24
STATISTICS = {"marginals": [0.7, 0.1, 0.1, 0.1], "shape": [28, 28]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images_folder(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """For so small a network a second thread only waits, and so few data have few pairs."""
    torch.set_num_threads(1)
    monkeypatch.setattr(held_out, "PAIRS", 64)


@pytest.fixture
def config(folder, tmp_path):
    return ImageConfig(
        out=tmp_path / "run",
        data=folder,
        levels=4,
        time="continuous",
        epochs=4,
        batch_size=8,
        width=16,
        checkpoint_every=5,
        sample_count=3,
        sample_steps=5,
        precision="float32",
    )


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    path.write_text("\n\n".join(" ".join(words[: 7 * i % 10]) for i in range(1, 41)))
    return TextConfig(
        data=path,
        out=tmp_path / "run",
        time="continuous",
        context=16,
        epochs=2,
        batch_size=16,
        width=32,
        depth=1,
        sample_count=3,
        sample_steps=5,
        precision="float32",
    )


@pytest.mark.parametrize("transition", ["uniform", "absorbing", "marginal", "mask-and-uniform"])
def test_the_command_trains_and_draws(transition, config, capsys):
    options = ["--transition", transition, "--out", str(config.out), "--data", str(config.data)]
    options += ["--levels", "4", "--time", "continuous", "--epochs", "1", "--batch-size", "8"]
    options += ["--width", "16", "--sample-count", "3", "--sample-steps", "5"]
    main(["train", *options])
    assert len(losses(config.out)) == COUNT // 8
    samples = config.out / "samples" / "step-3"
    with Image.open(samples / "samples.png") as grid:
        assert grid.size == (3 * 30 * 3, 30 * 3)
        assert len(grid.getcolors()) <= 4 + 1  # grey levels and the frame, but no mask
    with Image.open(samples / "samples.gif") as film:
        assert film.n_frames >= 2
    assert math.isfinite(json.loads((config.out / "held_out.json").read_text())["bits"])
    main(["sample", str(config.out), "--count", "2"])
    assert (config.out / "samples" / "ancestral_5_count-2" / "samples.png").exists()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(config, tmp_path):
    whole = replace(config, out=tmp_path / "whole")
    train(whole)
    train(replace(config, max_steps=7))
    train(config)
    assert losses(config.out) == losses(whole.out)
    states = [checkpoint.load(out / checkpoint.NAME) for out in (config.out, whole.out)]
    for name in ("average", "bound"):
        broken, unbroken = (state[name] for state in states)
        assert all(torch.equal(broken[key], unbroken[key]) for key in unbroken)
    with pytest.raises(ValueError, match="time = 'continuous', asked for is 'discrete'"):
        train(replace(config, time="discrete"))


def test_a_run_is_reproduced_by_its_configuration(config, tmp_path):
    train(replace(config, transition="uniform", schedule="log-linear", max_steps=3))
    options = ["--config", str(config.out / "config.toml"), "--out", str(tmp_path / "again")]
    main(["train", *options])
    assert losses(tmp_path / "again") == losses(config.out)
    trained = model.load(tmp_path / "again", CPU)
    assert trained.config.schedule == "log-linear"
    assert trained.diffusion.num_steps is None


def test_training_times_lie_between_t_min_and_one(config, monkeypatch):
    run, seen = Run(config), []
    run.network = lambda x_t, t: seen.append(t) or run.denoiser(x_t, t)
    monkeypatch.setattr("d3pm_fast.train.loop.T_MIN", 0.9)
    for _ in range(5):
        run.train_step()
    times = torch.cat(seen)
    assert times.dtype == torch.float64
    assert 0.9 <= times.min() < 0.92
    assert 0.98 < times.max() < 1


@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_the_loss_of_training_is_the_bound_of_the_data(transition, text, monkeypatch):
    monkeypatch.setattr(held_out, "PAIRS", 2000)
    run = Run(replace(text, transition=transition, ce_weight=0.0, learning_rate=1e-9, epochs=200))
    lines = [run.train_step() for _ in range(300)]
    mean = sum(line["loss"] for line in lines) / len(lines)
    assert (mean + run.prior) / math.log(2) == pytest.approx(lines[-1]["bound"], rel=0.05)
    assert mean == pytest.approx(run.evaluate() * math.log(2), rel=0.1)


def test_the_held_out_bound_of_a_constant_prediction_is_its_cross_entropy(monkeypatch):
    """For an absorbing chain, where the integral and the step to 0 share it."""
    monkeypatch.setattr(held_out, "T_MIN", 0.4)
    monkeypatch.setattr(held_out, "PAIRS", 2**13)
    schedule = d3.schedules.continuous.cosine_squared()
    diffusion = d3.D3PM(d3.transitions.absorbing(4, schedule, mask_id=3))
    frequencies = torch.tensor([0.7, 0.2, 0.1])
    torch.manual_seed(0)
    mask = torch.rand(400, 16) < 0.5
    x0 = torch.multinomial(frequencies, mask.numel(), replacement=True).view(mask.shape)
    logits = torch.cat([frequencies.log(), torch.tensor([-torch.inf])])
    times = []

    class Constant(torch.nn.Module):
        def forward(self, x_t, t, mask):
            times.append(t)
            return logits.expand(*x_t.shape, -1).contiguous()

    items = Items(x0.to(torch.uint8), mask)
    bits = held_out.bits_per_token(diffusion, Constant(), items, 128, "float32", CPU, seed=0)
    exact = -frequencies.log()[x0[mask]].mean().item() / math.log(2)
    assert bits == pytest.approx(exact, rel=0.03)
    of_integral = torch.cat(times)[: -len(items)].view(-1, len(items))
    assert len(of_integral) == -(-(2**13) // len(items))
    gaps = of_integral.sort(0).values.diff(dim=0)
    assert (gaps - 0.6 / len(of_integral)).abs().max() < 1e-3


@pytest.mark.parametrize("transition", ["absorbing", "marginal"])
def test_the_command_reports_the_bound(transition, config, capsys):
    train(replace(config, transition=transition, epochs=1))
    command = ["eval", str(config.out), "--data", str(config.data), "--images", "6"]
    trained = model.load(config.out, CPU)
    images = fashion_mnist.load("test", config.levels, config.data)[:6]
    seeds = d3.draw_seeds(6, seeded(0))
    for options, arguments in (
        (["--times", "7"], {"num_times": 7, "t_min": T_MIN}),
        (["--steps", "4"], {"steps": 4}),
    ):
        main([*command, *options, "--force"])
        found = json.loads((config.out / "eval.json").read_text())
        bound = trained.diffusion.elbo(trained.denoiser, images, seeds=seeds, **arguments)
        bits = bound.bits_per_dim
        assert found["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-5)
        low, high = found["interval_95"]
        half = 1.959964 * bits.std().item() / 6**0.5
        assert (high - low) / 2 == pytest.approx(half, rel=1e-4)
        assert found["t"] == pytest.approx(bound.times.tolist())
        total = sum(found["terms_bits_per_dim"]) + found["prior_bits_per_dim"]
        assert total == pytest.approx(found["bits_per_dim"], rel=1e-9)
    for wrong, message in (
        (["--times", "None"], "times must be a number for an integral over continuous time"),
        (["--times", "2"], "times must be at least 3, got 2"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit, match=f"d3pm-fast eval: {message}"):
            main([*command, *wrong])


def test_the_command_draws_by_every_sampler(config, capsys):
    train(replace(config, epochs=1))

    capsys.readouterr()

    def drawn(*options):
        main(["sample", str(config.out), "--count", "2", *options])
        picture = Path(capsys.readouterr().out.split()[1])
        return picture.parent.name, picture.read_bytes()

    name, strided = drawn("--steps", "4")
    assert name == "ancestral_4_count-2"
    assert drawn("--times", "1,.75,0.5,0.25") == ("ancestral_1-0.75-0.5-0.25_count-2", strided)
    others = [
        drawn("--steps", "4", "--spacing", "cosine"),
        drawn("--steps", "4", "--spacing", "log"),
        drawn("--sampler", "first-hitting"),
        drawn("--sampler", "first-hitting", "--steps", "4"),
        drawn("--sampler", "confidence"),
        drawn("--sampler", "unmask", "--steps", "3", "--order", "margin", "--block", "400"),
        drawn("--sampler", "unmask", "--threshold", "0.3", "--min-p", "0.1", "--last", "argmax"),
    ]
    assert [name for name, _ in others] == [
        "ancestral_4_count-2_spacing-cosine",
        "ancestral_4_count-2_spacing-log",
        "first-hitting_count-2",
        "first-hitting_4_count-2",
        "confidence_5_count-2",
        "unmask_3_count-2_order-margin_block-400",
        "unmask_count-2_threshold-0.3_last-argmax_min_p-0.1",
    ]
    assert len({strided, *(picture for _, picture in others)}) == 8
    for wrong, message in (
        (("--times", "0.9,0.3"), "times must begin at T = 1.0, got"),
        (("--times", "1,0.3", "--spacing", "log"), "spacing = log is for steps in continuous"),
        (("--sampler", "first-hitting", "--spacing", "log"), "spacing = log is for steps in"),
        (("--block", "3"), "block is for the sampler unmask, got ancestral"),
    ):
        with pytest.raises(SystemExit, match=message):
            drawn(*wrong)


def test_text_is_trained_drawn_and_goes_on(text, tmp_path, capsys):
    whole = replace(text, out=tmp_path / "whole")
    train(whole)
    train(replace(text, max_steps=2))
    train(text)
    assert losses(text.out) == losses(whole.out)
    assert "held out: at most" in capsys.readouterr().out
    main(["sample", str(text.out), "--sampler", "first-hitting", "--name", "more"])
    assert (text.out / "samples" / "more" / "samples.txt").read_text() in capsys.readouterr().out


def test_a_language_of_few_words_is_learned(text):
    train(replace(text, epochs=60, ema=0.9))
    log = (text.out / "metrics.jsonl").read_text().splitlines()
    unigram = 3.8
    assert json.loads(log[-1])["bound"] < 0.7 * unigram


@pytest.mark.parametrize("network", [CategoricalUNet, Transformer])
def test_a_network_sees_the_same_time_in_steps_and_without(network):
    of_steps, of_times = (network(5, num_steps, width=32).eval() for num_steps in (1000, None))
    of_times.load_state_dict(of_steps.state_dict())
    x_t = torch.randint(5, (3, 8, 8) if network is CategoricalUNet else (3, 8))
    t = torch.tensor([1, 300, 1000])
    expected = of_steps(x_t, t)
    torch.testing.assert_close(of_times(x_t, t.double() / 1000), expected)
    assert not torch.allclose(of_times(x_t, t.flip(0).double() / 1000), expected)


@pytest.mark.parametrize("name", CONTINUOUS_SCHEDULES)
def test_every_schedule_has_a_name_and_a_finite_prior(name, config):
    made = replace(config, transition="uniform", schedule=name).diffusion(STATISTICS)
    assert made.transition.schedule == CONTINUOUS_SCHEDULES[name]
    assert made.transition.prior().max() < 0.01


def test_the_schedule_of_auto_is_that_of_steps(config, text):
    assert config.betas() == d3.schedules.continuous.cosine()
    assert text.betas() == d3.schedules.continuous.linear()
    jsd = torch.cumprod(1 - d3.schedules.jsd(10), 0)
    torch.testing.assert_close(jsd, text.betas().alpha(torch.arange(1, 11).double() / 10))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"transition": "gaussian"},
            "transition in continuous time must be one of 'uniform', .*, got 'gaussian'",
        ),
        ({"transition": "nearest-neighbor"}, "transition in continuous time must be one of"),
        ({"schedule": "quadratic"}, "schedule quadratic is of discrete time only"),
        (
            {"schedule": "log-linear"},
            "an absorbing chain by t = 1, as linear and cosine do: log-linear keeps 0.001 of them",
        ),
        ({"sample_steps": 0}, r"sample_steps must lie in \[1, 100000\], got 0"),
        ({"time": "both"}, "time must be one of 'discrete', 'continuous', got 'both'"),
    ],
)
def test_what_continuous_time_does_not_have_is_refused(option, message, config):
    with pytest.raises(ValueError, match=message):
        replace(config, **option)


@pytest.mark.parametrize(("given", "calls"), [(None, 100), (5000, 5000)])
def test_a_sample_takes_any_number_of_steps(given, calls, config):
    assert replace(config, timesteps=10, sample_steps=given).steps_to_sample == calls
