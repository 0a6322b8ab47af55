"""A small Hugging Face Hub: the endpoints that huggingface_hub uses to make, fill and read a repository of a model."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_tests"


class Repository:
    """Files by commit; `revisions` names commits by branch and tag."""

    def __init__(self, name, private):
        self.name, self.private, self.commits, self.revisions = name, private, {}, {}
        self.commit("main", {})

    def commit(self, branch, files):
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.revisions[branch] = oid
        return oid

    def resolve(self, revision):
        return self.revisions.get(revision, revision if revision in self.commits else None)


class HubServer:
    """Serves while it is entered.

    Attributes:
        url: of the Hub.
        repositories: by name.
        asked: methods and paths of all requests.
        before: called with the method and the path of each request, before it is answered; a number that it returns is
            the status of a refusal.
    """

    def __enter__(self):
        self.repositories, self.asked, self.large = {}, [], {}
        self.before = lambda line: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home):
        """Environment variables of a process that uses this Hub, and a cache in a folder."""
        reach = {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "no_proxy": "127.0.0.1"}
        return {**reach, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def files(self, repo, revision="main"):
        repository = self.repositories[repo]
        return repository.commits[repository.resolve(revision)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments):
        pass

    def _answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code, status=404):
        self._answer(status, {"error": code}, X_Error_Code=code)

    def _serve(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if (status := self.hub.before(self.hub.asked[-1])) is not None:
            self._answer(status, {"error": "refused"})
            return
        logged_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        for method, pattern, serve in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                if "POST" in method and not logged_in and serve is not _Handler._validate:
                    self._answer(401, {"error": "Invalid username or password."})
                    return
                given = match.groupdict()
                if "repo" not in given:
                    serve(self, content, **given)
                    return
                repository = self.hub.repositories.get(given.pop("repo"))
                if repository is None or (repository.private and not logged_in):
                    self._missing("RepoNotFound", 404 if logged_in else 401)
                    return
                serve(self, content, repository, **given)
                return
        self._answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _create(self, content):
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(name, private)
        self._answer(200, {"url": f"{self.hub.url}/{name}"})

    def _validate(self, content):
        card = json.loads(content)["content"]
        licence = yaml.safe_load(card.split("---")[1]).get("license", "mit")
        if licence not in ("mit", "apache-2.0"):
            self._answer(400, {"errors": [{"message": f'"license" must be one of [...], not {licence}'}]})
            return
        self._answer(200, {"errors": [], "warnings": []})

    def _preupload(self, content, repository, revision):
        modes = [
            {"path": path, "uploadMode": "lfs" if path.endswith((".safetensors", ".png")) else "regular"}
            for path in (each["path"] for each in json.loads(content)["files"])
        ]
        self._answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def _batch(self, content, repository):
        asked = json.loads(content)["objects"]
        objects = [{**each, "actions": {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}} for each in asked]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _put(self, content, oid):
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.large[oid] = content
        self._answer(200)

    def _commit(self, content, repository, revision):
        files = dict(repository.commits[repository.resolve(revision)])
        for line in map(json.loads, content.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(revision, files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repository.name}/commit/{oid}", "commitOid": oid})

    def _info(self, content, repository, revision="main"):
        oid = repository.resolve(revision)
        if oid is None:
            self._missing("RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        about = {"id": repository.name, "modelId": repository.name, "sha": oid, "private": repository.private}
        self._answer(200, {**about, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _tree(self, content, repository, revision):
        found = []
        for name, file in repository.commits[repository.resolve(revision)].items():
            found.append({"type": "file", "path": name, "size": len(file), "oid": hashlib.sha1(file).hexdigest()})
        self._answer(200, found)

    def _resolve(self, content, repository, revision, file):
        oid = repository.resolve(revision)
        if oid is None or file not in repository.commits[oid]:
            self._missing("RevisionNotFound" if oid is None else "EntryNotFound")
            return
        content = repository.commits[oid][file]
        self._answer(200, content, X_Repo_Commit=oid, ETag=f'"{hashlib.sha1(content).hexdigest()}"')


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    (("POST",), "/api/repos/create", _Handler._create),
    (("POST",), "/api/validate-yaml", _Handler._validate),
    (("POST",), rf"/api/models/{REPO}/preupload/(?P<revision>.+)", _Handler._preupload),
    (("POST",), rf"/api/models/{REPO}/commit/(?P<revision>.+)", _Handler._commit),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    (("PUT",), "/large/(?P<oid>.+)", _Handler._put),
    (("GET",), rf"/api/models/{REPO}", _Handler._info),
    (("GET",), rf"/api/models/{REPO}/revision/(?P<revision>.+)", _Handler._info),
    (("GET",), rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", _Handler._tree),
    (("GET", "HEAD"), rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler._resolve),
)
