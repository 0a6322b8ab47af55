from aaren_rl.experiments.memory.probe_table import to_markdown


def row(task, mixer, seed, accuracies, contamination=None, lengths=(64, 256, 1024)):
    points = {
        str(length): {"accuracy": value, "ci95": [value - 0.01, value + 0.02]}
        for length, value in zip(lengths, accuracies, strict=False)
    }
    return {
        "task": task,
        "mixer": mixer,
        "seed": seed,
        "lengths": list(lengths),
        "chance": 0.125,
        "points": points,
        "contamination": contamination,
    }


def deviations(*values):
    ages = ("1", "4", "16", "64", "256")
    found = {"length": 321, "accuracy": 0.9, "disturbed_accuracy": 0.8}
    return {**found, "deviation": dict(zip(ages, values, strict=True))}


def test_cells_show_mean_and_spread_over_seeds():
    rows = [
        row("parity", "gru", 0, (1.0, 0.8, 0.5)),
        row("t-maze", "gru", 0, (1.0, 1.0, 0.9, 0.7), lengths=(150, 600, 2400, 9600)),
        row("parity", "gru", 1, (1.0, 0.6, 0.4)),
    ]
    lines = to_markdown(rows, 100, 800).splitlines()
    assert lines[:4] == [
        "| task | mixer | 1x | 4x | 16x | 64x |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| parity (64 steps, chance 0.125) | gru | 1.00 (1.00 to 1.00) | 0.70 (0.60 to 0.80) | 0.45 (0.40 to 0.50) "
        "| - |",
        "| t-maze (150 steps, chance 0.125) | gru | 1.00 [0.99, 1.02] | 1.00 [0.99, 1.02] | 0.90 [0.89, 0.92] "
        "| 0.70 [0.69, 0.72] |",
    ]
    assert "100 episodes of each agent" in lines[5]
    assert "after 800 updates" in lines[5]
    # Nothing was contaminated.
    assert len(lines) == 6


def test_lengths_that_were_not_played_have_no_figure():
    rows = [row("parity", "gru", 0, (1.0, 0.8)), row("parity", "gru", 1, (1.0,)), row("parity", "none", 0, (0.5,))]
    lines = to_markdown(rows, 10, 8).splitlines()
    assert lines[2].endswith("| gru | 1.00 (1.00 to 1.00) | - | - |")
    assert lines[3].endswith("| none | 0.50 [0.49, 0.52] | - | - |")


def test_a_share_below_1_is_not_written_as_1():
    rows = [row("recall-4", "gru", 0, (0.99996, 1.0, 0.994))]
    cells = to_markdown(rows, 10, 8).splitlines()[2]
    assert "| 0.9999 [" in cells
    assert "| 1.00 [" in cells
    assert "| 0.99 [" in cells


def test_contamination_has_a_table_of_its_own():
    rows = [
        row("recall-4", "gru", 0, (1.0,), deviations(0.0, 0.5, 1.0, 0.25, 0.1)),
        row("recall-4", "gru", 1, (1.0,), deviations(0.0, 0.7, 1.0, 0.35, 0.1)),
        row("parity", "gru", 0, (1.0,)),
    ]
    text = to_markdown(rows, 10, 8)
    assert "| task | mixer | 1 | 4 | 16 | 64 | 256 | accuracy | accuracy, disturbed |" in text
    assert (
        "| recall-4 | gru | 0 (0 to 0) | 0.6 (0.5 to 0.7) | 1 (1 to 1) | 0.3 (0.25 to 0.35) | 0.1 (0.1 to 0.1) "
        "| 0.90 (0.90 to 0.90) | 0.80 (0.80 to 0.80) |"
    ) in text
    assert "at step 64 of episodes of length 321" in text
