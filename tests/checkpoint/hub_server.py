"""A hub on this machine: as much of huggingface.co's HTTP as creating, pushing and loading need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Answers for the files in `Hub.files`, by "<user>/<repository>/<file>"."""

    files: dict[str, bytes]
    requests: list[str]

    def do_POST(self) -> None:
        """Create a repository, say how files are sent, or take a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append(f"POST {self.path}")
        repository = re.match(r"/api/models/([^/]+/[^/]+)/", self.path)
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.answer({"url": f"/user/{name}", "name": f"user/{name}", "id": f"user/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif repository and "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": each["path"], "uploadMode": "regular"} for each in files]
            self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif repository and "/commit/" in self.path:
            for line in filter(None, body.splitlines()):
                operation = json.loads(line)
                if operation["key"] == "file":
                    content = base64.b64decode(operation["value"]["content"])
                    self.files[f"{repository[1]}/{operation['value']['path']}"] = content
            address = f"http://{self.headers['Host']}/{repository[1]}/commit/{COMMIT}"
            self.answer({"commitUrl": address, "commitOid": COMMIT, "pullRequestUrl": None})
        else:
            self.answer({"error": "not here"}, status=404)

    def do_HEAD(self) -> None:
        """Tell the size and the hash of a file."""
        self.send_file(with_content=False)

    def do_GET(self) -> None:
        """Send a file, or what a repository is."""
        if self.path.startswith("/api/models/"):
            self.answer({"id": self.path.split("/models/")[1], "sha": COMMIT, "siblings": []})
        else:
            self.send_file(with_content=True)

    def send_file(self, *, with_content: bool) -> None:
        """Send a file with the headers that the hub's client goes by."""
        self.requests.append(f"{self.command} {self.path}")
        content = self.files.get(self.path.lstrip("/").replace("/resolve/main/", "/"))
        if content is None:
            content = self.files.get(self.path.lstrip("/").replace(f"/resolve/{COMMIT}/", "/"))
        self.send_response(200 if content is not None else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content and content is not None:
            self.wfile.write(content)

    def answer(self, value: object, status: int = 200) -> None:
        """Send JSON."""
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def serving_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve files during a block; yield the address, and the list of what was asked for."""
    requests: list[str] = []
    handler = type("ThisHub", (Hub,), {"files": files, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
