"""Headers of dense tensors that must be refused."""

from __future__ import annotations

from changes import Case, dense_text


def dense_cases() -> list[Case]:
    def one(text: str) -> bytes:
        return ('{"a":{' + text + "}}").encode()

    good = '"dtype":"U8","shape":[3],"data_offsets":[0,3]'
    huge = '"dtype":"U8","shape":[9007199254740991,2,0],"data_offsets":[0,0]'
    many = '"dtype":"U8","shape":[3' + ",1" * 32 + '],"data_offsets":[0,3]'
    texts: list[tuple[str, bytes, bytes, str]] = [
        ("list", b"[]", b"", "E_DENSE"),
        ("leading-space", b" " + one(good), b"abc", "E_DENSE"),
        ("text", b"{", b"", "E_JSON"),
        ("fraction", one(good.replace("[3]", "[3.0]")), b"abc", "E_JSON_VALUE"),
        ("minus-zero", one(good.replace("[0,", "[-0,")), b"abc", "E_JSON_VALUE"),
        ("twice", b'{"a":{' + good.encode() + b'},"a":{}}', b"abc", "E_JSON_DUPLICATE_KEY"),
        ("key", one(good + ',"x":1'), b"abc", "E_DENSE"),
        ("lower-case", one(good.replace("U8", "u8")), b"abc", "E_DTYPE"),
        ("half-byte", one(good.replace("U8", "F4")), b"abc", "E_DTYPE"),
        ("hole", one(good.replace("[0,3]", "[1,4]")), b"abcd", "E_DENSE"),
        (
            "overlap",
            b'{"a":{' + good.encode() + b'},"b":{' + good.encode() + b"}}",
            b"abc",
            "E_DENSE",
        ),
        ("length", one(good.replace("[3]", "[4]")), b"abc", "E_DENSE"),
        ("backwards", one(good.replace("[0,3]", "[3,0]")), b"abc", "E_DENSE"),
        ("more", one(good), b"abcd", "E_DENSE"),
        ("less", one(good), b"ab", "E_DENSE"),
        ("huge", one(huge), b"", "E_DENSE"),
        ("dims", one(many), b"abc", "E_DENSE"),
        ("metadata", b'{"__metadata__":{"a":1}}', b"", "E_DENSE"),
    ]
    return [
        *(
            Case(f"dense-{name}", dense_text(text, data), f"DENS: {name.replace('-', ' ')}", code)
            for name, text, data, code in texts
        ),
        Case(
            "dense-header-leaves",
            dense_text(b"{}", b"", length=3),
            "a header longer than the section",
            "E_DENSE",
        ),
        Case(
            "dense-header-limit",
            dense_text(b"{}", b"", length=(16 << 20) + 1),
            "a header above 16 MiB",
            "E_LIMIT",
        ),
    ]
