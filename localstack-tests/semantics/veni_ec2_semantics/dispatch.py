"""Every EC2 call passes here: one at a time (moto's models are not thread-safe), with faults, and into the log and the feed.

The log is a file that VENI_EC2_LOG names: one JSON object a call, {"action", "agent", "code", "at_ms"}; `code` is the
injected fault's or the HTTP status.
"""

import json
import os
import threading
import time

from moto.core.responses import BaseResponse

from . import control, feed, lifecycle

_calls = threading.RLock()
_log = threading.Lock()


def patch():
    original = BaseResponse.call_action

    def call_action(self):
        if self.service_name != "ec2":
            return original(self)
        action, agent = self._get_action(), str(self.headers.get("User-Agent", ""))
        fault = control.fault(action, agent) or {}
        time.sleep(fault.get("delay_ms", 0) / 1000)
        answer = None
        if fault.get("when", "before") == "after" or "code" not in fault:
            with _calls:
                lifecycle.settle(self.ec2_backend)
                try:
                    answer = original(self)
                finally:
                    feed.tell(self.ec2_backend, _calls)
        if "code" in fault:
            answer = _refusal(fault)
        _write(action, agent, fault.get("code", answer[0]))
        return answer

    BaseResponse.call_action = call_action


def _refusal(fault):
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Response><Errors><Error><Code>{fault['code']}</Code><Message>injected by the test</Message></Error>"
        "</Errors><RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
    )
    return fault.get("status", 503), {"Content-Type": "text/xml"}, body


def _write(action, agent, code):
    path = os.environ.get("VENI_EC2_LOG")
    if not path:
        return
    line = json.dumps({"action": action, "agent": agent, "code": str(code), "at_ms": int(time.time() * 1000)})
    with _log, open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
