"""What a test asks for, in a JSON file that VENI_EC2_CONTROL names and that is read again when it changes:

    {
      "delays": {"attach_ms": 0, "detach_ms": 0, "create_visible_ms": 0},
      "faults": [
        {
          "id": "1",                                counts go on when the file changes; without one they start again
          "action": "AssignPrivateIpAddresses",     or "*"
          "agent": "app/veni",                      only calls whose User-Agent has this in it
          "when": "before",                         the effect does not happen; "after": it does, and is not told
          "code": "RequestLimitExceeded",           without one: only the delay
          "status": 503,
          "skip": 0,                                so many calls pass first
          "count": 1,                               then so many are hit; -1: all
          "delay_ms": 0
        }
      ]
    }

A test must replace the file in one step (rename).
"""

import json
import os
import threading

_lock = threading.Lock()
_seen = None
_content = {}
_hits = {}


def _read():
    global _seen, _content, _hits
    path = os.environ.get("VENI_EC2_CONTROL")
    if not path:
        return {}
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return {}
    now = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
    if now != _seen:
        with open(path, encoding="utf-8") as file:
            _content = json.load(file)
        _seen = now
        _hits = {key: count for key, count in _hits.items() if isinstance(key, str)}
    return _content


def delay(name):
    """A delay in seconds."""
    with _lock:
        return _read().get("delays", {}).get(name, 0) / 1000


def fault(action, agent):
    """The fault that hits this call of `action`, or None; each call is counted once."""
    with _lock:
        for index, wanted in enumerate(_read().get("faults", [])):
            if wanted["action"] not in (action, "*") or wanted.get("agent", "") not in agent:
                continue
            key = wanted.get("id", index)
            seen = _hits.get(key, 0)
            first, count = wanted.get("skip", 0), wanted.get("count", 1)
            _hits[key] = seen + 1
            if seen >= first and (count < 0 or seen < first + count):
                return wanted
    return None
