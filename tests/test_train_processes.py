"""Training by several processes: the same steps as by one, and one end for all."""

import json
import os
import shutil
import signal
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
from helpers import processes
from helpers.once import once
from helpers.training import losses

import d3pm_fast as d3
from d3pm_fast.train import checkpoint, distributed, model, records
from d3pm_fast.train.loop import Run, train
from d3pm_fast.train.process import interrupted_by_signals

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("gloo is not installed", allow_module_level=True)
SEVERAL = [2, pytest.param(4, marks=pytest.mark.exhaustive)]


def made(number):
    """The folder of the runs of so many processes, which go on with what half as many began."""
    before = made(number // 2) / "for-others" if number > 1 else None
    fill = partial(processes.run, number, before=before)
    return once(f"processes_{number}", lambda folder: fill(folder=folder)) / str(number)


@pytest.fixture(scope="module")
def alone():
    torch.set_num_threads(1)
    return made(1)


@pytest.fixture(scope="module", params=SEVERAL)
def several(request, alone):
    return made(request.param)


def assert_same_losses(found, expected):
    assert len(found) == len(expected) > 2
    assert len({round(loss, 3) for loss in expected}) == len(expected)
    assert found == pytest.approx(expected, rel=1e-6)


EXACT = [case for case in processes.CASES if "half" not in case]


@pytest.mark.parametrize("case", EXACT)
def test_the_losses_are_those_of_one_process(case, several, alone):
    assert_same_losses(losses(several / case), losses(alone / case))


def seen_by_ranks(several, case):
    paths = sorted(several.glob(f"{case}-[0-9].json"))
    assert len(paths) == int(several.name)
    return [json.loads(path.read_text()) for path in paths]


def test_the_cases_have_what_they_are_named_for(several):
    def of_ranks(case):
        return [rank["pieces"] for rank in seen_by_ranks(several, case)]

    number = int(several.name)
    uneven, few, pieces = map(of_ranks, ("uneven", "few", "pieces"))
    steps = list(zip(*uneven, strict=True))
    assert {sum(items for items, _ in step) for step in steps} == {5}
    assert {len({items for items, _ in step}) for step in steps} == {2}
    assert {items for items, _ in few[-1]} == ({1} if number == 2 else {0})
    assert [len(seen) for seen in pieces] == [3 * len(steps)] * number
    assert {items for seen in pieces for items, _ in seen} == {0, 1}
    has_masks = [nats > 0 for seen in (*uneven, *few) for items, nats in seen if items]
    assert {*has_masks} == {True, False}


@pytest.mark.parametrize("task", ["uneven", "images"])
def test_each_process_has_a_part_of_what_is_sharded(task, several):
    sharded = {"uneven": "sharded", "images": "sharded-images"}[task]
    whole, *others = (rank["held"] for rank in seen_by_ranks(several, task))
    assert others == [whole] * len(others)
    parts = [rank["held"] for rank in seen_by_ranks(several, sharded)]
    assert sum(parts) == whole
    assert max(parts) < 1.3 * whole / len(parts)


def files_of(out):
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if not path.parts[0].startswith("checkpoint-"))


@pytest.mark.parametrize("case", ["head", "head-images"])
def test_each_process_has_all_items_and_a_part_of_the_head(case, several, alone):
    of_ranks = seen_by_ranks(several, case)
    config = processes.config_of(case, several.parent, several.name)
    assert [items for items, _ in of_ranks[0]["pieces"]] == [config.batch_size] * len(
        losses(alone / case)
    )
    assert all(rank["pieces"] == of_ranks[0]["pieces"] for rank in of_ranks)
    network = config.denoiser()
    whole = sum(weight.numel() for weight in network.parameters())
    of_class = sum(weight[0].numel() for weight in network.head.parameters())
    each = -(-config.num_classes // len(of_ranks))
    for number, rank in enumerate(of_ranks):
        classes = min(max(config.num_classes - number * each, 0), each)
        held = whole - of_class * (config.num_classes - classes)
        assert rank["held"] == 2 * held  # and their average


def test_a_head_is_not_shared_where_the_loss_is_not_made_of_parts():
    gaussian = d3.transitions.discretized_gaussian(4, d3.schedules.linear(9, 0.02, 0.4))
    run = SimpleNamespace(diffusion=d3.D3PM(gaussian))
    with pytest.raises(ValueError, match="--tensor-parallel needs a chain of rank one"):
        Run.share_head(run)
    with pytest.raises(ValueError, match="of fsdp and tensor_parallel choose one"):
        processes.config_of("head", Path(), 1, fsdp=True)


@pytest.mark.parametrize("case", ["half", "sharded-half", "head-half"])
def test_float16_skips_the_same_steps(case, several, alone):
    lines = [records.read(out / case) for out in (several, alone)]
    skipped, expected = ([line["gradient_norm"] is None for line in of] for of in lines)
    assert skipped == expected
    assert {*skipped} == {True, False}
    assert losses(several / case) == pytest.approx(losses(alone / case), rel=5e-3)
    states = [checkpoint.load(out / case / checkpoint.NAME)["scale"] for out in (several, alone)]
    assert states[0] == states[1]
    assert states[0]["factor"] == 2.0 ** (16 - sum(skipped))


@pytest.mark.parametrize("case", EXACT)
def test_one_process_writes_the_files_that_one_alone_does(case, several, alone):
    assert files_of(several / case) == files_of(alone / case)
    for line, other in zip(*(records.read(out / case) for out in (several, alone)), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"items_per_second"}:
            assert line[name] == (other[name] and pytest.approx(other[name], rel=5e-6))


def test_a_finished_run_opens_and_has_the_bound_of_one_process(several, alone):
    found, expected = (model.load(out / "images", torch.device("cpu")) for out in (several, alone))
    for weight, other in zip(
        found.denoiser.parameters(), expected.denoiser.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-5)
    bits, others = (
        json.loads((out / "images" / "held_out.json").read_text())["bits"]
        for out in (several, alone)
    )
    assert bits == pytest.approx(others, rel=1e-5)


@pytest.mark.parametrize("case", processes.BEGUN)
def test_another_number_of_processes_goes_on_as_if_the_run_had_never_ended(case, several, alone):
    """One process and two, two and four; what was sharded no longer is, and the reverse."""
    assert_same_losses(losses(several / case), losses(alone / "uneven"))
    assert len(list((several / case).glob("checkpoint-*"))) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", processes.BEGUN)
def test_one_process_goes_on_with_what_four_have_begun(case, alone, tmp_path):
    folder = alone.parent
    config = processes.config_of(case, folder, 1, out=tmp_path / "run")
    shutil.copytree(made(4) / "for-others" / case, config.out)
    train(config)
    assert_same_losses(losses(config.out), losses(alone / "uneven"))
    assert not list(config.out.glob("checkpoint-*"))
    assert losses(config.out)[:4] == losses(made(4) / "for-others" / case)


def test_as_many_processes_go_on_with_the_same_digits(several):
    found, expected = losses(several / "stopped"), losses(several / "uneven")
    assert len(found) == processes.DEAD_AT > processes.STOPPED_AT + 1
    if several.name == "2":  # a sum of four numbers has as many orders as a bucket has places
        assert found == expected[: len(found)]
    assert found == pytest.approx(expected[: len(found)], rel=1e-6)


def test_a_damaged_folder_of_weights_is_named(several, tmp_path):
    config = processes.config_of("begun", several.parent, 1, out=tmp_path / "run")
    shutil.copytree(several / "for-others" / "begun", config.out)
    folder = config.out / "checkpoint-4"
    for damage in (
        lambda: next(folder.glob("*.distcp")).write_bytes(b"no"),
        partial(shutil.rmtree, folder),
    ):
        damage()
        with pytest.raises(ValueError, match="checkpoint-4 is damaged"):
            train(config)


def test_a_signal_to_one_process_stops_all_after_the_same_step(several):
    said = (several / "said.txt").read_text()
    assert said.count(f"stopped at step {processes.STOPPED_AT + 1}; the same command goes on") == 1


def test_where_a_process_dies_each_other_ends_with_a_sentence(several):
    said = (several / "said.txt").read_text()
    assert said.count("d3pm-fast train-text: no more paper\n") == 1
    for rank in range(int(several.name)):
        sentence = (
            f"d3pm-fast train-text: process {rank} ends, as another one of the run has died or "
            "does not answer; the same command goes on from the last checkpoint\n"
        )
        assert said.count(sentence) == (rank != 1)
    assert said.count("step/s") > 0
    before_torchrun = said.split("torch/distributed/elastic")[0]
    assert "Traceback" not in before_torchrun


def test_a_signal_is_heard_while_others_are_waited_for(monkeypatch):
    """As torchrun sends it where another process has died before it joined."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=10))
    several = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": port}
    for name, value in (several | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))
    timer = Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        distributed.joined("cpu").__enter__()


def test_the_command_of_several_processes_is_that_of_one(tmp_path):
    ended = processes.torchrun(2, "d3pm_fast.train", "train-text", tmp_path / "nothing.txt")
    assert ended.returncode != 0
    assert f"d3pm-fast train-text: there is no text file {tmp_path / 'nothing.txt'}" in ended.stderr
