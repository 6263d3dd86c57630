"""Files that are missing, of another size, or another set's; manifests that say what is not so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from changes import Case, manifest_changed, with_files
from contents import spell
from models import file_model, sharded, tiny
from sets import Files, make, make_manifest


def file_cases() -> list[Case]:
    base = make(tiny())
    shards = make(sharded())
    other = make(tiny(top_k=1, note="of another set"))
    renamed = dict(shards)
    renamed["model-00003-of-00003.kexp"] = shards["model-00002-of-00003.kexp"]
    config = file_model('{"model_type":"tiny"}')
    return [
        Case(
            "no-manifest",
            with_files(base, kexp_json=None),
            "kexp.json is missing",
            "E_FILE_MISSING",
        ),
        Case(
            "no-shard",
            {name: data for name, data in shards.items() if "00002" not in name},
            "the second of three shards is missing",
            "E_FILE_MISSING",
        ),
        Case(
            "no-config",
            with_files(make(config), config_json=None),
            "kexp.json lists a config.json that is missing",
            "E_FILE_MISSING",
            "full",
        ),
        Case("empty", with_files(base, model_kexp=b""), "a file of no bytes", "E_FILE_SIZE"),
        Case(
            "short",
            with_files(base, model_kexp=base["model.kexp"][:-1]),
            "the last byte is missing",
            "E_FILE_SIZE",
        ),
        Case(
            "long",
            with_files(base, model_kexp=base["model.kexp"] + b"\0"),
            "a byte too many",
            "E_FILE_SIZE",
        ),
        Case(
            "manifest-size",
            manifest_changed(lambda each: each["shards"][0].update(size=1)),
            "kexp.json has another size",
            "E_FILE_SIZE",
        ),
        Case(
            "config-changed",
            with_files(make(config), config_json=b'{"model_type":"Tiny"}'),
            "config.json was changed after packing, its size was not",
            "E_FILE_SHA256",
            "full",
        ),
        Case(
            "config-longer",
            with_files(make(config), config_json=b'{"model_type":"tiny" }'),
            "config.json was changed after packing",
            "E_FILE_SIZE",
            "full",
        ),
        Case("config-list", make(file_model("[]")), "config.json is a list", "E_CONFIG", "full"),
        Case("config-text", make(file_model("{\xff}")), "not UTF-8", "E_CONFIG", "full"),
        Case(
            "config-deep",
            make(file_model('{"a":' + "[" * 64 + "]" * 64 + "}")),
            "config.json is 65 deep",
            "E_CONFIG",
            "full",
        ),
        Case(
            "extra-shard",
            base | {"model-00001-of-00002.kexp": base["model.kexp"]},
            "a shard that kexp.json does not list",
            "E_SHARD_EXTRA",
        ),
        Case(
            "shard-twice",
            renamed | {"kexp.json": renamed_manifest(renamed)},
            "the second shard under the third one's name",
            "E_SHARD_NAME",
        ),
        Case(
            "foreign-shard",
            with_files(base, model_kexp=other["model.kexp"], kexp_json=foreign(base, other)),
            "a shard of another set",
            "E_SET_ROOT",
        ),
    ]


def foreign(base: Files, other: Files) -> bytes:
    """A manifest of `base` that agrees with the shard of `other` in all but the set root."""
    document = json.loads(other["kexp.json"])
    document["set_root"] = json.loads(base["kexp.json"])["set_root"]
    return spell(document)


def renamed_manifest(files: Files) -> bytearray:
    return bytearray(spell(make_manifest(files, sorted(n for n in files if n.endswith(".kexp")))))


def manifest_cases() -> list[Case]:
    edits: list[tuple[str, Callable[[dict[str, Any]], Any], str, str]] = [
        ("format", lambda m: m.update(format="safetensors"), "another format", "E_MANIFEST"),
        ("version", lambda m: m.update(version=2, later=1), "version 2", "E_VERSION"),
        ("version-true", lambda m: m.update(version=True), "true is no integer", "E_MANIFEST"),
        ("unknown-key", lambda m: m.update(comment=""), "a key more", "E_MANIFEST"),
        ("missing-key", lambda m: m.pop("files"), "a key less", "E_MANIFEST"),
        ("upper-case", lambda m: m.update(set_root=m["set_root"].upper()), "", "E_MANIFEST"),
        ("no-shards", lambda m: m.update(shards=[]), "a set of no shards", "E_MANIFEST"),
        ("path", lambda m: m["shards"][0].update(name="../model.kexp"), "", "E_MANIFEST"),
        ("digest-key", lambda m: m["shards"][0].update(sha256="0" * 64), "", "E_MANIFEST"),
        ("shard-root", lambda m: m["shards"][0].update(shard_root="0" * 64), "", "E_SHARD_ROOT"),
        ("set-root", lambda m: m.update(set_root="0" * 64), "", "E_SET_ROOT"),
    ]
    record = {"name": "config.json", "sha256": "0" * 64, "size": 1}

    def listed(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda m: m["files"].append(record | {"name": name})

    for name in ("../config.json", ".hidden", "a/b", "", "a\n", "README.md", "a.safetensors", "ü"):
        edits.append(
            (
                f"file-name-{len(edits)}",
                listed(name),
                f"a file called {name!r}",
                "E_MANIFEST",
            )
        )
    edits += [
        ("file-twice", lambda m: m["files"].extend([record, record]), "", "E_MANIFEST"),
        (
            "file-order",
            lambda m: m["files"].extend([record, record | {"name": "added.json"}]),
            "files do not ascend",
            "E_MANIFEST",
        ),
        ("file-size", lambda m: m["files"].append(record | {"size": -1}), "", "E_MANIFEST"),
    ]
    cases = [
        Case(f"manifest-{name}", manifest_changed(edit), note or name, code)
        for name, edit, note, code in edits
    ]
    text = bytes(make(tiny())["kexp.json"])
    for name, other, code in (
        ("space", text + b"\n", "E_JSON_CANONICAL"),
        ("text", b"kexp", "E_JSON"),
        ("list", b"[]", "E_MANIFEST"),
        ("null", b"null", "E_MANIFEST"),
        ("twice", text.replace(b'"version":1', b'"version":1,"version":1'), "E_JSON_DUPLICATE_KEY"),
    ):
        case = Case(f"manifest-{name}", with_files(make(tiny()), kexp_json=other), name, code)
        cases.append(case)
    return cases
