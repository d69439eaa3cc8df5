"""A server that speaks as much of the hub's API as creating a repository and uploading a folder need."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


@dataclass
class Hub:
    """What was uploaded."""

    address: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Requests that made them, by name."""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Of the last commit, by path."""
    large: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Contents by their hash."""


@contextmanager
def serve_hub() -> Generator[Hub]:
    """Serve a hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def answer(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self) -> None:
            hub.large[self.path.removeprefix("/storage/")] = self.body()
            self.answer({})

        def do_GET(self) -> None:
            self.answer({"error": f"not made here: {self.path}"}, 404)

        def do_POST(self) -> None:
            data = self.body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid user token."}, 401)
            if self.path == "/api/repos/create":
                request = json.loads(data)
                name = f"{request.get('organization', 'me')}/{request['name']}"
                if name.startswith("other/"):
                    return self.answer({"error": "You don't have the rights to create a model under this namespace."}, 403)
                hub.repositories.setdefault(name, request)
                return self.answer({"url": f"{hub.address}/{name}", "id": "1", "name": name})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", self.path):
                modes = {True: "lfs", False: "regular"}
                files = [
                    {"path": file["path"], "uploadMode": modes[file["path"].endswith((".safetensors", ".png"))], "shouldIgnore": False}
                    for file in json.loads(data)["files"]
                ]
                return self.answer({"files": files})
            if self.path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {**each, "authenticated": True, "actions": {"upload": {"href": f"{hub.address}/storage/{each['oid']}"}}}
                    for each in json.loads(data)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            if re.fullmatch(r"/api/models/[^/]+/[^/]+/commit/main", self.path):
                for line in map(json.loads, data.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.large[value["oid"]]
                return self.answer(
                    {
                        "commitUrl": f"{hub.address}/{self.path.split('/')[3]}/{self.path.split('/')[4]}/commit/{'0' * 40}",
                        "commitOid": "0" * 40,
                        "success": True,
                    }
                )
            return self.answer({"error": f"not made here: {self.path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
