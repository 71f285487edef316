"""A web server for tests of downloads, which behaves as badly as it is told to."""

import hashlib
import http.server
import random
import re
import threading
import time
from dataclasses import dataclass, field

# the same in every process that collects these tests
DATA = b"\x80" + random.Random(0).randbytes(49_999)
OTHER = b"\x80" + random.Random(1).randbytes(59_999)
PATH = "/models/m/model.pkl"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def leftovers(file):
    """What lies beside a fetched file, but for its lock and its origin."""
    usual = {file.name, file.name + ".lock", file.name + ".origin.json"}
    return sorted(p.name for p in file.parent.iterdir() if p.name not in usual)


@dataclass
class Site:
    """What the server has, and what it saw.

    Attributes:
        files: path -> contents.
        plan: behaviours of the next requests, first to last; after them the server is honest.
        always: the behaviour once the plan is used up.
        seen: per request its path, its Range and its If-Range.
        versions: whether it tells an ETag and a modification date.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    plan: list = field(default_factory=list)
    always: object = None
    seen: list[tuple] = field(default_factory=list)
    versions: tuple[str, ...] = ("ETag", "Last-Modified")
    address: str = ""

    def url(self, path: str) -> str:
        return self.address + path

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.seen]


def serve(request, *, cut=None, ignore_range=False, claim=0, kind=None, pause=0.0, headers=()):
    """Answers honestly, but for what is asked.

    Args:
        request: the handler.
        cut: drop the connection after so many bytes.
        ignore_range: send the whole file whatever was asked for.
        claim: announce so many bytes more than there are.
        kind: content type.
        pause: seconds to sleep before each 1000 bytes.
        headers: further ones.
    """
    site = request.site
    data = site.files.get(request.path)
    if data is None:
        return error(404)(request)
    version = {"ETag": f'"{hash(data)}"', "Last-Modified": f"day {hash(data)}"}
    start = 0
    if (asked := request.headers.get("Range")) and not ignore_range:
        condition = request.headers.get("If-Range")
        if condition is None or condition in version.values():
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
    if start and start >= len(data):
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{len(data)}")
        request.end_headers()
        return
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    request.send_header("Content-Length", str(len(data) - start + claim))
    for name in site.versions:
        request.send_header(name, version[name])
    if kind:
        request.send_header("Content-Type", kind)
    for name, value in headers:
        request.send_header(name, value)
    request.end_headers()
    body = data[start:] if cut is None else data[start : start + cut]
    for i in range(0, len(body), 1000):
        if pause:
            time.sleep(pause)
        request.wfile.write(body[i : i + 1000])
    request.wfile.flush()


def badly(**how):
    return lambda request: serve(request, **how)


def error(code, body=b"", kind="text/html"):
    def answer(request):
        request.send_response(code)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def redirect(to):
    def answer(request):
        request.send_response(302)
        request.send_header("Location", to)
        request.end_headers()

    return answer


def stall(after, release):
    """Sends a part, and then nothing until the event is set."""

    def answer(request):
        data = request.site.files[request.path]
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", f'"{hash(data)}"')
        request.end_headers()
        request.wfile.write(data[:after])
        request.wfile.flush()
        release.wait(20)

    return answer


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self):
        self.site.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        behave = self.site.plan.pop(0) if self.site.plan else self.site.always or serve
        behave(self)

    def log_message(self, *args):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # clients of these tests go away when they like


def start() -> tuple[Site, _Server]:
    site = Site()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return site, server
