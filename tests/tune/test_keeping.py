"""The file of tuned settings: what is kept comes back, to whom it belongs, and to no one else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from formats import KexpError
from kandiga_run.errors import RunError
from kandiga_run.memory.use import available_bytes
from kandiga_run.tune.applying import apply_tuned
from kandiga_run.tune.keeping import (
    Place,
    Tuned,
    check_writable,
    find_tuned,
    forget_tuned,
    keep_tuned,
    place_of,
    tuned_path,
)
from kandiga_run.tune.settings import Settings
from packed import PackedModels

OWNED = Settings("owned", 600_000_000, num_readers=2, num_threads=1)


def tuned_for(model: Path, settings: Settings = OWNED, needs_bytes: int = 1000) -> Tuned:
    return Tuned(place_of(model), "native", settings, needs_bytes, "2026-11-23", {"best": None})


def arguments(**chosen: Any) -> dict[str, Any]:
    nothing = {"memory_bytes": None, "num_readers": None, "num_threads": None}
    return {"engine": "auto", "residency": "auto", **nothing, **chosen}


@pytest.mark.usefixtures("config_home")
class TestFile:
    def test_what_is_kept_comes_back(self, model: Path) -> None:
        place = place_of(model)
        assert find_tuned(place) is None
        assert keep_tuned(tuned_for(model)) == tuned_path()
        assert find_tuned(place) == tuned_for(model)

    def test_it_lies_where_configuration_belongs(self, config_home: Path) -> None:
        assert tuned_path() == config_home / "kandiga/tuned.json"

    def test_models_do_not_disturb_each_other(self, model: Path, packed: PackedModels) -> None:
        other = packed("mixtral").container
        keep_tuned(tuned_for(model))
        keep_tuned(tuned_for(other, Settings("mapped")))
        keep_tuned(tuned_for(model, Settings("owned", 5)))
        assert find_tuned(place_of(other)) == tuned_for(other, Settings("mapped"))
        assert find_tuned(place_of(model)) == tuned_for(model, Settings("owned", 5))
        assert len(json.loads(tuned_path().read_text())["tuned"]) == 2
        assert forget_tuned(place_of(model))
        assert not forget_tuned(place_of(model))
        assert find_tuned(place_of(other)) is not None

    def test_another_machine_or_container_has_none(self, model: Path, tmp_path: Path) -> None:
        keep_tuned(tuned_for(model))
        place = place_of(model)
        for name, value in (("cpu", "another"), ("num_cpus", 99), ("memory_gib", 1), ("id", "x")):
            assert find_tuned(Place(place.model, {**place.machine, name: value})) is None
        elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
        assert place_of(elsewhere).model["set_root"] == place.model["set_root"]
        assert find_tuned(place_of(elsewhere)) is None  # perhaps on another disk

    def test_a_link_to_the_container_is_the_container(self, model: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(model)
        assert place_of(link) == place_of(model)
        assert place_of(next(model.glob("*.kexp"))) == place_of(model)

    def test_nothing_is_left_of_a_write_that_fails(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep_tuned(tuned_for(model))
        before = tuned_path().read_bytes()
        monkeypatch.setattr(Path, "replace", _full_disk)
        with pytest.raises(OSError, match="No space"):
            keep_tuned(tuned_for(model, Settings("mapped")))
        assert tuned_path().read_bytes() == before
        assert [path.name for path in tuned_path().parent.iterdir()] == ["tuned.json"]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"{", "not JSON"),
            (b"\xff\xfe", "not UTF-8"),
            (b"[" * 100_000, "not JSON"),
            (b"[]", "wanted a JSON object"),
            (b"{}", "version None, wanted 1"),
            (b'{"version": 2, "tuned": []}', "version 2, wanted 1"),
            (b'{"version": 1, "tuned": {}}', 'no list "tuned"'),
            (b'{"version": 1, "tuned": [3]}', 'no list "tuned"'),
        ],
    )
    def test_a_damaged_file_is_told_and_left_alone(
        self, model: Path, content: bytes, reason: str
    ) -> None:
        tuned_path().parent.mkdir(parents=True)
        tuned_path().write_bytes(content)
        for use in (
            check_writable,
            lambda: find_tuned(place_of(model)),
            lambda: keep_tuned(tuned_for(model)),
        ):
            with pytest.raises(RunError, match="remove the file") as caught:
                use()
            assert reason in str(caught.value)
        assert tuned_path().read_bytes() == content
        applied = apply_tuned(model, arguments())
        assert applied.arguments == arguments()
        assert reason in (applied.note or "")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda entry: entry.pop("settings"),
            lambda entry: entry["settings"].update(residency="everywhere"),
            lambda entry: entry["settings"].update(num_threads=0),
            lambda entry: entry["settings"].update(num_readers=True),
            lambda entry: entry["settings"].update(memory_bytes="2GB"),
            lambda entry: entry["settings"].update(other=1),
            lambda entry: entry.update(needs_bytes=None),
        ],
    )
    def test_a_damaged_entry_is_told(self, model: Path, damage: Callable[[Any], Any]) -> None:
        keep_tuned(tuned_for(model))
        document = json.loads(tuned_path().read_text())
        damage(document["tuned"][0])
        tuned_path().write_text(json.dumps(document))
        with pytest.raises(RunError, match="is damaged"):
            find_tuned(place_of(model))
        keep_tuned(tuned_for(model))  # tuning again mends it
        assert find_tuned(place_of(model)) == tuned_for(model)


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.usefixtures("config_home")
class TestApplying:
    def test_nothing_is_kept(self, model: Path) -> None:
        applied = apply_tuned(model, arguments(num_threads=2))
        assert (applied.arguments, applied.taken, applied.note) == (
            arguments(num_threads=2),
            {},
            None,
        )

    def test_everything_is_taken_that_was_left_open(self, model: Path) -> None:
        keep_tuned(tuned_for(model))
        applied = apply_tuned(model, arguments(check="off"))
        assert applied.arguments == {**arguments(check="off"), **OWNED.arguments()}
        assert applied.note == "tuned on 2026-11-23: owned, 600 MB, 2 readers, 1 thread"

    @pytest.mark.parametrize("chosen", [{"memory_bytes": 7}, {"residency": "mapped"}])
    def test_a_choice_of_memory_replaces_the_tuned_one(
        self, model: Path, chosen: dict[str, Any]
    ) -> None:
        keep_tuned(tuned_for(model))
        applied = apply_tuned(model, arguments(**chosen))
        assert applied.arguments == {**arguments(num_readers=2, num_threads=1), **chosen}
        assert applied.note == "tuned on 2026-11-23: auto, 2 readers, 1 thread"

    def test_memory_that_the_caller_decides(self, model: Path) -> None:
        keep_tuned(tuned_for(model))
        applied = apply_tuned(model, arguments(), memory_is_chosen=True)
        assert applied.arguments == arguments(num_readers=2, num_threads=1)

    def test_a_choice_of_threads_leaves_the_rest(self, model: Path) -> None:
        keep_tuned(tuned_for(model))
        applied = apply_tuned(model, arguments(num_threads=5))
        assert applied.arguments == {**arguments(), **OWNED.arguments(), "num_threads": 5}
        assert "thread" not in (applied.note or "")

    def test_another_engine_has_settings_of_its_own(self, model: Path) -> None:
        keep_tuned(tuned_for(model))
        assert apply_tuned(model, arguments(engine="mlx")).note is None
        assert apply_tuned(model, arguments(engine="native")).taken

    def test_memory_that_is_not_there_is_not_taken(self, model: Path) -> None:
        keep_tuned(tuned_for(model, needs_bytes=available_bytes() * 2))
        applied = apply_tuned(model, arguments())
        assert applied.arguments == arguments(num_readers=2, num_threads=1)
        assert "is available" in (applied.note or "")

    def test_usual_settings_are_told_as_such(self, model: Path) -> None:
        keep_tuned(replace(tuned_for(model), settings=Settings()))
        applied = apply_tuned(model, arguments())
        assert applied.arguments == arguments()
        assert applied.note == "tuned on 2026-11-23: as without tuning"

    def test_no_container(self, model: Path, tmp_path: Path) -> None:
        keep_tuned(tuned_for(model))
        with pytest.raises(KexpError):
            apply_tuned(tmp_path, arguments())
