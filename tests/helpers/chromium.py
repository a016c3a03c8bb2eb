"""Chromium without a driver: its DevTools protocol over a pair of pipes."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess

_PATIENCE = 60
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


def find_chromium():
    """The browser's program: the one named by CHROMIUM, else one on PATH; None where there is none."""
    names = (
        [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else ["chromium", "chromium-browser", "google-chrome"]
    )
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A running Chromium; `open` gives a page."""

    def __init__(self, program, profile):
        ours, theirs = os.pipe(), os.pipe()
        # Chromium reads from descriptor 3 and writes to 4, which must not be in the way of being copied there.
        commands, answers = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1]))
        arguments = [program, *_QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, *arguments],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (commands, answers, ours[0], theirs[1]):
            os.close(end)
        self._write, self._read = ours[1], theirs[0]
        self._unread, self._count, self.events = b"", 0, []

    def open(self, path, width=1280, height=900, dark=False):
        """The file at `path` in a window of this size, once it is loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"], target)
        page.send("Page.enable")
        page.send("Network.enable")
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        page.emulate("screen", dark)
        page.send("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in page.events()):
            self._receive()
        return page

    def send(self, method, session=None, **parameters):
        """What the browser answers to a command."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        message = json.dumps(command | ({"sessionId": session} if session else {})).encode() + b"\0"
        while message:
            message = message[os.write(self._write, message) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def close(self):
        """Ends the browser."""
        with contextlib.suppress(Exception):
            self.send("Browser.close")
        self._process.terminate()
        self._process.wait(_PATIENCE)
        os.close(self._write)
        os.close(self._read)

    def _receive(self):
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read], [], [], _PATIENCE)
            block = os.read(self._read, 1 << 20) if ready else b""
            assert block, f"Chromium said nothing for {_PATIENCE} s" if not ready else "Chromium ended"
            self._unread += block
        text, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message


class Page:
    """A page that is open."""

    def __init__(self, browser, session, target):
        self._browser, self._session, self._target = browser, session, target

    def send(self, method, **parameters):
        return self._browser.send(method, self._session, **parameters)

    def events(self):
        return [event for event in self._browser.events if event.get("sessionId") == self._session]

    def requests(self):
        """Addresses that the page asked for, itself among them."""
        sent = [event for event in self.events() if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def evaluate(self, script):
        """The value of an expression in the page, or of what it promises."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def emulate(self, media, dark=False):
        """Shows the page as on a screen or in print, in light or dark."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def click(self, selector):
        """A click of the mouse on the middle of the first element that `selector` finds."""
        script = """(async element => {
            element.scrollIntoView({block: "center"});
            // Images that load when they come into view move what is below them.
            await new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)));
            element.scrollIntoView({block: "center"});
            const place = element.getBoundingClientRect();
            return [place.x + place.width / 2, place.y + place.height / 2];
        })"""
        script += f"(document.querySelector({json.dumps(selector)}))"
        x, y = self.evaluate(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key, code):
        """A key by its name and its number, pressed and released."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def pdf(self):
        """The page printed on A4, with the structure of what is on it."""
        answer = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, generateTaggedPDF=True)
        return base64.b64decode(answer["data"])

    def screenshot(self):
        """All of the page as PNG."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def close(self):
        self._browser.send("Target.closeTarget", targetId=self._target)
