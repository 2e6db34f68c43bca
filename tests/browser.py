"""A headless Chromium for tests, spoken to through its debugging pipe; needs no other package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page of a Chromium of its own.

    Attributes:
        complaints: what the page has written to the console, and errors that nobody caught.
        requests: addresses that the page has asked for, `data:` left out.
    """

    def __init__(self, profile: Path):
        # Chromium reads commands from its descriptor 3 and writes answers to 4.
        theirs_in, self._commands = os.pipe()
        self._answers, theirs_out = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
        arguments = [CHROMIUM, *flags.split(), "--remote-debugging-pipe", "--hide-scrollbars",
                     f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, None
        self.complaints, self.requests, self._loaded = [], [], False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._commands)
        os.close(self._answers)

    def send(self, method: str, **parameters) -> dict:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self, timeout: float = 60) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise TimeoutError("Chromium does not answer")
            some = os.read(self._answers, 1 << 20)
            if not some:
                raise RuntimeError("Chromium has ended")
            self._buffer += some
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        method, parameters = message.get("method"), message.get("params", {})
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            # Chromium itself notes at level info that a dialog moved the focus; that is no fault.
            if parameters.get("entry", {}).get("level") != "info":
                self.complaints.append(json.dumps(parameters))
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message

    def open(self, url: str) -> float:
        """Open a page afresh; seconds until it has loaded."""
        self._go("about:blank")  # from one # of a page to another nothing would be loaded
        self.complaints.clear()
        self.requests.clear()
        started = time.monotonic()
        self._go(url)
        return time.monotonic() - started

    def _go(self, url: str) -> None:
        self._loaded = False
        self.send("Page.navigate", url=url)
        while not self._loaded:
            self._read()

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression holds."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press a key, such as Tab, Enter or ArrowRight."""
        text = {"Enter": "\r"}.get(key)
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        down = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", **down, **({"text": text} if text else {})
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **down)

    def hover(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        x, y = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def window(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Size of the window in CSS pixels, and the colours the user prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)  # fmt: skip
        scheme = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """What is to be seen, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
