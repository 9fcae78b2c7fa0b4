"""Data for the pages, as classic scripts: a page opened from `file://` may load them, but not fetch."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

# What could end a <script> element, open a comment in it, or break a line of JavaScript.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def safe_json(value: Any) -> str:
    """JSON that stays inert wherever it lands: in a script file, a script element or an attribute.

    Numbers that are not finite become `null`: the pages show them as a dash.

    Example:
        >>> safe_json({"name": "</script>", "value": float("nan")})
        '{"name":"\\\\u003c/script\\\\u003e","value":null}'
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # rare, so that the cheap path stays cheap
        text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    return text.translate(_UNSAFE) if "<" in text or ">" in text or "&" in text else text


def finite(value: Any) -> Any:
    """The same plain value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def assignment(key: str, value: Any) -> str:
    """A script that hands `value` to the page under `key`.

    Example:
        >>> assignment("atlas", {"done": 3})
        'window.convscopeData=window.convscopeData||{};convscopeData["atlas"]={"done":3};\\n'
    """
    begin = "window.convscopeData=window.convscopeData||{};convscopeData"
    return f"{begin}[{safe_json(key)}]={safe_json(value)};\n"


def digest(content: str | bytes) -> str:
    """Ten hexadecimal digits that change with the content; they bust the browser's cache."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=5).hexdigest()
