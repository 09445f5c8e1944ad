"""A real browser without a window: Chromium, spoken to in the DevTools protocol over a pipe."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowDown": 40,
    "ArrowUp": 38,
    "End": 35,
    "Home": 36,
    "Tab": 9,
    "Enter": 13,
    "PageDown": 34,
}

END = b"\0"  # of a message
# The browser reads the protocol from descriptor 3 and writes it to 4.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find_browser() -> str | None:
    """The browser's program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page that is open. errors: what its scripts and its console complained of."""

    def __init__(self, sending: IO[bytes], receiving: IO[bytes]) -> None:
        self._sending, self._receiving = sending, receiving
        self._numbers, self._session, self._held = count(1), "", b""
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        session = {"sessionId": self._session} if self._session else {}
        self._sending.write(json.dumps(message | session).encode() + END)
        while (answer := self._receive()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def start(self) -> None:
        """Make an empty page, and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, file: Path, width: int = 1200, height: int = 900) -> None:
        """Open a file, and wait until it is there."""
        self.resize(width, height)
        self.call("Page.navigate", url=file.as_uri())
        while self.run("document.readyState + location.protocol") != "completefile:":
            pass

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, scheme: str) -> None:
        """Ask for pages that are "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key: a name of KEYS, or a letter."""
        text = {"text": key} if len(key) == 1 else {}
        code = KEYS.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def move(self, x: float, y: float, *, pressed: bool = False) -> None:
        """Move the mouse there, with its left button pressed or not."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=int(pressed))

    def click(self, x: float, y: float) -> None:
        """Press and release the left mouse button there."""
        self.drag((x, y), (x, y))

    def drag(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left mouse button at one place and release it at another."""
        self.move(*begin)
        self._button("mousePressed", *begin)
        if end != begin:
            self.move(*end, pressed=True)
        self._button("mouseReleased", *end)

    def _button(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def photograph(self, out: Path) -> None:
        """Write what is seen as a PNG."""
        out.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _receive(self) -> dict[str, Any]:
        while END not in self._held:
            more = self._receiving.read1(1 << 20)  # type: ignore[attr-defined]
            if not more:
                raise RuntimeError("the browser is gone")
            self._held += more
        message, _, self._held = self._held.partition(END)
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"warning", "error"}:
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(f"asked for {params['request']['url']}")


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Page]:
    """A page in a browser of its own, which ends with the block. profile: an empty folder for what it keeps."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]  # clear of 3 and 4
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    command = [sys.executable, "-c", LAUNCH, *map(str, ends), program, *options, f"--user-data-dir={profile}"]
    with subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for end in (to_read, from_write, *ends):
            os.close(end)
        with os.fdopen(to_write, "wb", buffering=0) as sending, os.fdopen(from_read, "rb") as receiving:
            try:
                yield Page(sending, receiving)
            finally:
                process.kill()
