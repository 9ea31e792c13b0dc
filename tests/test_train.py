"""The training program, on a handful of made-up images."""

import csv
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.training import go_until, images_folder, losses, write_idx
from PIL import Image

import d3pm_fast as d3
import d3pm_fast.train
from benchmarks import epsilon
from d3pm_fast import _environment
from d3pm_fast._random import seeded
from d3pm_fast.train import checkpoint, fashion_mnist, generate, loop, model
from d3pm_fast.train.averaging import averaged
from d3pm_fast.train.cli import main
from d3pm_fast.train.images import ImageConfig
from d3pm_fast.train.loop import Run, is_preview, train
from d3pm_fast.train.process import interrupted_by_signals
from d3pm_fast.train.running import RunningBound
from d3pm_fast.train.scaling import GradientScale

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images_folder(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """For so small a network a second thread only waits; the same for the processes started."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def config(folder, tmp_path):
    return ImageConfig(
        out=tmp_path / "run",
        data=folder,
        levels=4,
        timesteps=10,
        epochs=4,
        batch_size=8,
        width=16,
        checkpoint_every=5,
        sample_count=3,
        sample_steps=5,
        precision="float32",
    )


def state_of(out):
    return checkpoint.load(out / checkpoint.NAME)


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_quantization_uses_every_level_and_returns_within_half_a_level(levels):
    grey = torch.arange(256, dtype=torch.uint8)
    quantized = fashion_mnist.quantize(grey, levels)
    assert sorted(set(quantized.tolist())) == list(range(levels))
    back = torch.from_numpy(fashion_mnist.palette(levels, masked=False)[quantized.numpy()][:, 0])
    assert (back.int() - grey.int()).abs().max() <= 256 / levels / 2 + 1


def test_the_mask_has_a_colour_that_no_grey_level_has():
    *greys, mask = fashion_mnist.palette(16, masked=True).tolist()
    assert len(set(mask)) > 1
    assert mask not in greys


def test_images_come_from_the_named_folder(folder):
    images = fashion_mnist.load("test", 4, folder)
    assert images.shape == (COUNT, 28, 28)
    assert set(images.unique().tolist()) == {0, 3}


def test_without_images_the_error_tells_the_three_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "PLACES", (tmp_path / "nowhere", tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "URL", "http://127.0.0.1:9/")
    with pytest.raises(SystemExit) as error:
        main(["train", "--out", str(tmp_path / "run")])
    for way in ("dataset-fashion-mnist", "--data", "internet"):
        assert way in str(error.value)


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    server = tmp_path / "server"
    server.mkdir()
    (server / fashion_mnist.FILES["train"][0]).write_bytes(b"not the images")
    monkeypatch.setattr(fashion_mnist, "PLACES", (tmp_path / "nowhere", tmp_path / "cache"))
    handler = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        [*handler[:1], "-u", *handler[1:]],
        cwd=server,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            port = process.stdout.readline().split(" port ")[1].split()[0]
            monkeypatch.setattr(fashion_mnist, "URL", f"http://127.0.0.1:{port}/")
            with pytest.raises(FileNotFoundError, match="hash"):
                fashion_mnist.find("train")
        finally:
            process.terminate()
    assert not list((tmp_path / "cache").glob("*.gz"))


def test_a_file_that_is_no_idx_file_is_refused(tmp_path):
    with gzip.open(tmp_path / fashion_mnist.FILES["train"][0], "wb") as file:
        file.write(b"\0" * 100)
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist.load("train", 4, tmp_path)


@pytest.mark.parametrize(
    "transition",
    ["uniform", "absorbing", "marginal", "mask-and-uniform", "gaussian", "nearest-neighbor"],
)
def test_the_command_trains_and_draws_with_every_transition(transition, config, capsys):
    options = ["--transition", transition, "--out", str(config.out), "--data", str(config.data)]
    options += ["--levels", "4", "--timesteps", "10", "--epochs", "1", "--batch-size", "8"]
    options += ["--width", "16", "--sample-count", "3", "--sample-steps", "5"]
    options += ["--first-step", "logits"]  # the Gaussian's ten posteriors change no pixel
    main(["train", *options])
    assert len(losses(config.out)) == COUNT // 8
    samples = config.out / "samples" / "step-3"
    with Image.open(samples / "samples.png") as grid:
        assert grid.size == (3 * 30 * 3, 30 * 3)
        assert len(grid.getcolors()) <= 4 + 1  # grey levels and the frame, but no mask
    with Image.open(samples / "samples.gif") as film:
        assert film.n_frames >= 2
    with Image.open(config.out / "loss.png") as curve:
        assert curve.width > 100

    first, again, other = (drawn(config, "--seed", seed, "--force") for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def drawn(config, *options):
    """The picture of two samples, in a folder of its own or one that is replaced."""
    main(["sample", str(config.out), "--count", "2", "--name", "drawn", *options])
    folder = config.out / "samples" / "drawn"
    with Image.open(folder / "samples.gif") as film:
        assert film.n_frames >= 2
    return (folder / "samples.png").read_bytes()


def test_the_command_draws_by_every_sampler(config, capsys):
    train(replace(config, transition="absorbing", epochs=1))
    draw = partial(drawn, config, "--force")
    strided = draw("--steps", "5")
    assert draw("--times", "10,8,6,4,2") == strided
    others = [
        draw("--times", "10,3"),
        draw("--last", "argmax"),
        draw("--sampler", "first-hitting", "--steps", "10"),
        draw("--sampler", "first-hitting", "--steps", "10", "--last", "argmax"),
        draw("--sampler", "confidence", "--seed", "1"),
        draw("--steps", "5", "--temperature", "0.2"),
        draw("--steps", "5", "--top-p", "0.2"),
        draw("--last", "argmax", "--top-k", "2"),
    ]
    assert len({strided, *others}) == 9
    assert "100%" in capsys.readouterr().err
    for wrong, message in (
        (("--steps", "2", "--times", "10"), "give --steps or --times, not both"),
        (("--times", "9,3"), "times must begin at T = 10, got"),
        (("--times", "10,0.5"), r"times must be integers for a run of T steps, got \(10, 0.5\)"),
        (("--spacing", "cosine"), "spacing = cosine is for steps in continuous time"),
        (("--sampler", "confidence", "--last", "argmax"), "argmax is not for the confidence"),
    ):
        with pytest.raises(SystemExit, match=message):
            draw(*wrong)


@pytest.mark.parametrize("transition", ["absorbing", "gaussian"])
def test_the_command_reports_the_bound_of_a_checkpoint(transition, config, capsys):
    train(replace(config, transition=transition, epochs=1))
    out = config.out
    command = ["eval", str(out), "--data", str(config.data)]
    main([*command, "--images", "6", "--times", "None"])
    found = json.loads((out / "eval.json").read_text())

    trained = model.load(config.out, torch.device("cpu"))
    images = fashion_mnist.load("test", config.levels, config.data)[:6]
    seeds = d3.draw_seeds(6, seeded(0))
    bits = trained.diffusion.elbo(trained.denoiser, images, seeds=seeds).bits_per_dim
    assert found["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-5)
    low, high = found["interval_95"]
    half = 1.959964 * bits.std().item() / 6**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=1e-4)
    assert (low + high) / 2 == pytest.approx(found["bits_per_dim"], rel=1e-9)
    assert found["t"] == list(range(1, 11))
    total = sum(found["terms_bits_per_dim"]) + found["prior_bits_per_dim"]
    assert total == pytest.approx(found["bits_per_dim"], rel=1e-9)
    assert found["images"] == 6
    with Image.open(out / "terms.png") as picture:
        assert picture.width > 100
    assert f"{found['bits_per_dim']:.4f} bits/dim" in capsys.readouterr().out

    main([*command, "--images", "8", "--times", "None"])
    assert json.loads((out / "eval.json").read_text())["images"] == 8
    with pytest.raises(SystemExit, match=r"times = None, asked for is 3: --force replaces it"):
        main([*command, "--times", "3"])
    main([*command, "--times", "3", "--force"])
    assert json.loads((out / "eval.json").read_text())["times"] == 3
    with pytest.raises(SystemExit, match="no model"):
        main(["eval", str(out / "nothing.safetensors")])


def test_an_evaluation_takes_all_steps_where_they_are_few(config, capsys):
    train(replace(config, epochs=1))
    command = ["eval", str(config.out), "--data", str(config.data), "--images", "4"]
    found = []
    for times in ([], ["--times", "None"]):
        main([*command, "--steps", "4", *times])
        found.append(json.loads((config.out / "eval.json").read_text()))
    assert found[0]["t"] == [3, 5, 8, 10]
    assert found[0]["terms_bits_per_dim"] == found[1]["terms_bits_per_dim"]
    for wrong, message in (
        (["--times", "2"], "d3pm-fast eval: times must be at least 3, got 2"),
        (["--steps", "11"], "d3pm-fast eval: steps must be at most T = 10, got 11"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*command, *wrong])
    assert json.loads((config.out / "eval.json").read_text()) == found[1]


def test_an_estimate_lists_the_times_that_it_took(config, capsys):
    train(replace(config, epochs=1, timesteps=40))
    main(["eval", str(config.out), "--data", str(config.data), "--images", "4", "--times", "5"])
    found = json.loads((config.out / "eval.json").read_text())
    assert found["t"][0] == 1
    assert len(found["t"]) == len(found["terms_bits_per_dim"]) <= 1 + 4 * 4
    total = sum(found["terms_bits_per_dim"]) + found["prior_bits_per_dim"]
    assert total == pytest.approx(found["bits_per_dim"], rel=1e-9)


def test_a_stopped_evaluation_says_that_the_same_command_goes_on(config, monkeypatch, capsys):
    train(replace(config, epochs=1))
    command = ["eval", str(config.out), "--data", str(config.data), "--times", "3"]
    main(command)
    result, unfinished = config.out / "eval.json", config.out / "eval.pt"
    whole = json.loads(result.read_text())
    result.unlink()
    unfinished.unlink()
    load = model.load

    def stopping(*args):
        trained = load(*args)
        calls = iter(range(1))

        def denoise(x_t, t):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return trained.denoiser(x_t, t)

        return trained._replace(denoiser=denoise)

    with monkeypatch.context() as patch:
        patch.setattr(model, "load", stopping)
        with pytest.raises(SystemExit) as stopped:
            main(command)
    assert stopped.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err.endswith("d3pm-fast eval: stopped; the same command goes on\n")
    assert unfinished.exists()
    assert not result.exists()
    main(command)
    assert json.loads(result.read_text())["terms_bits_per_dim"] == whole["terms_bits_per_dim"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "gpu"], "d3pm-fast train: --device gpu is not to be had here: .*gpu"),
        (["--device", "cuda:99"], "d3pm-fast train: --device cuda:99 is not to be had here: "),
        (["--device", "cpu", "--impl", "cuda"], "d3pm-fast train: impl='cuda' needs"),
    ],
)
def test_what_this_machine_lacks_is_said_in_a_line(option, message, config):
    command = ["train", "--data", str(config.data), "--out", str(config.out), "--batch-size", "8"]
    with pytest.raises(SystemExit, match=message) as error:
        main([*command, *option])
    assert "\n" not in error.value.code
    assert not config.out.exists()


def test_a_model_may_be_of_a_machine_with_more(config, monkeypatch, capsys):
    run = Run(replace(config, epochs=1))
    run.go()
    other = replace(run.config, impl="cuda")
    model.save(config.out / model.NAME, other, run.statistics, run.average.module)
    options = [str(config.out), "--device", "cpu"]
    draw, bound = ["sample", *options], ["eval", *options, "--data", str(config.data)]
    monkeypatch.setattr(_environment, "IMPL", "cuda")
    for command in (draw, bound):
        with pytest.raises(SystemExit, match=f"d3pm-fast {command[0]}: impl='cuda' needs"):
            main(command)
        with pytest.raises(SystemExit, match="--device gpu is not to be had here"):
            main([*command, "--device", "gpu"])
    monkeypatch.setattr(_environment, "IMPL", "")
    main(draw)
    main([*bound, "--images", "2"])


def test_the_times_of_a_sample_do_not_take_its_run(config, capsys):
    train(replace(config, epochs=1))
    main(["sample", "--times", "10,4", str(config.out), "--count", "2"])
    assert (config.out / "samples" / "ancestral_10-4_count-2" / "samples.png").exists()
    with pytest.raises(SystemExit):
        main(["sample", str(config.out), "--times", "10,x"])
    assert "must be numbers with commas between, got '10,x'" in capsys.readouterr().err


def test_samples_are_not_overwritten_unless_asked(config, capsys, monkeypatch):
    train(replace(config, epochs=1))
    command = ["sample", str(config.out), "--count", "2", "--top-p", "0.9"]
    with monkeypatch.context() as patch:
        patch.setitem(generate.SAMPLERS, "ancestral", interrupted)
        with pytest.raises(SystemExit, match=f"^{128 + signal.SIGTERM}$"):
            main(command)
        assert capsys.readouterr().err.endswith("\nd3pm-fast sample: stopped\n")
    main(command)
    with pytest.raises(SystemExit, match=r"ancestral_5_count-2_top_p-0.9 exists: .*--force"):
        main(command)
    main([*command, "--force"])
    main([*command, "--seed", "3"])
    names = sorted(path.name for path in (config.out / "samples").iterdir())
    assert names == [
        "ancestral_5_count-2_top_p-0.9",
        "ancestral_5_count-2_top_p-0.9_seed-3",
        "step-3",
    ]


def interrupted(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_of_few_steps_goes_on_with_more(config, tmp_path, capsys):
    whole = replace(config, out=tmp_path / "whole")
    train(whole)
    train(replace(config, max_steps=2))
    printed = capsys.readouterr().out
    assert "stopped at step 2; with more --max-steps it goes on from here" in printed
    assert (config.out / "samples" / "step-2" / "samples.png").exists()
    assert state_of(config.out)["step"] == 2
    train(replace(config, max_steps=7))
    assert state_of(config.out)["step"] == 7
    train(config)
    assert losses(config.out) == losses(whole.out)
    broken, unbroken = (state_of(out)["average"] for out in (config.out, whole.out))
    assert all(torch.equal(broken[name], unbroken[name]) for name in unbroken)
    assert "held out: at most" in capsys.readouterr().out
    train(replace(config, max_steps=3))
    assert losses(config.out) == losses(whole.out)


@pytest.mark.parametrize("transition", ["absorbing", "gaussian"])
def test_the_table_of_epsilons_has_a_row_for_each_checkpoint(transition, config):
    train(replace(config, transition=transition, first_step="logits", epochs=1))
    table = config.out / "epsilon.csv"
    options = ["--images", "4", "--times", "3", "--data", str(config.data), "--out", str(table)]
    epsilon.main([str(config.out), str(config.out), *options])
    head, *rows = (line.split(",") for line in table.read_text().splitlines())
    assert head[0] == "family"
    assert [row[:3] for row in rows] == [[transition, "4", "3"]] * 2
    exact, changed, difference = map(float, rows[0][3:])
    assert difference == pytest.approx(100 * (changed / exact - 1), abs=0.02)


def test_the_loss_goes_down(config):
    train(replace(config, epochs=20, timesteps=4, sample_steps=4, ce_weight=0.1))
    values = losses(config.out)
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:10])


def test_a_killed_run_goes_on_as_if_it_never_had_been(config, tmp_path):
    whole = replace(config, out=tmp_path / "whole")
    train(whole)

    values = {k.replace("_", "-"): v for k, v in config.to_dict().items()}
    options = [f"--{k}={v}" for k, v in values.items() if v is not None and v is not False]
    with subprocess.Popen(
        [sys.executable, "-m", "d3pm_fast.train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not (config.out / checkpoint.NAME).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert 5 <= state_of(config.out)["step"] <= 12
    train(config)

    assert losses(config.out) == losses(whole.out)
    broken, unbroken = (state_of(out)["average"] for out in (config.out, whole.out))
    assert all(torch.equal(broken[name], unbroken[name]) for name in unbroken)


def test_a_run_that_is_told_to_stop_saves_and_says_so(config, capsys):
    go_until(Run(config), step=3)
    assert state_of(config.out)["step"] == 3
    assert "stopped at step 3" in capsys.readouterr().out


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / checkpoint.NAME
    states = [dict.fromkeys(checkpoint.KEYS, step) for step in (1, 2)]
    checkpoint.save(path, states[0])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, states[1])
    assert checkpoint.load(path) == states[0]


def test_a_run_with_other_options_is_not_resumed(config):
    train(replace(config, epochs=1))
    with pytest.raises(ValueError, match="levels = 4, asked for is 8"):
        train(replace(config, levels=8))


def test_a_run_from_before_continuous_time_goes_on(config, tmp_path):
    whole = replace(config, out=tmp_path / "whole")
    train(whole)
    run = Run(replace(config, max_steps=2))
    run.go()
    state = state_of(config.out)
    assert state["options"].pop("time") == "discrete"
    checkpoint.save(config.out / checkpoint.NAME, state)
    toml = config.out / "config.toml"
    toml.write_text(toml.read_text().replace('time = "discrete"\n', ""))
    options = {k: v for k, v in state["options"].items() if k != "max_steps"}
    trained = model.restore(options, state["statistics"], None)
    assert repr(trained.diffusion) == repr(run.diffusion)
    with pytest.raises(ValueError, match="time = 'discrete', asked for is 'continuous'"):
        train(replace(config, time="continuous"))
    main(["train", "--config", str(toml), "--max-steps", "None"])
    assert losses(config.out) == losses(whole.out)


def test_a_finished_run_goes_on_with_more_epochs_and_another_implementation(config, capsys):
    train(replace(config, epochs=2))
    train(replace(config, epochs=3, impl="reference"))
    assert len(losses(config.out)) == 3 * COUNT // 8
    with pytest.raises(ValueError, match="has 3 epochs behind it, asked for are 2"):
        train(replace(config, epochs=2))
    names = sorted(path.name for path in (config.out / "samples").iterdir())
    assert names == ["step-6", "step-9"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"levels": 1}, r"levels must lie in \[2, 256\], got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sample_steps": 11}, r"sample_steps must lie in \[1, 10\], got 11"),
        ({"timesteps": 0, "sample_steps": None}, "timesteps must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"width": 20}, "width must be a multiple of 16, got 20"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": 8192}, "width must be at most 4096, got 8192"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"timesteps": 10**9}, "timesteps must be at most 100000, got 1000000000"),
        ({"clip": -1.0}, "clip must be above 0, got -1.0"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"ema": float("nan")}, r"ema must lie in \[0, 1\), got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"ce_weight": -0.1}, "ce_weight must be at least 0, got -0.1"),
        ({"seed": -1}, r"seed must lie in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, r"seed must lie in \[0, 2\^64\), got 18446744073709551616"),
        ({"schedule": "log-linear"}, "schedule log-linear is of continuous time only"),
    ],
)
def test_bad_options_are_named(config, option, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **option)


@pytest.mark.parametrize(("timesteps", "calls"), [(1000, 100), (100, 100), (7, 7)])
def test_a_sample_takes_100_steps_or_all(timesteps, calls, config):
    assert replace(config, timesteps=timesteps, sample_steps=None).steps_to_sample == calls
    assert replace(config, timesteps=timesteps).steps_to_sample == 5


def test_a_file_that_is_no_model_is_named(config, tmp_path):
    run = Run(config)
    config.out.mkdir()
    run.save()
    whole = (config.out / model.NAME).read_bytes()
    path = tmp_path / "x.safetensors"
    for content in (b"nothing", b"", whole[:-1], whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(SystemExit) as error:
            main(["sample", str(path)])
        message = f"d3pm-fast sample: {path} is damaged, or not a model of d3pm-fast"
        assert error.value.code == message
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(SystemExit, match="not a model of d3pm-fast"):
        main(["sample", str(path)])
    with pytest.raises(SystemExit, match="no model"):
        main(["sample", str(tmp_path / "missing")])


def test_a_damaged_checkpoint_is_named(config):
    run = Run(config)
    config.out.mkdir()
    run.save()
    path = config.out / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path} is damaged, or not a checkpoint"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["options"].update(colour="red"), "another version"),
        (lambda about: about["options"].pop("command"), "another version"),
        (lambda about: about["options"].update(command="train-sound"), "another version"),
        (lambda about: about["options"].update(width=32), "another version"),
        (lambda about: about["options"].update(width=0), "width must be at least 1, got 0"),
        (lambda about: about["options"].update(timesteps=10**9), "timesteps must be at most"),
        (lambda about: about["statistics"].clear(), "another version"),
        (lambda about: about.clear(), "another version"),
    ],
)
def test_what_a_model_says_of_itself_is_checked(change, message, config):
    run = Run(config)
    config.out.mkdir()
    run.save()
    path = config.out / model.NAME
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[model.METADATA])
    change(about)
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file(weights, path, {model.METADATA: json.dumps(about)})
    with pytest.raises(SystemExit, match=f"d3pm-fast sample: .*{message}"):
        main(["sample", str(config.out)])
    assert not (config.out / "samples").exists()


def test_weights_that_are_not_finite_are_refused(config):
    run = Run(config)
    config.out.mkdir()
    next(run.average.parameters()).data[0] = torch.nan
    run.save()
    for command in (["sample", str(config.out)], ["eval", str(config.out)]):
        with pytest.raises(SystemExit, match="holds weights that are not finite"):
            main(command)


def test_a_run_whose_loss_is_not_finite_stops_and_keeps_its_checkpoint(config, capsys):
    run = Run(config)
    step = run.train_step

    def broken():
        if run.step == 7:
            with torch.no_grad():
                run.denoiser.enter.weight[0] = torch.inf
        return step()

    run.train_step = broken
    with pytest.raises(ValueError, match=r"the loss is nan .* at step 7; the last checkpoint"):
        run.go()
    state = state_of(config.out)
    assert state["step"] == 5
    assert all(bool(w.isfinite().all()) for w in state["denoiser"].values())
    train(config)
    assert len(losses(config.out)) == 12


def test_a_second_run_in_a_folder_is_refused(config):
    run = Run(config)
    step = run.train_step

    def other():
        run.save()
        with pytest.raises(ValueError, match=r"another run is at work in .*: choose another -"):
            train(config)
        with pytest.raises(SystemExit, match=r"eval: another run .*: wait .* copy of model.safet"):
            main(["eval", str(config.out), "--data", str(config.data)])
        return step()

    run.train_step = other
    run.config = replace(config, max_steps=1)
    run.end = 1
    run.go()
    assert state_of(config.out)["step"] == 1


def test_the_seed_changes_order_times_and_noise_in_all_of_its_bits(config):
    starts = []
    for seed in (0, 1, 1 << 31, 1 << 32, 1 << 63):
        run = Run(replace(config, seed=seed))
        seen = {}

        def denoise(x_t, t, seen=seen):
            seen.update(x_t=x_t, t=t)
            return torch.zeros(*x_t.shape, 5, requires_grad=True)

        weights = run.denoiser.state_dict()["enter.weight"].clone()
        batch = run.batch()
        run.network = denoise
        run.train_step()
        starts.append([weights, run.order, batch.x0, seen["t"], seen["x_t"]])
    for one, other in itertools.combinations(starts, 2):
        for here, there in zip(one, other, strict=True):
            assert not torch.equal(here, there)


def test_a_gradient_of_float16_that_overflows_is_skipped_until_no_smaller_factor_is_left(config):
    run = Run(replace(config, precision="float16"))
    weight = run.denoiser.keep.weight
    run.train_step()
    first = weight.clone()
    overflow = weight.register_hook(lambda gradient: gradient * torch.inf)
    run.scale.factor = 2.0
    assert run.train_step()["gradient_norm"] is None
    assert run.scale.factor == 1.0
    assert torch.equal(weight, first)
    with pytest.raises(ValueError, match="norm inf at step 2; the last checkpoint is kept"):
        run.train_step()
    assert torch.equal(weight, first)
    overflow.remove()
    assert run.train_step()["gradient_norm"] > 0
    assert not torch.equal(weight, first)


def test_the_factor_of_float16_grows_after_many_steps_and_goes_on_from_a_checkpoint():
    scale, other = GradientScale(enabled=True), GradientScale(enabled=True)
    scale.update(False)
    for _ in range(scale.GROWS_AFTER - 1):
        scale.update(True)
    assert scale.factor == scale.START / 2
    other.load_state_dict(scale.state_dict())
    other.update(True)
    assert other.factor == scale.START


def test_an_early_average_has_forgotten_the_start():
    network = torch.nn.Linear(1, 1, bias=False)
    average = averaged(network, 0.999)
    for value in range(100):
        network.weight.data.fill_(float(value))
        average.update_parameters(network)
    mean = average.module.weight.item()
    assert 85 < mean < 95  # of the last tenth; a fixed decay would leave it near 5


def test_the_running_bound_is_the_mean_of_each_stretch_times_its_length():
    bound, generator = RunningBound(50), torch.Generator().manual_seed(0)
    terms = torch.linspace(3, 1, 50, dtype=torch.float64)
    terms[0] = 1000.0
    assert bound.nats() is None
    for _ in range(400):
        t = d3.timesteps.low_discrepancy(50, 16, generator)
        tokens = torch.randint(1, 9, (16,), generator=generator)
        bound.update(bound.sums_of(t, terms[t - 1] * tokens, tokens))
    assert bound.nats() == pytest.approx(terms.sum().item(), rel=1e-3)
    other = RunningBound(50)
    other.load_state_dict(bound.state_dict())
    assert other.nats() == bound.nats()


def test_the_running_bound_of_continuous_time_is_the_integral_of_the_density():
    bound, generator = RunningBound(None), torch.Generator().manual_seed(0)
    for _ in range(400):
        t = d3.timesteps.continuous(64, True, 1e-3, generator)
        bound.update(bound.sums_of(t, 7 * (2 + t**3), torch.full((64,), 7)))
    assert bound.nats() == pytest.approx(2 * 0.999 + 0.25, rel=1e-4)


def test_a_run_opens_in_python(config):
    run = Run(config)
    run.go()
    for path in (config.out, str(config.out / model.NAME)):
        trained = d3pm_fast.train.load(path)
        x_t, t = torch.randint(5, (2, 28, 28)), torch.tensor([1, 7])
        expected = run.average.module.eval()(x_t, t)
        assert torch.equal(trained.denoiser(x_t, t), expected)
        assert repr(trained.diffusion) == repr(run.diffusion)
        assert not trained.denoiser.training


def test_a_run_goes_to_the_hub_and_back(config, tmp_path, monkeypatch):
    hub = pytest.importorskip("d3pm_fast.train.hub")
    run = Run(config)
    config.out.mkdir()
    run.save()
    sent = hub.HubModel.of_run(config.out)
    sent.save_pretrained(tmp_path / "hub")
    back = hub.HubModel.from_pretrained(tmp_path / "hub")
    opened = d3pm_fast.train.load(tmp_path / "hub")
    x_t, t = torch.randint(5, (2, 28, 28)), torch.tensor([1, 7])
    expected = run.average.module.eval()(x_t, t)
    assert torch.equal(back(x_t, t), expected)
    assert torch.equal(opened.denoiser(x_t, t), expected)
    assert repr(opened.diffusion) == repr(run.diffusion)
    assert repr(back.trained.diffusion) == repr(sent.trained.diffusion)
    assert back.to("meta").trained.diffusion.transition.device.type == "meta"
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_images_of_any_size_are_drawn_at_their_own(config, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 9, 13), np.uint8)
    for name, _ in fashion_mnist.FILES.values():
        write_idx(tmp_path / name, images)
    train(replace(config, data=tmp_path, epochs=1))
    with Image.open(config.out / "samples" / "step-3" / "samples.png") as grid:
        assert grid.size == (3 * (13 + 2) * 3, (9 + 2) * 3)


def test_a_truncated_file_of_images_is_named(folder, tmp_path):
    path = tmp_path / fashion_mnist.FILES["train"][0]
    path.write_bytes((folder / path.name).read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        fashion_mnist.load("train", 4, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_metrics_go_where_they_are_asked_for_and_on_after_a_stop(kind, config):
    if kind == "tensorboard":
        pytest.importorskip("tensorboard")
    train(replace(config, log=kind, max_steps=7))
    train(replace(config, log=kind))
    steps = list(range(1, 13))
    if kind == "csv":
        with open(config.out / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == steps
        assert [float(row["loss"]) for row in rows] == losses(config.out)
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(config.out / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == steps


def test_metrics_go_to_wandb(config, monkeypatch):
    lines = []

    class Fake:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            lines.append("finished")

        def log(self, line, step):
            lines.append((line["loss"], step))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: Fake()))
    train(replace(config, log="wandb", max_steps=2))
    assert lines == [*zip(losses(config.out), (1, 2), strict=True), "finished"]


def test_metrics_survive_a_resume_that_is_killed(config, monkeypatch):
    train(replace(config, max_steps=6))
    before = losses(config.out)
    run = Run(config)

    def killed():
        raise KeyboardInterrupt

    run.train_step = killed
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert losses(config.out) == before
    with open(config.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # as a kill leaves it
    train(config)
    assert len(losses(config.out)) == 12


def test_a_run_is_reproduced_by_its_configuration(config, tmp_path, capsys):
    train(replace(config, transition="uniform", max_steps=3))
    options = ["--config", str(config.out / "config.toml"), "--out", str(tmp_path / "again")]
    main(["train", *options])
    assert losses(tmp_path / "again") == losses(config.out)
    with pytest.raises(SystemExit, match=r"--config .*nothing.toml cannot be read: No such"):
        main(["train", "--config", str(tmp_path / "nothing.toml")])
    with pytest.raises(SystemExit, match="is of the command train, not of train-text"):
        main(["train-text", str(config.out / "config.toml"), *options])


def test_runs_are_listed_with_their_bounds(config, tmp_path, capsys):
    with pytest.raises(SystemExit, match="there are no runs in"):
        main(["runs", str(tmp_path)])
    train(replace(config, epochs=1))
    train(replace(config, max_steps=5, out=tmp_path / "other"))
    main(["eval", str(tmp_path / "other"), "--data", str(config.data), "--images", "6"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / checkpoint.NAME).write_bytes(b"")
    capsys.readouterr()
    main(["runs", str(tmp_path)])
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["run", "task", "chain", "steps", "bits", "of"]
    bits = json.loads((tmp_path / "other" / "eval.json").read_text())["bits_per_dim"]
    held_out = json.loads((config.out / "held_out.json").read_text())["bits"]
    assert rows == [
        [str(tmp_path / "broken"), "damaged"],
        [str(tmp_path / "other"), "train", "absorbing", "5", f"{bits:.3f}", "6", "test", "images"],
        [str(config.out), "train", "absorbing", "3", f"{held_out:.3f}", "items", "held", "out"],
    ]


def test_previews_come_early_and_are_replaced(config, monkeypatch, capsys):
    assert [step for step in range(1, 1000) if is_preview(step)] == [100, 200, 400, 800]
    monkeypatch.setattr(loop, "FIRST_PREVIEW", 2)
    drawn = []
    run = Run(config)
    draw = run.draw
    run.draw = lambda folder, count: drawn.append((run.step, folder)) or draw(folder, count)
    run.go()
    previews = [(step, config.out / "preview") for step in (2, 4, 8)]
    assert drawn == [*previews, (12, config.out / "samples" / "step-12")]
    assert (config.out / "preview" / "samples.png").exists()


def test_a_run_whose_output_nobody_reads_any_more_saves(config, monkeypatch):
    run = Run(config)
    step = run.train_step

    def broken():
        if run.step == 3:
            raise BrokenPipeError
        return step()

    run.train_step = broken
    run.go()
    assert state_of(config.out)["step"] == 3
    model_before = (config.out / model.NAME).read_bytes()
    train(replace(config, max_steps=3))
    assert (config.out / model.NAME).read_bytes() == model_before
    (config.out / checkpoint.NAME).unlink()
    with pytest.raises(ValueError, match="has a model without its checkpoint"):
        train(config)


def test_an_evaluation_gives_way_to_no_smaller_one_and_not_to_another_model(config, capsys):
    train(replace(config, max_steps=3))
    command = ["eval", str(config.out), "--data", str(config.data), "--images"]
    main([*command, "6"])
    with pytest.raises(SystemExit, match="has an evaluation of 6 images: --force"):
        main([*command, "4"])
    others = fashion_mnist.FILES["test"][0]
    write_idx(config.out / others, np.zeros((COUNT, 28, 28), np.uint8))
    with pytest.raises(SystemExit, match="was made with other images: --force replaces it"):
        main([*command, "6", "--data", str(config.out)])
    train(replace(config, max_steps=4))
    capsys.readouterr()
    main(["runs", str(config.out)])
    assert "test images" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="the model has changed since its evaluation: --force"):
        main([*command, "6"])
    (config.out / "eval.json").write_text("{")
    main(["runs", str(config.out)])


@pytest.mark.parametrize("name", ["../other", "/tmp/other", "..", "a/b"])
def test_the_name_of_samples_names_no_other_folder(name, config):
    with pytest.raises(SystemExit, match="name must be a name without folders"):
        main(["sample", str(config.out), "--name", name])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_that_ends_a_program_stops_a_run_in_order(name, config, monkeypatch, capsys):
    number = getattr(signal, name)
    step = Run.train_step

    def signalled(run):
        os.kill(os.getpid(), number)
        return step(run)

    monkeypatch.setattr(Run, "train_step", signalled)
    for last in (4 * COUNT // 8, 1):  # a signal in the last step counts as well
        with pytest.raises(SystemExit, match=f"^{128 + number}$"):
            train(replace(config, out=config.out / str(last), max_steps=last))
        assert state_of(config.out / str(last))["step"] == 1
        assert not (config.out / str(last) / "samples").exists()
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt, match=f"^{number}$"):
        os.kill(os.getpid(), number)


def test_the_command_tells_its_version_and_prints_what_it_can(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"d3pm-fast {d3.__version__}\n"
    code = (
        "from d3pm_fast.train.cli import main; print(end=''); main(['--version']); print('\u20ac')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("?\n"), done.stderr


def test_a_run_of_another_version_is_not_resumed(config):
    run = Run(config)
    config.out.mkdir()
    run.save()
    state = state_of(config.out)
    state["denoiser"].popitem()
    checkpoint.save(config.out / checkpoint.NAME, state)
    with pytest.raises(ValueError, match="was written by another version of d3pm-fast"):
        train(config)
    assert state_of(config.out)["denoiser"].keys() == state["denoiser"].keys()
