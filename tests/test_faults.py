"""What scripts/try_faults.py calls a fault, and that it tries every command that writes."""

import json

import numpy as np
import pytest
import torch
import try_faults

from smml import cli


def test_every_command_that_writes_is_tried():
    commands = {info.name or info.callback.__name__ for info in cli.app.registered_commands}
    # Intervals need the scores of 39 cases, and write one file of weights, as calibrate does.
    assert commands == {"info", "intervals"} | {work.words.partition(" ")[0] for work in try_faults.WORKS.values()}
    assert set(try_faults.LONG) <= set(try_faults.WORKS)


def test_files_are_alike_whose_times_alone_differ(tmp_path):
    trees = []
    for name, seconds, weight in (("one", 1.5, 1.0), ("slow", 2.5, 1.0), ("other", 1.5, np.nextafter(1, 2))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "log.csv").write_text(f"step,total,seconds\n0,0.5,{seconds}\n", encoding="utf-8")
        (folder / "config.json").write_text(json.dumps({"steps": 3, "made": {"seconds": seconds}}), encoding="utf-8")
        torch.save({"weights": {"a": torch.tensor(weight, dtype=torch.float64)}}, folder / "checkpoint.pt")
        trees.append(try_faults.tree(folder))
    assert trees[0] == trees[1]
    assert [name for name in trees[0] if trees[0][name] != trees[2][name]] == ["checkpoint.pt"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json", "seg.nii.gz"])
def test_half_a_file_is_found(tmp_path, name):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    torch.save({"a": torch.ones(100)}, whole / "checkpoint.pt")
    (whole / "config.json").write_text(json.dumps({"steps": 3}), encoding="utf-8")
    (whole / "seg.nii.gz").write_bytes(bytes(100))
    known = try_faults.tree(whole)
    assert try_faults.half_written(known, known) == []
    content = (whole / name).read_bytes()
    (part / name).write_bytes(content[: len(content) // 2])
    assert try_faults.half_written(try_faults.tree(part), known) == [f"half-written {name}"]


def test_a_command_is_quoted_without_its_bars_and_warnings():
    said = (
        "training:   0%|          | 0/2 [00:00<?, ?it/s]\rtraining:  50%|#####     | 1/2 [00:03<00:03,  3.10s/it]\n"
        "evaluating, 2 cases done before: 0subset [00:00, ?subset/s]\n"
        "smml: warning: scores.csv: cannot be written\nsmml: run/log.csv: writing failed; free some space\n"
    )
    assert try_faults.lines_of(said) == ["smml: run/log.csv: writing failed; free some space"]
