"""What ``d3pm-fast`` says before it trains or draws anything."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import safetensors.torch
import torch

from d3pm_fast.train import fashion_mnist, model
from d3pm_fast.train.cli import main
from d3pm_fast.train.images import ImageConfig

ROOT = Path(__file__).parents[1]


def said(*arguments):
    """The sentence that the command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    assert isinstance(stopped.value.code, str)
    assert "\n" not in stopped.value.code
    assert "Errno" not in stopped.value.code
    return stopped.value.code


@pytest.fixture
def untrained(tmp_path):
    """The folder of a model."""
    config = ImageConfig(levels=4, timesteps=10)
    statistics = {"marginals": [0.25] * 4, "shape": [28, 28]}
    model.save(tmp_path / model.NAME, config, statistics, config.denoiser())
    return tmp_path


def test_an_interrupt_while_pytorch_is_imported_is_quiet(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-c", "from d3pm_fast_command import main; main()"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGINT  # which a shell shows as 130


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--clip", "-1"], "clip must be above 0, got -1.0; see d3pm-fast train --help"),
        (
            ["train-text", "x", "--width", "8"],
            "width must be a multiple of 32, got 8; see d3pm-fast train-text --help",
        ),
        (["eval", "x", "--images", "1"], "must be at least 2, got 1; see d3pm-fast eval --help"),
    ],
)
def test_a_bad_value_leads_to_the_help_of_its_command(command, message):
    assert said(*command).endswith(message)
    assert said(*command).startswith(f"d3pm-fast {command[0]}: ")


def test_a_misspelt_option_leads_to_the_help_of_its_command(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--clp", "1"])
    assert "For full helptext, run d3pm-fast train --help" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_for_metrics_is_named_before_a_folder_is_made(
    kind, tmp_path, monkeypatch
):
    for name in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "run"
    message = said("train", "--log", kind, "--out", out)
    assert message == f"d3pm-fast train: --log {kind} needs a package: pip install {kind}"
    assert not out.exists()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "run"):
        expected = f"d3pm-fast train: --out {out} cannot be a folder: {file} is a file"
        assert said("train", "--out", out) == expected


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    expected = f"d3pm-fast train-text: FILE must be a text file, {tmp_path} is a folder"
    assert said("train-text", tmp_path) == expected
    expected = f"d3pm-fast train: --config {tmp_path} cannot be read: Is a directory"
    assert said("train", "--config", tmp_path) == expected


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("train", 'comand = "train"', " has the unknown key comand; do you mean command?"),
        ("train", "batchsize = 3", " has the unknown key batchsize; do you mean batch_size?"),
        ("train", 'qqq = "red"', " has the unknown key qqq"),
        ("train", 'command = "train-text"', " is of the command train-text, not of train"),
        ("train", 'transition = "absorb"', ": transition must be one of 'uniform', 'absorbing',"),
        ("train", 'epochs = "four"', ": epochs must be an integer, got str"),
        ("train", "clip = -1", ": clip must be above 0, got -1"),
        ("train", "clip = = 1", " is not TOML: Invalid value"),
        ("train-text", "epochs = 3", " lacks the key data"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(command, content, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(content)
    assert f"d3pm-fast {command}: --config {path}{message}" in said(command, "--config", path)


def test_a_configuration_needs_no_command_and_gives_way_to_options(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text(f'timesteps = 7\nlevels = 4\nepochs = 2\nout = "{tmp_path}/run"\n')
    configs = []
    monkeypatch.setattr("d3pm_fast.train.loop.train", configs.append)
    main(["train", "--config", str(path), "--epochs", "3"])
    (config,) = configs
    changed = {f.name: getattr(config, f.name) for f in fields(config)}
    assert changed == vars(ImageConfig()) | {
        "timesteps": 7,
        "levels": 4,
        "epochs": 3,
        "out": tmp_path / "run",
        "config": path,
    }


def test_a_command_says_which_files_of_images_it_needs(untrained, tmp_path, capsys):
    train, test = (name for name, _ in fashion_mnist.FILES.values())
    empty = tmp_path / "empty"
    empty.mkdir()
    needs = f"a folder with {train} and {test} (eval needs only the latter)"
    assert needs in said("train", "--data", empty, "--out", tmp_path / "run")
    assert needs in said("eval", untrained, "--data", empty)
    for command, names in ("train", [train, test]), ("eval", [test]):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert [name for name in (train, test) if name in text] == names


def test_no_more_images_are_promised_than_there_are(untrained, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "load", lambda *_: torch.zeros(5, 28, 28, dtype=torch.uint8))
    expected = "d3pm-fast eval: images must be at most 5, the whole test set, got 6"
    assert said("eval", untrained, "--images", "6") == expected
    assert not (untrained / "eval.pt").exists()


def test_the_times_of_a_sample_are_called_times(untrained):
    for times, message in ("9,3", "times must begin at T = 10"), ("10,3,3", "times must fall"):
        assert message in said("sample", untrained, "--times", times)


def test_a_file_beside_a_foreign_config_is_no_model(tmp_path):
    path = tmp_path / model.NAME
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    for config in ([], {"hidden_size": 3}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        expected = f"d3pm-fast sample: {path} is damaged, or not a model of d3pm-fast"
        assert said("sample", tmp_path) == expected


def test_a_hangup_that_the_caller_ignores_stays_ignored():
    """As with nohup."""
    code = (
        "import os, signal; from d3pm_fast.train.process import interrupted_by_signals as of\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with of(): os.kill(os.getpid(), signal.SIGHUP)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
