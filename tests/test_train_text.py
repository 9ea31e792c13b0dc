"""Training on text: documents of unequal length, padded, of which the padding never counts."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.training import go_until

import d3pm_fast as d3
from d3pm_fast.train import checkpoint, documents
from d3pm_fast.train.cli import main
from d3pm_fast.train.held_out import bits_per_token
from d3pm_fast.train.items import Items
from d3pm_fast.train.loop import Run, train
from d3pm_fast.train.text import TextConfig, spread
from d3pm_fast.train.transformer import Transformer

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """For so small a network a second thread only waits."""
    torch.set_num_threads(1)


@pytest.fixture
def config(tmp_path):
    """Four documents of each length up to nine words, in an order of their own."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(" ".join(WORDS[: 7 * i % 10]) for i in range(1, 41)))
    return TextConfig(
        data=path,
        out=tmp_path / "run",
        context=16,
        timesteps=10,
        epochs=2,
        batch_size=16,
        width=32,
        depth=1,
        sample_count=3,
        sample_steps=5,
        precision="float32",
    )


def load(tmp_path, text, *options):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    return documents.load(path, *options)


def texts(items, alphabet):
    rows = zip(items.x0, items.mask, strict=True)
    return [documents.decode(x0[mask], alphabet) for x0, mask in rows]


@pytest.mark.parametrize(
    ("alphabet", "expected"),
    [("letters", "the answer caf is"), ("bytes", "The ANSWER,\tcafé is 42!")],
)
def test_text_comes_back_as_its_alphabet_has_it(alphabet, expected):
    tokens = documents.encode(" The ANSWER,\tcafé is 42!\n", alphabet)
    assert tokens.max() < documents.SIZES[alphabet]
    assert documents.decode(torch.from_numpy(tokens.copy()), alphabet) == expected


def test_documents_are_cut_to_the_length_and_nothing_is_lost(tmp_path):
    items = load(tmp_path, "ab\ncd\n \n\n\nefghijk\n\n42\n\nx", "letters", "paragraphs", 5)
    assert texts(items, "letters") == ["ab cd", "efgh", "ijk", "x"]
    assert items.x0.shape == items.mask.shape == (4, 5)
    assert items.lengths().tolist() == [5, 4, 3, 1]
    assert not items.x0[~items.mask].any()


def test_lines_are_documents_where_asked(tmp_path):
    items = load(tmp_path, "ann\nbob\n\neve", "bytes", "lines", 8)
    assert texts(items, "bytes") == ["ann", "bob", "eve"]


def test_the_last_documents_are_held_out(config):
    learned, held_out = config.load()
    both = documents.load(config.data, config.alphabet, config.split, config.context)
    assert len(held_out) == round(0.05 * len(both))
    assert texts(learned, "letters") + texts(held_out, "letters") == texts(both, "letters")


@pytest.mark.parametrize("training", [True, False])
def test_the_network_does_not_see_padding(training):
    torch.manual_seed(0)
    network = Transformer(28, 10, width=32, depth=2, mask_id=27).train(training)
    x_t, t = torch.randint(28, (3, 12)), torch.tensor([1, 5, 10])
    mask = torch.arange(12) < torch.tensor([12, 7, 1])[:, None]
    other = torch.where(mask, x_t, torch.randint(28, (3, 12)))
    with torch.set_grad_enabled(training):
        logits = network(x_t, t, mask)
        torch.testing.assert_close(network(other, t, mask)[mask], logits[mask])
        torch.testing.assert_close(network(x_t[1:2, :7], t[1:2])[0], logits[1, :7])
    assert logits.shape == (3, 12, 28)
    assert (logits[..., 27] == -torch.inf).all()


def test_padding_changes_no_step_of_training(config):
    ends = []
    for longer in (0, 8):
        torch.manual_seed(0)
        run = Run(config)
        padding = (0, longer)
        run.items, run.held_out = (
            Items(*(torch.nn.functional.pad(x, padding, value=0) for x in (i.x0, i.mask)))
            for i in (run.items, run.held_out)
        )
        steps = [run.train_step() for _ in range(3)]
        ends.append(
            ([s["loss"] for s in steps], [s["cross_entropy"] for s in steps], run.evaluate())
        )
    for short, long in zip(*ends, strict=True):
        assert short == pytest.approx(long, rel=1e-4)


@pytest.mark.parametrize("repeats", ["every time", "some times"])
def test_the_bound_of_a_constant_prediction_is_its_cross_entropy(repeats):
    """For an absorbing chain, where the steps' weights telescope to one."""
    torch.manual_seed(0)
    num_steps = 40 if repeats == "every time" else 4000
    transition = d3.transitions.absorbing(4, d3.schedules.jsd(num_steps), mask_id=3)
    diffusion = d3.D3PM(transition, first_step="posterior")
    frequencies = torch.tensor([0.7, 0.2, 0.1])
    mask = torch.rand(400, 16) < 0.5
    x0 = torch.multinomial(frequencies, mask.numel(), replacement=True).view(mask.shape)
    items = Items(x0.to(torch.uint8), mask)
    constant = Constant(torch.cat([frequencies.log(), torch.tensor([-torch.inf])]))
    bits = bits_per_token(diffusion, constant, items, 128, "float32", CPU, seed=0)
    exact = -frequencies.log()[x0[mask]].mean().item() / math.log(2)
    assert bits == pytest.approx(exact, rel=0.03)
    times = torch.cat(constant.times).view(-1, len(items))
    assert len(times) == min(num_steps, -(-(2**13) // len(items)))
    assert (times.sort(0).values.diff(dim=0) - num_steps / len(times)).abs().max() <= 1


def state_of(out):
    return checkpoint.load(out / checkpoint.NAME)


class Constant(torch.nn.Module):
    """A denoiser that always says the same, and remembers when it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits
        self.times = []

    def forward(self, x_t, t, mask):
        self.times.append(t)
        return self.logits.expand(*x_t.shape, -1).contiguous()


def test_samples_are_as_long_as_documents_are():
    assert spread([0, 10, 0, 30], 4).tolist() == [1, 3, 3, 3]
    assert spread([0, 0, 1], 3).tolist() == [2, 2, 2]


@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
@pytest.mark.parametrize("alphabet", ["letters", "bytes"])
def test_the_command_trains_and_prints_text(transition, alphabet, config, capsys):
    options = ["--transition", transition, "--alphabet", alphabet, "--out", str(config.out)]
    options += ["--context", "16", "--timesteps", "10", "--epochs", "1", "--batch-size", "16"]
    options += ["--width", "32", "--depth", "1", "--sample-count", "3", "--sample-steps", "5"]
    main(["train-text", str(config.data), *options])
    printed = capsys.readouterr().out
    samples = next((config.out / "samples").glob("step-*/samples.txt")).read_bytes().decode()
    assert samples in printed
    assert "held out: at most" in printed
    assert "bits per character" in printed
    if alphabet == "letters":
        lengths = [len(document) for document in samples[:-1].split("\n\n")]
        assert lengths == spread(state_of(config.out)["statistics"]["lengths"], 3).tolist()

    drawn = []
    for seed in (1, 1, 2):
        main(["sample", str(config.out), "--name", "more", "--force", "--seed", str(seed)])
        drawn.append((config.out / "samples" / "more" / "samples.txt").read_bytes().decode())
        assert drawn[-1] in capsys.readouterr().out
    first, again, other = drawn
    assert first == again
    assert first != other


def test_a_language_of_few_words_is_learned(config):
    train(replace(config, epochs=60, ema=0.9))
    log = (config.out / "metrics.jsonl").read_text().splitlines()
    unigram = 3.8
    assert json.loads(log[-1])["bound"] < 0.7 * unigram


def test_a_stopped_run_goes_on_as_if_it_never_had_been(config, tmp_path):
    whole = replace(config, out=tmp_path / "whole")
    train(whole)

    go_until(Run(config), step=3)
    assert state_of(config.out)["step"] == 3
    train(config)
    broken, unbroken = (state_of(out)["average"] for out in (config.out, whole.out))
    assert all(torch.equal(broken[name], unbroken[name]) for name in unbroken)


def test_a_run_on_images_is_not_resumed_with_text(config):
    run = Run(config)
    config.out.mkdir()
    run.save()
    path = config.out / checkpoint.NAME
    state = state_of(config.out)
    checkpoint.save(path, state | {"options": {"command": "train", "levels": 16}})
    with pytest.raises(ValueError, match="command = 'train'"):
        train(config)


def test_a_run_is_not_resumed_with_another_text(config):
    train(replace(config, epochs=1))
    config.data.write_text(config.data.read_text().replace("seven", "eleven"))
    with pytest.raises(ValueError, match="other data"):
        train(replace(config, epochs=1))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"width": 48}, "width must be a multiple of 32, got 48"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named(config, option, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **option)


def test_a_file_without_text_is_named(config, tmp_path):
    config.data.write_text("1, 2, 3\n")
    with pytest.raises(SystemExit, match="two documents or more, got 0; --alphabet bytes is for"):
        main(["train-text", str(config.data), "--out", str(config.out)])
    with pytest.raises(SystemExit, match=r"there is no text file .*missing\.txt"):
        main(["train-text", str(tmp_path / "missing.txt"), "--out", str(config.out)])


def test_letters_of_another_alphabet_are_bytes(config):
    config.data.write_text("привет\n\nмир\n\nкак дела", encoding="utf-8")
    command = ["train-text", str(config.data), "--out", str(config.out), "--batch-size", "1"]
    with pytest.raises(SystemExit, match="got 0; --alphabet bytes is for other letters than a"):
        main(command)
    config.data.write_text("мир", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"two documents or more, got 1$"):
        main([*command, "--alphabet", "bytes"])
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\n\nabc\n\ndef", "'utf-8' codec can't decode byte 0x89 in position 0"),
        (b"abc\n\n\0def\n\nghi", "it has zero bytes"),
    ],
)
@pytest.mark.parametrize("alphabet", ["letters", "bytes"])
def test_a_file_that_is_no_text_is_refused(content, reason, alphabet, config):
    config.data.write_bytes(content)
    with pytest.raises(SystemExit, match=f"text.txt is not text in UTF-8: {reason}"):
        main(["train-text", str(config.data), "--alphabet", alphabet, "--out", str(config.out)])


def test_too_large_a_batch_is_named_as_the_option_is(config):
    command = ["train-text", str(config.data), "--out", str(config.out), "--batch-size", "1000"]
    with pytest.raises(SystemExit, match=r"train-text: --batch-size must be at most \d+, .* 1000"):
        main(command)
    assert not config.out.exists()
