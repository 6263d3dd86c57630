"""A short run of the fuzzers with a fixed seed, and every input that once failed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats import verify_full
from formats.verify import Report
from fuzz import campaign, sets
from fuzz.limits import MAX_BYTES, MAX_SECONDS
from fuzz.mutate import MUTATIONS
from fuzz.oracle import ALLOWED, Oracle, scratch_folder
from fuzz.targets import TARGETS, close
from specs.fields import load_fields

SEED = "suite"
REGRESSIONS = sorted((Path(__file__).parent / "regressions").iterdir())
# About ten seconds of sets, and one of each other target.
NUM_SETS = 1500
NUM_INPUTS = 400


@pytest.fixture(scope="module", autouse=True)
def _folders() -> Iterator[None]:
    yield
    close()


@pytest.fixture(scope="module")
def stats() -> campaign.Stats:
    return campaign.run(SEED, count=NUM_SETS, keep=False)


def test_reader_and_validator_agree_on_damaged_sets(stats: campaign.Stats) -> None:
    assert stats.inputs == NUM_SETS
    assert not stats.problems


def test_the_damage_reaches_the_rules(stats: campaign.Stats) -> None:
    """Most codes that a file can cause are met in a run as short as this, and valid sets too."""
    of_files = {code for code, error in load_fields().errors.items() if error["cause"] == "file"}
    met = stats.codes.keys() & of_files
    assert len(met) > 0.8 * len(of_files), sorted(of_files - met)
    assert 0.02 * NUM_SETS < stats.codes["valid"] < 0.5 * NUM_SETS


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("set", "file")])
def test_target(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    for data in seeds:
        assert target.judge(data) == []
    for number in range(NUM_INPUTS):
        rng = random.Random(f"{SEED}:{number}")
        data = target.mutate(rng.choice(seeds), rng)
        assert target.judge(data) == [], f"{name}: input {number}: {data[:200]!r}"


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in REGRESSIONS])
def test_inputs_that_once_failed(path: Path) -> None:
    assert TARGETS[path.name.split("-")[0]].judge(path.read_bytes()) == []


def test_the_same_seed_gives_the_same_inputs() -> None:
    def digest() -> str:
        models = campaign.seeds()
        files = [campaign.make_input(models, SEED, number)[0] for number in range(40)]
        return hashlib.sha256(repr([sorted(each.items()) for each in files]).encode()).hexdigest()

    assert digest() == digest()


def test_sets_put_together_again_are_valid() -> None:
    """Else the mutator's checksums would be at fault, and not what it damaged."""
    oracle = Oracle(scratch_folder("rebuilt"))
    try:
        for model in campaign.seeds():
            outcome = oracle.judge(sets.build(model))
            assert (outcome.reader, outcome.validator, outcome.problems) == ([], [], [])
    finally:
        oracle.close()


def test_the_oracle_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sets.build(campaign.seeds()[0]) | {"kexp.json": b"{}"}
    oracle = Oracle(scratch_folder("blind"))

    def problem(name: str, value: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            (found,) = oracle.judge(files).problems
        return found

    def read_too_far(folder: Path) -> Report:
        with (folder / "model.kexp").open("rb") as stream:
            os.preadv(stream.fileno(), [bytearray(1)], 1 << 30)
        return verify_full(folder)

    def wait(folder: Path) -> Report:
        end = time.process_time() + MAX_SECONDS + 0.01
        while time.process_time() < end:
            pass
        return verify_full(folder)

    def gorge(folder: Path) -> Report:
        assert b"x" * (4 * MAX_BYTES)
        return verify_full(folder)

    try:
        assert oracle.judge(files).problems == []
        blind = ("specs.validate_kexp.ManifestReader.say", lambda *_: None)
        assert problem(*blind).startswith("verdicts differ")
        assert "IndexError" in problem("fuzz.oracle.verify_full", lambda folder: [][0])
        assert "beyond the file" in problem("fuzz.oracle.verify_full", read_too_far)
        assert "s, at most" in problem("fuzz.oracle.verify_full", wait)
        if sys.platform == "linux":
            assert "MiB for" in problem("fuzz.oracle.verify_full", gorge)
    finally:
        oracle.close()


def test_every_allowed_difference_has_a_reason() -> None:
    codes = load_fields().errors.keys()
    for each in ALLOWED:
        assert each.reader | each.validator <= codes
        assert "section" in each.reason


def test_every_kind_of_damage_does_something() -> None:
    models = [model for model in campaign.seeds() if len(model.shards) > 1]
    pristine = sets.build(models[0])
    for mutation, _ in MUTATIONS:
        changed = 0
        for number in range(12):
            model = campaign.sets.parse_set(pristine)
            mutation(model, random.Random(number))
            changed += sets.build(model) != pristine
        assert changed > 3, mutation.__name__


@pytest.mark.parametrize("name", ["empty-lists", "many-fractions"])
def test_memory_that_the_largest_documents_take(name: str, tmp_path: Path) -> None:
    """tracemalloc counts what is allocated, touched or not."""
    (path,) = [path for path in REGRESSIONS if name in path.name]
    for file, data in sets.from_zip(path.read_bytes()).items():
        (tmp_path / file).write_bytes(data)
    tracemalloc.start()
    try:
        assert [finding.code for finding in verify_full(tmp_path).findings] == ["E_JSON_VALUE"]
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MAX_BYTES


def test_the_command_reports_and_reproduces(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "fuzz.campaign", "--count", "5", "--seed", SEED]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert '"inputs": 5' in done.stdout
    command = [sys.executable, "-m", "fuzz", "--again", f"{SEED}:3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "nothing is wrong" in done.stdout
