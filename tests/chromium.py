"""Headless Chromium for tests: opens a page from disk, evaluates JavaScript in it, and keeps what its console said.

Speaks the DevTools protocol over a pair of pipes (``--remote-debugging-pipe``: JSON messages ended by a zero byte),
so it needs the browser and the standard library only: no driver, no port, no websocket.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)


def chromium_executable() -> str:
    """Path of the browser; without one the calling test skips, or fails where the environment variable CI is set."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    reason = "no Chromium in PATH; install it with `apt-get install chromium`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Page:
    """A page in its own tab.

    Attributes:
        console: one line for every console message, uncaught exception and failed request so far,
            as ``level: text``.
    """

    def __init__(self, commands: int, replies: int) -> None:
        self.console: list[str] = []
        self._commands, self._replies = commands, replies
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, timeout_s: float = 60, **parameters: Any) -> dict[str, Any]:
        """Sends a DevTools command and returns its result."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout_s
        while True:
            reply = self._receive(deadline, waiting_for=method)
            if reply.get("id") != self._last_id:
                self._note(reply)
            elif "error" in reply:
                raise RuntimeError(f"{method}: {reply['error']['message']}")
            else:
                result: dict[str, Any] = reply["result"]
                return result

    def _receive(self, deadline: float, *, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError(f"Chromium did not answer {waiting_for} in time")
            chunk = os.read(self._replies, 1 << 16)
            if not chunk:
                raise RuntimeError(f"Chromium closed its pipe instead of answering {waiting_for}")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        event: dict[str, Any] = json.loads(message)
        return event

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                words = [str(each.get("value", each.get("description"))) for each in parameters["args"]]
                self.console.append(f"{parameters['type']}: {' '.join(words)}")
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                text = details.get("exception", {}).get("description", details["text"])
                self.console.append(f"exception: {text}")
            case "Log.entryAdded":
                entry = parameters["entry"]
                self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}".rstrip())

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, fragment: str = ""
    ) -> None:
        """Opens a file in a window of width x height pixels, waits until it has loaded, and begins a new console.

        ``fragment`` ends the address; it begins with a number sign.
        """
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        if fragment:  # with another fragment only, the page would not load again
            self.call("Page.navigate", url="about:blank")
            self.wait_for("location.protocol === 'about:'")
        self.console.clear()
        answer = self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        if "errorText" in answer:
            raise RuntimeError(f"{path}: {answer['errorText']}")
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page (JSON types); a promise's value once it is settled."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, *, timeout_s: float = 20) -> None:
        """Returns once the JavaScript expression is true; raises TimeoutError after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not true after {timeout_s} s: {expression}; console: {self.console}")
            time.sleep(0.02)

    def texts(self, selector: str) -> list[str]:
        """The text of every element that ``selector`` finds."""
        found: list[str] = self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)"
        )
        return found

    def click(self, selector: str) -> None:
        """Presses and releases the left button in the middle of the first element that ``selector`` finds."""
        box = self.evaluate(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            " element.scrollIntoView({block: 'center'}); const box = element.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button=button, clickCount=1)

    def press(self, key: str, *, shift: bool = False, code: str | None = None) -> None:
        """Presses and releases a key by its DOM name ("ArrowRight", "Enter", "n"), perhaps at another place."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, ",": 188, ".": 190, "/": 191}
        names = {" ": "Space", ",": "Comma", ".": "Period", "/": "Slash", "?": "Slash"}
        name = code or names.get(key) or (f"Key{key.upper()}" if len(key) == 1 else key)
        number = codes.get(key) or ord(name[-1])
        parameters = {"key": key, "code": name, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes the window, or the whole page, as PNG."""
        parameters: dict[str, Any] = {"captureBeyondViewport": whole}
        if whole:
            root = "document.documentElement"
            width, height = self.evaluate(f"[{root}.scrollWidth, {root}.scrollHeight]")
            parameters["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", **parameters)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def chromium() -> Iterator[Page]:
    """Starts a browser with a fresh profile and gives its page; skips or fails as `chromium_executable` says."""
    executable = chromium_executable()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command_pipe, reply_pipe = os.pipe(), os.pipe()
        # The browser reads descriptor 3 and writes descriptor 4; ours move out of the way of that renaming.
        browser_in, commands, replies, browser_out = (
            fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in command_pipe + reply_pipe
        )
        for each in command_pipe + reply_pipe:
            os.close(each)
        process = os.posix_spawn(
            executable,
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, browser_in, 3),
                (os.POSIX_SPAWN_DUP2, browser_out, 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        os.close(browser_in)
        os.close(browser_out)
        try:
            yield Page(commands, replies)
        finally:
            os.close(commands)  # the browser ends when its pipe does, also one that never answered
            os.waitpid(process, 0)
            os.close(replies)
