"""Two guests in two browser windows talk to each other through the chat example.

usage: browser.py URL [deflate]      with "deflate" the server must agree to compression; needs chromedriver and Chromium; speaks WebDriver over loopback
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
PATIENCE_S = 60


class Window:
    """A browser of its own."""

    def __init__(self, driver):
        flags = FLAGS + ["--user-data-dir=" + tempfile.mkdtemp()]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": flags}}}
        answer = call("POST", f"{driver}/session", {"capabilities": wanted})
        self.session = f"{driver}/session/{answer['sessionId']}"

    def open(self, url):
        call("POST", f"{self.session}/url", {"url": url})

    def run(self, script, *args):
        body = {"script": script, "args": list(args)}
        return call("POST", f"{self.session}/execute/sync", body)

    def say(self, text):
        """Types into the page's field and sends, once the page may."""
        self.wait("return !document.getElementById('send').disabled")
        self.run(
            "document.getElementById('text').value = arguments[0];"
            "document.getElementById('send').click();", text)

    def wait(self, script, *args):
        end = time.monotonic() + PATIENCE_S
        while not self.run(script, *args):
            if time.monotonic() > end:
                sys.exit(f"waited in vain for {script} {args}: {self.log()}")

    def log(self):
        return self.run("return document.getElementById('log').innerText")

    def expect(self, line):
        self.wait("return [...document.querySelectorAll('#log li')]"
                  ".some(item => item.textContent === arguments[0])", line)

    def close(self):
        call("DELETE", self.session)


def call(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)["value"]


def main():
    url = sys.argv[1]
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    windows = []
    try:
        port = None
        for line in driver.stdout:
            found = re.search(r"started successfully on port (\d+)", line)
            if found:
                port = found[1]
                break
        windows = [Window(f"http://127.0.0.1:{port}") for _ in range(2)]
        ann, bob = windows
        for window in windows:
            window.open(url)
        ann.say("Ann")
        ann.expect("* Ann is here")
        bob.say("Bob")
        ann.expect("* Bob is here")
        ann.say("Grüße 😀")
        for window in windows:
            window.expect("Ann: Grüße 😀")
        bob.say("hello")
        ann.expect("Bob: hello")
        agreed = ann.run("return socket.extensions")
        if agreed.startswith("permessage-deflate") != ("deflate" in sys.argv):
            sys.exit(f"agreed extensions: {agreed!r}")
        # Long enough to be compressed, again and again.
        for number in range(5):
            long = f"{number} " + " ".join(f"word {i % 37} é" for i in range(300))
            bob.say(long)
            ann.expect("Bob: " + long)
        windows.remove(bob)
        bob.close()
        ann.expect("* Bob has left")
        print("two browser windows have talked")
    finally:
        for window in windows:
            window.close()
        driver.terminate()
        driver.wait()


main()
