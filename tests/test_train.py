"""The training program, on a handful of made-up images."""

import gzip
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import go_until, losses
from PIL import Image

import d3pm_fast as d3
from benchmarks import epsilon
from d3pm_fast import _environment
from d3pm_fast.train import checkpoint, fashion_mnist
from d3pm_fast.train.cli import main
from d3pm_fast.train.images import ImageConfig
from d3pm_fast.train.loop import Run, train

COUNT = 24


def write_idx(path, images):
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """IDX files of images with a bright square on black, somewhere."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    images = np.zeros((COUNT, 28, 28), np.uint8)
    for image in images:
        y, x = rng.integers(4, 16, 2)
        image[y : y + 8, x : x + 8] = 200
    for name, _ in fashion_mnist.FILES.values():
        write_idx(folder / name, images)
    return folder


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
    with Image.open(config.out / "samples.png") as grid:
        assert grid.size == (3 * 30 * 3, 30 * 3)
        assert len(grid.getcolors()) <= 4 + 1  # grey levels and the frame, but no mask
    with Image.open(config.out / "samples.gif") as film:
        assert film.n_frames >= 2
    with Image.open(config.out / "loss.png") as curve:
        assert curve.width > 100

    drawn = []
    for i, seed in enumerate((1, 1, 2)):
        out = config.out / str(i)
        main(["sample", str(config.out), "--out", str(out), "--count", "2", "--seed", str(seed)])
        drawn.append((out / "samples.png").read_bytes())
    first, again, other = drawn
    assert first == again
    assert first != other


def test_the_command_draws_by_every_sampler(config, capsys):
    train(replace(config, transition="absorbing", epochs=1))

    def drawn(*options):
        main(["sample", str(config.out), "--out", str(config.out), "--count", "2", *options])
        with Image.open(config.out / "samples.gif") as film:
            assert film.n_frames >= 2
        return (config.out / "samples.png").read_bytes()

    strided = drawn("--steps", "5")
    assert drawn("--times", "10,8,6,4,2") == strided
    others = [
        drawn("--times", "10,3"),
        drawn("--last", "argmax"),
        drawn("--sampler", "first-hitting", "--steps", "10"),
        drawn("--sampler", "first-hitting", "--steps", "10", "--last", "argmax"),
        drawn("--sampler", "confidence", "--seed", "1"),
        drawn("--steps", "5", "--temperature", "0.2"),
        drawn("--steps", "5", "--top-p", "0.2"),
        drawn("--last", "argmax", "--top-k", "2"),
    ]
    assert len({strided, *others}) == 9
    assert "100%" in capsys.readouterr().err
    for wrong, message in (
        (("--steps", "2", "--times", "10"), "steps or times, not both"),
        (("--times", "9,3"), "steps must begin at T = 10, got"),
        (("--sampler", "confidence", "--last", "argmax"), "argmax is not for the confidence"),
    ):
        with pytest.raises(SystemExit, match=message):
            drawn(*wrong)


@pytest.mark.parametrize("transition", ["absorbing", "gaussian"])
def test_the_command_reports_the_bound_of_a_checkpoint(transition, config, capsys):
    train(replace(config, transition=transition, epochs=1))
    out = config.out / "bound"
    command = ["eval", str(config.out), "--data", str(config.data), "--out", str(out)]
    main([*command, "--images", "6", "--times", "None"])
    found = json.loads((out / "elbo.json").read_text())

    trained = checkpoint.trained(config.out, torch.device("cpu"))
    images = fashion_mnist.load("test", config.levels, config.data)[:6]
    seeds = d3.draw_seeds(6, torch.Generator().manual_seed(0))
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
    assert json.loads((out / "elbo.json").read_text())["images"] == 8
    with pytest.raises(SystemExit, match=r"with times = None, asked for is 3"):
        main([*command, "--times", "3"])
    with pytest.raises(SystemExit, match="no checkpoint"):
        main(["eval", str(config.out / "nothing.pt")])


def test_an_evaluation_takes_all_steps_where_they_are_few(config, capsys):
    train(replace(config, epochs=1))
    command = ["eval", str(config.out), "--data", str(config.data), "--images", "4"]
    found = []
    for name, times in (("some", []), ("all", ["--times", "None"])):
        out = config.out / name
        main([*command, "--steps", "4", *times, "--out", str(out)])
        found.append(json.loads((out / "elbo.json").read_text()))
    assert found[0]["t"] == [3, 5, 8, 10]
    assert found[0]["terms_bits_per_dim"] == found[1]["terms_bits_per_dim"]
    out = config.out / "refused"
    for wrong, message in (
        (["--times", "2"], "d3pm-fast: times must be at least 3, got 2"),
        (["--steps", "11"], "d3pm-fast: steps must be at most T = 10, got 11"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*command, *wrong, "--out", str(out)])
        assert not out.exists()


def test_a_stopped_evaluation_says_that_the_same_command_goes_on(config, monkeypatch, capsys):
    train(replace(config, epochs=1))
    command = ["eval", str(config.out), "--data", str(config.data), "--times", "3"]
    whole, broken = config.out / "whole", config.out / "broken"
    main([*command, "--out", str(whole)])
    load = checkpoint.trained

    def stopping(*args):
        trained = load(*args)
        calls = iter(range(1))

        def denoise(x_t, t):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return trained.denoiser(x_t, t)

        return trained._replace(denoiser=denoise)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "trained", stopping)
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--out", str(broken)])
    assert stopped.value.code == "d3pm-fast: stopped; the same command goes on"
    assert [path.name for path in broken.iterdir()] == ["elbo.pt"]
    main([*command, "--out", str(broken)])
    first, second = (json.loads((out / "elbo.json").read_text()) for out in (whole, broken))
    assert first["terms_bits_per_dim"] == second["terms_bits_per_dim"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "gpu"], "d3pm-fast: --device gpu is not to be had here: .*gpu"),
        (["--device", "cuda:99"], "d3pm-fast: --device cuda:99 is not to be had here: "),
        (["--device", "cpu", "--impl", "cuda"], "d3pm-fast: impl='cuda' needs"),
    ],
)
def test_what_this_machine_lacks_is_said_in_a_line(option, message, config):
    command = ["train", "--data", str(config.data), "--out", str(config.out), "--batch-size", "8"]
    with pytest.raises(SystemExit, match=message) as error:
        main([*command, *option])
    assert "\n" not in error.value.code
    assert not config.out.exists()


def test_a_checkpoint_may_be_of_a_machine_with_more(config, monkeypatch, capsys):
    train(replace(config, epochs=1))
    state = checkpoint.load(config.out)
    state["config"]["impl"] = "cuda"
    checkpoint.save(config.out / checkpoint.NAME, state)
    out = config.out / "out"
    options = [str(config.out), "--device", "cpu", "--out", str(out)]
    draw, bound = ["sample", *options], ["eval", *options, "--data", str(config.data)]
    monkeypatch.setattr(_environment, "IMPL", "cuda")
    for command in (draw, bound):
        with pytest.raises(SystemExit, match="d3pm-fast: impl='cuda' needs"):
            main(command)
        with pytest.raises(SystemExit, match="--device gpu is not to be had here"):
            main([*command, "--device", "gpu"])
    assert not out.exists()
    monkeypatch.setattr(_environment, "IMPL", "")
    main(draw)
    main([*bound, "--images", "2"])


def test_the_times_of_a_sample_do_not_take_its_checkpoint(config, capsys):
    train(replace(config, epochs=1))
    out = config.out / "out"
    main(["sample", "--times", "10,4", str(config.out), "--count", "2", "--out", str(out)])
    assert (out / "samples.png").exists()
    with pytest.raises(SystemExit):
        main(["sample", str(config.out), "--times", "10,x"])
    assert "must be integers with commas between, got '10,x'" in capsys.readouterr().err


def test_a_run_of_few_steps_goes_on_with_more(config, tmp_path, capsys):
    whole = replace(config, out=tmp_path / "whole")
    train(whole)
    train(replace(config, max_steps=2))
    printed = capsys.readouterr().out
    assert "stopped at step 2; with more --max-steps it goes on from here" in printed
    assert (config.out / "samples.png").exists()
    assert checkpoint.load(config.out)["step"] == 2
    train(replace(config, max_steps=7))
    assert checkpoint.load(config.out)["step"] == 7
    train(config)
    assert losses(config.out) == losses(whole.out)
    broken, unbroken = (checkpoint.load(out)["average"] for out in (config.out, whole.out))
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

    options = [f"--{k.replace('_', '-')}={v}" for k, v in config.to_dict().items()]
    with subprocess.Popen(
        [sys.executable, "-m", "d3pm_fast.train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not (config.out / checkpoint.NAME).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert 5 <= checkpoint.load(config.out)["step"] <= 12
    train(config)

    assert losses(config.out) == losses(whole.out)
    broken, unbroken = (checkpoint.load(out)["average"] for out in (config.out, whole.out))
    assert all(torch.equal(broken[name], unbroken[name]) for name in unbroken)


def test_a_run_that_is_told_to_stop_saves_and_says_so(config, capsys):
    go_until(Run(config), step=3)
    assert checkpoint.load(config.out)["step"] == 3
    assert "stopped at step 3" in capsys.readouterr().out


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / checkpoint.NAME
    states = [{"config": {}, "statistics": {}, "average": {}, "step": step} for step in (1, 2)]
    checkpoint.save(path, states[0])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, states[1])
    assert checkpoint.load(path) == states[0]


def test_a_run_with_other_options_is_not_resumed(config):
    train(replace(config, epochs=1))
    with pytest.raises(ValueError, match="epochs = 1"):
        train(config)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"levels": 1}, r"levels must lie in \[2, 256\], got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sample_steps": 11}, r"sample_steps must lie in \[1, 10\], got 11"),
        ({"timesteps": 0, "sample_steps": None}, "timesteps must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"width": 20}, "width must be a multiple of 16, got 20"),
    ],
)
def test_bad_options_are_named(config, option, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **option)


@pytest.mark.parametrize(("timesteps", "calls"), [(1000, 100), (100, 100), (7, 7)])
def test_a_sample_takes_100_steps_or_all(timesteps, calls, config):
    assert replace(config, timesteps=timesteps, sample_steps=None).steps_to_sample == calls
    assert replace(config, timesteps=timesteps).steps_to_sample == 5


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    path = Path(tmp_path / "x.pt")
    for write in (
        lambda: path.write_bytes(b"nothing"),
        lambda: path.write_text('{"step": 1}\n'),
        lambda: torch.save({"step": 1}, path),
        lambda: torch.save(torch.zeros(2), path),
    ):
        write()
        with pytest.raises(SystemExit) as error:
            main(["sample", str(path), "--out", str(tmp_path)])
        assert error.value.code == f"d3pm-fast: {path} is not a checkpoint of d3pm-fast"
    with pytest.raises(SystemExit, match="no checkpoint"):
        main(["sample", str(tmp_path / "missing.pt"), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["config"].update(colour="red"),
        lambda state: state["config"].pop("command"),
        lambda state: state["config"].update(command="train-sound"),
        lambda state: state["statistics"].clear(),
        lambda state: state["average"].popitem(),
    ],
)
def test_a_checkpoint_of_another_version_is_named(change, config, tmp_path):
    run = Run(config)
    config.out.mkdir()
    run.save()
    path = config.out / checkpoint.NAME
    state = checkpoint.load(path)
    change(state)
    checkpoint.save(path, state)
    message = f"d3pm-fast: {path} was written by another version of d3pm-fast"
    with pytest.raises(SystemExit) as error:
        main(["sample", str(config.out), "--out", str(tmp_path / "out")])
    assert error.value.code == message
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_version_is_not_resumed(config):
    run = Run(config)
    config.out.mkdir()
    run.save()
    state = checkpoint.load(config.out)
    state["denoiser"].popitem()
    checkpoint.save(config.out / checkpoint.NAME, state)
    with pytest.raises(ValueError, match="was written by another version of d3pm-fast"):
        train(config)
    assert [path.name for path in config.out.iterdir()] == [checkpoint.NAME]
